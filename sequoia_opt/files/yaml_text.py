"""YAML text to plain data and back, safely.

Knows PyYAML. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from sequoia_opt.errors import one_line
from sequoia_opt.files.plain_data import MOST_ALIASED, TOO_DEEP, check_plain
from sequoia_opt.files.yaml_tables import parse_with_tables

try:  # the C parser reads a profile about ten times as fast
    from yaml import CSafeDumper as _Dumper
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeDumper as _Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]


class _Loader(_SafeLoader):
    """A safe loader with JSON's types, so that a date is text, and with bounded merge keys."""

    merged_fields = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Insert the fields of the mappings that merge keys (<<) name, which may merge others."""
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                continue
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in parts:
                if isinstance(part, yaml.MappingNode):
                    self.flatten_mapping(part)
                    self.merged_fields += len(part.value)
                if self.merged_fields > MOST_ALIASED:
                    raise ValueError(f"its merge keys expand to more than {MOST_ALIASED} fields")
        super().flatten_mapping(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in kinds if not tag.endswith(":timestamp")]
    for first, kinds in _SafeLoader.yaml_implicit_resolvers.items()
}


def yaml_value(text: str) -> Any:
    """The value of a YAML text, with copies in place of its aliases.

    Raises:
        ValueError: it is not valid YAML, or not plain data.
    """
    try:
        return check_plain(parse_with_tables(text, _load))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def to_yaml(document: Mapping[str, Any]) -> str:
    """YAML in the order of the mapping, with the innermost lists on one line.

    Args:
        document: plain data.
    """
    text: str = yaml.dump(
        document,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
    return text
