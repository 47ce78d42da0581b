"""Datasets: files or hub ids to documents, each a prompt and what follows it.

Knows file formats. Knows nothing of tokens or models.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sequoia_opt import demo
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.files import one_line, shown

PIECE = 4000  # characters of a piece of a plain text file


@dataclass(frozen=True)
class Document:
    """One text of a dataset.

    Attributes:
        prompt: where decoding would start from; empty where the dataset has only texts.
        text: what follows the prompt, or the whole text where there is no prompt.
        is_whole: the dataset has texts only, so that this is one.
    """

    prompt: str
    text: str
    is_whole: bool = False


def load_prompts(path: Path) -> list[str]:
    """The prompts of a file in their order, each of them; of a file of texts, the texts.

    Raises:
        SequoiaError: as in `load_dataset`.
    """
    _, documents = load_dataset(path, with_blank=True)
    return [document.text if document.is_whole else document.prompt for document in documents]


def load_dataset(
    name: str | Path | None = None, with_blank: bool = False
) -> tuple[str, list[Document]]:
    """A dataset's short name and its documents; by default the bundled one.

    Args:
        with_blank: those without any text too.
        name: a .jsonl or .parquet file whose records have `prompt` (and, if known,
            `completion`) or `text`, a .txt file, or a Hugging Face dataset id, with a split
            after an @ (`user/name@validation`; `test` by default).

    Raises:
        SequoiaError: missing, malformed or empty, or a package for it is not installed.
    """
    if name is None or str(name) == demo.DATASET_NAME:
        return demo.DATASET_NAME, _from_jsonl(demo.DATASET)
    path = Path(name)
    readers = {".jsonl": _from_jsonl, ".txt": _from_text, ".parquet": _from_parquet}
    if path.suffix in readers:
        if not path.is_file():
            raise SequoiaError(f"{path}: no such file")
        documents = readers[path.suffix](path)
        short = path.stem
    elif path.exists():
        raise SequoiaError(f"{path}: expected a .jsonl, .txt or .parquet file")
    else:
        short = str(name)
        documents = _from_hub(short)
    if not with_blank:
        documents = [d for d in documents if d.prompt.strip() or d.text.strip()]
    if not documents:
        raise SequoiaError(f"{name}: the dataset has no documents")
    return short, documents


def spread_over(documents: Sequence[Document], count: int) -> list[Document]:
    """`count` documents, or all, evenly spread: neighbours in a file are often alike."""
    count = min(count, len(documents))
    return [documents[place * len(documents) // count] for place in range(count)]


def _from_jsonl(path: Path) -> list[Document]:
    documents = []
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    documents.append(_record(json.loads(line), f"{path}: line {number}"))
    except json.JSONDecodeError as error:
        raise SequoiaError(f"{path}: line {number}: not valid JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise SequoiaError(f"{path}: cannot be read ({one_line(error)})") from None
    return documents


def _from_text(path: Path) -> list[Document]:
    """A text file, cut at line ends into pieces of about `PIECE` characters."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise SequoiaError(f"{path}: cannot be read ({one_line(error)})") from None
    pieces, piece = [], ""
    for line in lines:
        piece += line
        if len(piece) >= PIECE:
            pieces.append(piece)
            piece = ""
    pieces += [piece] if piece else []
    return [Document("", text, is_whole=True) for text in pieces]


def _from_parquet(path: Path) -> list[Document]:
    if importlib.util.find_spec("pyarrow") is None:
        raise SequoiaError(f"{path}: reading .parquet needs pyarrow; pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise SequoiaError(f"{path}: cannot be read ({one_line(error)})") from None
    return _records(rows, str(path))


def _from_hub(name: str) -> list[Document]:
    if importlib.util.find_spec("datasets") is None:
        raise SequoiaError(
            f"{name}: no such file; to read it from the Hugging Face hub, pip install datasets"
        )
    import datasets

    identifier, _, split = name.partition("@")
    try:
        rows = datasets.load_dataset(identifier, split=split or "test")
    except Exception as error:  # the hub's client raises many kinds, none of them ours to know
        raise SequoiaError(f"{name}: cannot be loaded ({one_line(error)[:200]})") from None
    return _records(rows, name)


def _records(rows: Iterable[Any], where: str) -> list[Document]:
    return [_record(row, f"{where}: record {number}") for number, row in enumerate(rows, start=1)]


def _record(record: Any, where: str) -> Document:
    if not isinstance(record, Mapping) or not {"prompt", "text"} & record.keys():
        raise SequoiaError(f"{where}: found {shown(record)}, expected a field `prompt` or `text`")
    parts = (
        (record["prompt"], record.get("completion") or "")
        if "prompt" in record
        else ("", record["text"])
    )
    for part in parts:
        if not isinstance(part, str):
            raise SequoiaError(f"{where}: found {shown(part)}, expected text")
    return Document(parts[0], parts[1], is_whole="prompt" not in record)
