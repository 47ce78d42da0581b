"""The program's JSON and YAML files: parsed and checked on reading, written atomically.

Knows the `format` and `version` that all of them begin with. Knows nothing of their other fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.files.atomic import write_text
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.plain_data import TOO_DEEP, check_depth, check_plain
from sequoia_opt.files.reading import read_text
from sequoia_opt.files.yaml_text import to_yaml, yaml_value
from sequoia_opt.types import Document, FloatArray


def read_document(path: str | Path, format_name: str, version: int) -> Document:
    """Parse a JSON or YAML file, and check its `format` and `version`.

    Raises:
        SequoiaError: the file is missing, unreadable, malformed or of another format.
    """
    document = parse_document(Path(path))
    fields = Fields(document, str(path))
    file_format = fields.text("format")
    if file_format != format_name:
        raise SequoiaError(f"{path}: format: found {file_format!r}, expected {format_name!r}")
    file_version = fields.integer("version", minimum=1)
    if file_version > version:
        raise SequoiaError(
            f"{path}: version: found {file_version}, expected at most {version}; this file was "
            "written by a newer version of sequoia-opt"
        )
    return document


def parse_document(path: Path) -> Document:
    """A JSON (`.json`) or YAML (any other ending) file of whatever `format`.

    Raises:
        SequoiaError: the file is missing, unreadable or malformed.
    """
    text = read_text(path)
    if not text.strip():
        raise SequoiaError(f"{path}: is empty")
    if path.suffix == ".jsonl":
        raise SequoiaError(
            f"{path}: found JSON lines, as datasets and statistics are, expected one document; "
            "pass a dataset with --dataset, or to `complete`, and statistics to `show`"
        )
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        document = check_plain(json.loads(text)) if kind == "JSON" else yaml_value(text)
        if not isinstance(document, dict):
            raise SequoiaError(f"{path}: expected a mapping with a `format` field")
        check_depth(document)
    except RecursionError:
        raise SequoiaError(f"{path}: not valid {kind} ({TOO_DEEP})") from None
    except ValueError as error:
        raise SequoiaError(f"{path}: not valid {kind} ({one_line(error)})") from None
    return document


def write_document(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write JSON (`.json`) or YAML (any other ending) atomically.

    Raises:
        SequoiaError: the file cannot be written; its old content is untouched.
    """
    if Path(path).suffix == ".json":
        write_text(path, to_json(document))
    else:
        write_text(path, to_yaml(plain(document)))


def to_json(document: Mapping[str, Any]) -> str:
    """JSON with each top-level field on a line of its own."""
    lines = (
        f"  {json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}"
        for key, value in document.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def plain(value: Any, spell_out: bool = True) -> Any:
    """`value` with NumPy's scalars and arrays, tuples and paths converted to built-in types.

    Args:
        spell_out: write lone surrogates, which file names may have, as backslash escapes; without
            it texts stay as they are.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, spell_out) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), spell_out)
    if isinstance(value, list | tuple):
        return [plain(item, spell_out) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        value = str(value)
    if spell_out and isinstance(value, str) and not value.isascii():
        return value.encode(errors="backslashreplace").decode()
    return value


def rounded(values: FloatArray | list[float] | float, digits: int = 6) -> Any:
    """Numbers rounded for a file, to `digits` significant digits."""
    if isinstance(values, int | float | np.floating):
        return float(f"{float(values):.{digits}g}")
    return [rounded(value, digits) for value in values]
