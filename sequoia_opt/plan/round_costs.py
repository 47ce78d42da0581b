"""The time of a served chain's round by its number of guesses, fitted to the times of whole texts.

A round is a whole step of an engine: the draft's passes, the target's, and all between them.
Knows numbers of steps by their guesses and the times of whole texts. Knows nothing of acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sequoia_opt.plan.chain_replay import ChainWalk
from sequoia_opt.types import FloatArray


@dataclass(frozen=True)
class TimedWalk:
    """Texts decoded with one setting, and the time they took together.

    Attributes:
        guesses: the most guesses in a step.
        threshold: the setting's threshold.
        walk: the steps.
        ms: the time of all steps.
    """

    guesses: int
    threshold: float
    walk: ChainWalk
    ms: float


@dataclass(frozen=True)
class RoundCosts:
    """Times of rounds, linear between the lengths that were timed and past the last one.

    Attributes:
        plain_ms: time of a step without guesses and without a draft.
        lengths: numbers of guesses that were timed, ascending, [lengths].
        round_ms: time of a round with each of these, [lengths].
        pass_ms: time of a single pass of the draft.
    """

    plain_ms: float
    lengths: tuple[int, ...]
    round_ms: FloatArray
    pass_ms: float

    def at(self, guesses: int) -> FloatArray:
        """Times of rounds with 0, 1 … `guesses` guesses and as many draft passes, [guesses + 1].

        Without guesses, the draft only reads the token.
        """
        knots = np.concatenate(([self.plain_ms + self.pass_ms], self.round_ms))
        return _weights((0, *self.lengths), guesses) @ knots

    def total_ms(self, walk: ChainWalk) -> FloatArray:
        """The time of each text, [texts]."""
        guesses = walk.full.shape[1] - 1
        round_ms = self.at(guesses)
        return np.asarray((walk.full + walk.cut) @ round_ms + walk.cut.sum(axis=1) * self.pass_ms)


def fit(plain_ms: float, timed: Sequence[TimedWalk]) -> RoundCosts:
    """The costs that explain the times best: least squares of the relative errors.

    A step whose last draft pass gave no guess takes one pass more than a round of its guesses.

    Args:
        timed: runs, among them every length without a threshold at least once.
    """
    lengths = tuple(sorted({run.guesses for run in timed if not run.threshold}))
    rows, targets = [], []
    for run in timed:
        full, cut = run.walk.full.sum(axis=0), run.walk.cut.sum(axis=0)
        shares = (full + cut) @ _weights((0, *lengths), run.guesses)
        # At no guesses, a round is a plain step and a pass of the draft.
        rows.append([*shares[1:], shares[0] + cut.sum()])
        targets.append(run.ms - shares[0] * plain_ms)
    scale = np.array([1 / run.ms for run in timed])
    table, values = np.array(rows) * scale[:, None], np.array(targets) * scale
    solution = np.linalg.lstsq(table, values, rcond=None)[0]
    if any(run.threshold for run in timed):
        pass_ms = float(np.clip(solution[-1], 0.0, max(0.0, solution[0] - plain_ms)))
    else:
        pass_ms = max(0.0, float(solution[0] - plain_ms) / 2)  # few steps determine it
    round_ms = np.linalg.lstsq(table[:, :-1], values - table[:, -1] * pass_ms, rcond=None)[0]
    return RoundCosts(plain_ms, lengths, round_ms, pass_ms)


def _weights(knots: Sequence[int], guesses: int) -> FloatArray:
    """Weights of the knots' times in those of 0, 1 … `guesses` guesses, [guesses + 1, knots]."""
    counts = np.arange(guesses + 1)
    right = np.clip(np.searchsorted(knots, counts), 1, len(knots) - 1)
    first, second = np.array(knots)[right - 1], np.array(knots)[right]
    share = (counts - first) / (second - first)
    table = np.zeros((guesses + 1, len(knots)))
    np.add.at(table, (counts, right - 1), 1 - share)
    np.add.at(table, (counts, right), share)
    return table
