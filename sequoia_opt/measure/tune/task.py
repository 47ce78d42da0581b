"""What `tune` is asked to do, and what it found, whichever engine it tuned.

Knows prompts, names and the line to paste. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.progress import no_note
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.tune.files import Tried
from sequoia_opt.measure.tune.prompts import Reader, prompts_for
from sequoia_opt.measure.tune.tuning import Tuned, TuneSpec

FRESH = 3  # prompts of a proof for each of the race


@dataclass(frozen=True)
class Task:
    """The prompts to decode while settings are tried, and the time for it.

    Attributes:
        dataset: its short name.
        documents: where prompts come from.
        limit: number of prompts.
        spec: see `TuneSpec`.
    """

    dataset: str
    documents: Sequence[Document]
    limit: int
    spec: TuneSpec


@dataclass(frozen=True)
class TunedEngine:
    """The outcome, and how to use it.

    Attributes:
        tuned: see `Tuned`.
        command: the command line, or the lines of Python, of the fastest setting.
        tried: the models, prompts and machine, for files.
        prompts: number of prompts.
    """

    tuned: Tuned
    command: str
    tried: Tried
    prompts: int


def fresh_prompts(
    reader: Reader, task: Task, most: int | None, prompts: Sequence[list[int]]
) -> list[list[int]]:
    """Other prompts of the dataset, for a proof: `FRESH` for each of these, if there are so many.

    Args:
        most: see `prompts_for`.
    """
    more = prompts_for(reader, task.documents, (1 + FRESH) * task.limit, most, no_note)
    return [prompt for prompt in more if prompt not in prompts]


def room(positions: int, new_tokens: int) -> int | None:
    """The most tokens that a prompt may have; None for any number.

    Args:
        positions: of the models or the server; 0 where they are not known.

    Raises:
        SequoiaError: the new tokens leave none.
    """
    if not positions:
        return None
    if new_tokens >= positions:
        raise SequoiaError(
            f"found {new_tokens} new tokens for each prompt, expected fewer than the {positions} "
            "positions that there are; lower --max-new-tokens"
        )
    return positions - new_tokens


def mean_context(prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    """The mean number of cached tokens while the prompts are decoded."""
    return float(np.mean([len(prompt) for prompt in prompts]) + new_tokens / 2)
