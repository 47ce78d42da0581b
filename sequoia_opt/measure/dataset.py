"""Datasets: a file or a Hugging Face id to a name and documents, each a prompt and its text.

Knows where a dataset comes from and which of its records can be used. Knows nothing of file
formats, tokens or models.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.measure import dataset_files
from sequoia_opt.measure.records import Document, from_rows

MOST_NAMED = 10  # records left out that are named one by one

Note = Callable[[str], None]


def load_prompts(path: Path) -> list[Document]:
    """All documents of a file in their order; a record that cannot be used has a `problem`.

    Raises:
        SequoiaError: as in `load_dataset`, except for records that cannot be used.
    """
    _, documents = _load(path)
    if not documents:
        raise SequoiaError(f"{path}: the dataset has no documents")
    return documents


def load_dataset(name: str | Path, note: Note = lambda message: None) -> tuple[str, list[Document]]:
    """A dataset's short name and the documents that can be used.

    Args:
        name: a .jsonl, .json or .parquet file whose records have `prompt` (text, messages or
            token ids) and, if known, `completion`; `messages` or `conversations`; `turns`;
            `instruction` (and `input`); `question`; or `text`; a .txt file; or a Hugging Face
            dataset id, with a split after an @ (`user/name@validation`; `test` by default).
        note: called with a line for each record that is left out.

    Raises:
        SequoiaError: the dataset is missing, unreadable or has no document that can be used, or a
            package to read it is missing.
    """
    short_name, documents = _load(name)
    usable = [d for d in documents if not d.problem and not d.is_blank]
    problems = [f"{d.where}: {d.problem}" for d in documents if d.problem]
    if not usable:
        raise SequoiaError(problems[0] if problems else f"{name}: the dataset has no documents")
    tell_left_out(problems, note)
    return short_name, usable


def tell_left_out(problems: Sequence[str], note: Note) -> None:
    """Note the first records that are left out one by one, and the number of the others."""
    for problem in problems[:MOST_NAMED]:
        note(f"{problem}; left out")
    if len(problems) > MOST_NAMED:
        note(f"{len(problems) - MOST_NAMED} more records that cannot be used are left out")


def spread_over(documents: Sequence[Document], count: int) -> list[Document]:
    """Up to `count` documents at even distances, since neighbours in a file are often alike."""
    count = min(count, len(documents))
    return [documents[index * len(documents) // count] for index in range(count)]


def _load(name: str | Path) -> tuple[str, list[Document]]:
    """A dataset's short name and all of its documents, also those that cannot be used."""
    path = Path(name)
    if dataset_files.is_dataset_file(path):
        return dataset_files.without_gz(path).stem, dataset_files.read_file(path)
    if path.exists():
        raise SequoiaError(f"{path}: expected a {dataset_files.EXPECTED}")
    return str(name), _from_hub(str(name))


def _from_hub(name: str) -> list[Document]:
    if importlib.util.find_spec("datasets") is None:
        raise SequoiaError(
            f"{name}: no such file; to read it from the Hugging Face hub, pip install datasets"
        )
    import datasets

    identifier, _, split = name.partition("@")
    try:
        rows = datasets.load_dataset(identifier, split=split or "test")
    except Exception as error:  # the hub's client raises many kinds of errors
        raise SequoiaError(f"{name}: cannot be loaded ({one_line(error)[:200]})") from None
    return list(from_rows(rows, name))
