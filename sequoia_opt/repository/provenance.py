"""What a file was made from, so that a newer version of it can be told from another file.

Knows which of their inputs and settings profiles, acceptance rates, trees, pages and figures
name. Knows nothing of how they are made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from sequoia_opt.engine.names import TORCH
from sequoia_opt.files.documents import plain
from sequoia_opt.files.reading import read_bytes
from sequoia_opt.plan import acceptance, latency, tree
from sequoia_opt.plan.draft_names import LOOKUP_FIRST
from sequoia_opt.repository.kinds import KINDS, MARK
from sequoia_opt.types import Document

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair

# Settings of a profile's engine that its file name does not show, or only a default name does.
ENGINE_SETTINGS = ("graphs", "offload", "world_size", "random_weights", "streamed_layers")
# The same where the engine is not torch.
OTHER_ENGINE_SETTINGS = (
    "name", "threads", "gpu_layers", "flash_attention", "cache_type_k", "cache_type_v",
    "context_size",
)  # fmt: skip
DEFAULT_ENGINE = {"offload": "none", "world_size": 1}
DEFAULT_OPTIONS = {"batch": 1, "shape": "tree"}  # of `solve`


@dataclass(frozen=True)
class Origin:
    """A model, a dataset or a file that another file was made from.

    Attributes:
        name: as in the other file's name.
        source: the folder or file that it was read from; None if the name says it all.
        fingerprint: of its content, if known.
    """

    name: str = ""
    source: str | None = None
    fingerprint: str | None = None

    def is_like(self, former: Origin) -> bool:
        """Whether this is the origin that a former file names, as far as that file says.

        It has the same content, or the same source, whose content may have changed since.
        """
        if self.name != former.name:
            return False
        if _is_same_content(self.fingerprint, former.fingerprint):
            return True
        if self.source is None or former.source is None:
            # Older files do not say where a model was: then its content decides, if known.
            contents_differ = bool(self.source and self.fingerprint and former.fingerprint)
            return former.source is None and not contents_differ
        return self.source == former.source

    @property
    def corpus(self) -> str:
        """Of a lookup before a model, its corpus's fingerprint, which stands before the model's;
        empty without one. A corpus of the lookup alone is its source."""
        if not self.name.startswith(LOOKUP_FIRST):
            return ""
        before_model = (self.fingerprint or "").rpartition("+")[0]
        return before_model.partition("+")[2]

    def __str__(self) -> str:
        return self.source or self.name


def _is_same_content(first: str | None, second: str | None) -> bool:
    """Whether two fingerprints are known and agree in the parts, apart by hyphens, of both."""
    if not first or not second:
        return False
    shorter, longer = sorted((first, second), key=len)
    return longer == shorter or longer.startswith(f"{shorter}-")


@dataclass(frozen=True)
class Provenance:
    """What a file was made from.

    Attributes:
        kind: the file's format.
        origins: by their part in the file, such as "target" or "dataset".
        settings: other facts that make it a different file.
        covers: the amount of each thing in the file, comparable with >=; a file with less is not
            a newer version of one with more.
        asked: options that determine how much it should have.
    """

    kind: str
    origins: Mapping[str, Origin] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    covers: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(document: Mapping[str, Any], **asked: Any) -> Provenance:
        """The provenance that a profile, acceptance rates or a tree states."""
        readers = {
            latency.FORMAT: _of_profile,
            acceptance.FORMAT: _of_acceptance,
            tree.FORMAT: _of_tree,
        }
        kind = str(document.get("format"))
        stated = readers[kind](document) if kind in readers else Provenance(kind)
        return replace(stated, asked=asked)

    @staticmethod
    def drawn(kind: str, sources: Sequence[Path]) -> Provenance:
        """The provenance of a page or a figure that shows `sources`."""
        return _of_sources(kind, [source_of(path) or plain(path) for path in sources])

    @staticmethod
    def in_mark(path: Path) -> Provenance | None:
        """The provenance that a page or a figure carries as its `mark`."""
        mark = MARK.search(read_bytes(path))
        if mark is None:
            return None
        kind, names = (part.decode() for part in mark.groups())
        return _of_sources(kind, [unquote(name) for name in names.split(",")])

    @property
    def mark(self) -> str:
        """The provenance of a page or a figure as text, since its format has no field for it."""
        return f"{self.kind}:{','.join(quote(str(o)) for o in self.origins.values())};"

    def difference(self, former: Provenance) -> str | None:
        """Why a former file is not an older version of this one; None if it is one."""
        if former.kind != self.kind:
            return f"it holds {KINDS.get(former.kind, 'something else')}, not {KINDS[self.kind]}"
        for part, origin in self.origins.items():
            former_origin = former.origins.get(part)
            if former_origin is not None and not origin.is_like(former_origin):
                return f"it was made from {part} {former_origin}, not {origin}"
            if former_origin is not None and origin.corpus != former_origin.corpus:
                return f"it was made from {part} {former_origin} with another corpus"
        for name, value in self.settings.items():
            if name in former.settings and former.settings[name] != value:
                former_value = _short(former.settings[name])
                return f"it was made with {name} {former_value}, not {_short(value)}"
        for name, amount in self.covers.items():
            former_amount = former.covers.get(name)
            if former_amount is not None and not amount >= former_amount:
                return f"it has more {name} than the new file"
        return None

    @property
    def distinction(self) -> str:
        """A suffix for this file's name, the same each time the file is made."""
        origins = {part: f"{origin}{origin.corpus}" for part, origin in self.origins.items()}
        facts = [origins, plain(self.settings), plain(self.asked)]
        text = json.dumps(facts, sort_keys=True, default=str)
        return f"~{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def source_of(name: str | Path | None) -> str | None:
    """The path of a model or dataset, as files record it: relative if it lies below the current
    folder; None for a hub's or a bundled one, whose name says it all."""
    if name is None or not os.path.exists(name):
        return None
    absolute, here = os.path.abspath(name), os.getcwd()
    is_inside = os.path.commonpath([absolute, here]) == here
    path = Path(os.path.relpath(absolute) if is_inside else absolute).as_posix()
    return str(plain(path))  # a name may have bytes that are not text


