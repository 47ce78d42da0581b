"""Served rounds: the times of whole steps, as an engine takes them under load.

Sums of isolated forward passes are several times too low at large batches, since an engine also
schedules, samples and moves data. So where rounds were measured, the target's times are what
they leave over the draft's passes: a step with a chain then takes exactly as long as its round.
Knows chains of guesses by their number of tokens. Knows nothing of how a table is read.
"""

from __future__ import annotations

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.draft_passes import FIRST_WIDTH, draft_passes

COLUMN = "round_ms"
EXPLANATION = (
    "the target's times are what these rounds leave over the draft's forward passes, so that a "
    "step with a chain takes as long as its round"
)
UNMEASURED_MS = 0.001  # of a draft pass that is within the rounds

Points = dict[tuple[int, int], dict[int, float]]
"""Milliseconds by tokens, by batch and context."""


def no_draft_passes(rounds: Points) -> Points:
    """Times of a draft's passes that are within the rounds: as good as none.

    Args:
        rounds: by batch and context, then by tokens of the target's pass, the root included.
    """
    return {
        key: dict.fromkeys((1, max(FIRST_WIDTH, *by_tokens)), UNMEASURED_MS)
        for key, by_tokens in rounds.items()
    }


def target_ms(rounds: Points, draft: ModelLatency, where: str) -> Points:
    """The target's times: rounds without the draft's forward passes of a chain.

    Args:
        rounds: by batch and context, then by tokens of the target's pass, the root included.
        where: the table's file, for messages.

    Raises:
        SequoiaError: the draft was not measured there, or takes as long as a whole round.
    """
    target: Points = {}
    for (batch, context), by_tokens in rounds.items():
        target[batch, context] = {}
        for tokens, round_ms in by_tokens.items():
            at = f"{where}: {COLUMN}: batch {batch}, context {context}, {tokens} tokens"
            draft_ms = _draft_ms(draft, batch, context, tokens, at)
            if draft_ms >= round_ms:
                raise SequoiaError(
                    f"{at}: found {round_ms:g} ms, expected more than the draft's forward passes, "
                    f"{draft_ms:g} ms"
                )
            target[batch, context][tokens] = round_ms - draft_ms
    return target


def _draft_ms(draft: ModelLatency, batch: int, context: int, tokens: int, where: str) -> float:
    """The draft's forward passes of a chain.

    Raises:
        SequoiaError: they were not measured.
    """
    passes = list(draft_passes(shapes.chain(tokens), passes=draft.passes))
    if not passes:
        return 0.0
    try:
        return float(np.sum(draft.at(passes, context, batch)))
    except SequoiaError:
        raise SequoiaError(
            f"{where}: found no times of the draft, expected its forward passes of 1 and 2 tokens "
            "there; without any row of the draft, its passes count as part of the rounds"
        ) from None
