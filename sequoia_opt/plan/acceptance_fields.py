"""The tables of an acceptance file: rates by depth and rank traces, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.types import FloatArray


def matrix(fields: Fields, key: str) -> FloatArray:
    """Rates by depth and rank, [depths, W].

    Raises:
        SequoiaError: the field is no list of lists of rates of one length.
    """
    rows = fields.mapping[key]
    if not isinstance(rows, list) or not rows:
        raise fields.fail(key, "a list of lists of numbers, depth 1 first")
    parsed = [
        Fields({f"{key}[{i}]": row}, fields.where).numbers(f"{key}[{i}]", 0.0, 1.0)
        for i, row in enumerate(rows)
    ]
    if len({row.size for row in parsed}) != 1:
        raise SequoiaError(f"{fields.where}: {key}: found rows that differ in length")
    return np.stack(parsed)


def traces(fields: Fields, max_rank: int) -> list[list[int]]:
    """The rank trace of each document.

    Raises:
        SequoiaError: the field is no list of lists of ranks.
    """
    documents = fields.mapping["traces"]
    if not isinstance(documents, list):
        raise fields.fail("traces", "a list of lists of ranks")
    return [_trace(fields, f"traces[{i}]", trace, max_rank) for i, trace in enumerate(documents)]


def traces_by_depth(fields: Fields, max_rank: int, lengths: Sequence[int]) -> list[list[list[int]]]:
    """The rank traces of each document by depth.

    Args:
        lengths: of the documents' traces.

    Raises:
        SequoiaError: the field is no list, as long as the traces, of lists of such traces.
    """
    documents = fields.mapping["traces_by_depth"]
    expected = f"{len(lengths)} lists, as many as `traces` has, each of a list for each depth"
    if not isinstance(documents, list) or len(documents) != len(lengths):
        raise fields.fail("traces_by_depth", expected)
    parsed = []
    for i, (rows, length) in enumerate(zip(documents, lengths, strict=True)):
        if not isinstance(rows, list):
            raise fields.fail("traces_by_depth", expected)
        names = [f"traces_by_depth[{i}][{depth}]" for depth in range(len(rows))]
        parsed.append(
            [_trace(fields, name, row, max_rank) for name, row in zip(names, rows, strict=True)]
        )
        for name, row in zip(names, parsed[-1], strict=True):
            if len(row) != length:
                raise SequoiaError(
                    f"{fields.where}: {name}: found {len(row)} ranks, expected {length}, as many "
                    f"as traces[{i}] has"
                )
    return parsed


def _trace(fields: Fields, name: str, values: Any, max_rank: int) -> list[int]:
    ranks = Fields({name: values}, fields.where).integers(name)
    if ranks and max(ranks) > max_rank:
        raise SequoiaError(
            f"{fields.where}: {name}: found rank {max(ranks)}, expected at most {max_rank}"
        )
    return ranks