def sources_of(
    target: str | None = None, draft: str | None = None, dataset: str | None = None
) -> dict[str, str]:
    """The paths of models and a dataset, of those that have one."""
    names = {"target": target, "draft": draft, "dataset": dataset}
    sources = {part: source_of(name) for part, name in names.items()}
    return {part: source for part, source in sources.items() if source is not None}


def origins_of(
    pair: Pair, sources: Mapping[str, str], dataset: str | None = None, content: str | None = None
) -> dict[str, Origin]:
    """The origins of a measurement: a pair of models and a dataset.

    Args:
        sources: see `sources_of`.
        dataset: the dataset's name.
        content: the dataset's fingerprint.
    """
    names = {"target": pair.target_name, "draft": pair.draft_name}
    fingerprints: dict[str, str | None] = dict(pair.fingerprints)
    if dataset is not None:
        names["dataset"], fingerprints["dataset"] = dataset, content
    return {
        part: Origin(name, sources.get(part), fingerprints[part]) for part, name in names.items()
    }


def _of_sources(kind: str, names: Sequence[str]) -> Provenance:
    return Provenance(kind, {f"source {index}": Origin(name) for index, name in enumerate(names)})


def _of_profile(document: Mapping[str, Any]) -> Provenance:
    origins = {}
    points = set()
    for role in ("target", "draft"):
        model = _section(document, role)
        origins[role] = Origin(
            str(model.get("model")), _text(model, "source"), _text(model, "fingerprint")
        )
        for curve in model.get("latency", []):
            shape = role, curve.get("batch"), curve.get("context")
            points |= {(*shape, count) for count in curve.get("tokens", [])}
    settings = _engine_settings(_section(document, "engine"))
    settings["import of"] = _imported_file(document)
    verifiers = frozenset(_section(document, "overhead"))
    covers = {"points": frozenset(points), "verifiers": verifiers}
    return Provenance(latency.FORMAT, origins, settings, covers)


def _of_acceptance(document: Mapping[str, Any]) -> Provenance:
    sources = _section(document, "sources")
    fingerprints = _section(document, "fingerprints")
    origins = {
        part: Origin(str(document.get(part)), _text(sources, part), _text(fingerprints, part))
        for part in ("target", "draft", "dataset")
    }
    rates, by_depth = document.get("acceptance"), document.get("by_depth")
    covers: dict[str, Any] = {"ranks": len(rates) if isinstance(rates, list) else 0}
    for name, words in (("documents", "documents"), ("max_new_tokens", "tokens per document")):
        if isinstance(document.get(name), int):
            covers[words] = document[name]
    covers["depths"] = len(by_depth) if isinstance(by_depth, list) else 1
    settings: Document = {"import of": _imported_file(document)}
    if "mode" in document:
        settings["mode"] = document["mode"]
    return Provenance(acceptance.FORMAT, origins, settings, covers)


def _of_tree(document: Mapping[str, Any]) -> Provenance:
    provenance = _section(document, "provenance")
    origins = {}
    for kind in ("profile", "acceptance"):
        source = _section(provenance, kind)
        origins[kind] = Origin(str(source.get("file")))
        for part, model in _section(source, "from").items():
            fields = model if isinstance(model, Mapping) else {}
            name = str(document.get(part))
            origins[part] = Origin(name, _text(fields, "source"), _text(fields, "fingerprint"))
    for part in ("target", "draft", "dataset"):
        origins.setdefault(part, Origin(str(document.get(part))))
    stated = _section(provenance, "options")
    options = DEFAULT_OPTIONS | {k: value for k, value in stated.items() if value is not None}
    settings = {
        "options": json.loads(json.dumps(plain(options))),
        "import of": _imported_file(document),
        **_engine_settings(_section(document, "engine")),
    }
    return Provenance(tree.FORMAT, origins, settings)


def _engine_settings(engine: Mapping[str, Any]) -> Document:
    """How the models were run, with None in place of each default."""
    names: tuple[str, ...] = ENGINE_SETTINGS
    if engine.get("name", TORCH) != TORCH:
        names += OTHER_ENGINE_SETTINGS
    settings = {name: engine.get(name) or None for name in names}
    return {
        name: None if DEFAULT_ENGINE.get(name) == value else value
        for name, value in settings.items()
    }


def _imported_file(document: Mapping[str, Any]) -> str | None:
    """The file that a document was imported from."""
    return _text(_section(document, "provenance"), "imported")


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A nested mapping; empty if the document has none of that name."""
    part = document.get(name)
    return part if isinstance(part, Mapping) else {}


def _text(part: Mapping[str, Any], name: str) -> str | None:
    value = part.get(name)
    return value if isinstance(value, str) and value else None


def _short(value: Any) -> str:
    text = json.dumps(plain(value), default=str)
    return text if len(text) <= 60 else text[:57] + "..."
