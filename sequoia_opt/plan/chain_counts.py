"""What an engine counted of its chains, as acceptance rates by depth.

Knows how often the first k guesses were accepted together, which is what engines count, and the
conditional rates that trees are solved with. Knows nothing of how engines write their counts
down: that is `engine_counters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.verifiers import DETERMINISTIC_VERIFIER
from sequoia_opt.types import FloatArray

ROUNDING = 0.002  # engines print three decimals
LONGEST_CHAIN = 10_000  # guesses: more than any engine drafts
FEWER = 0.05  # a share of guesses that were not drafted, which is worth a note
BISECTIONS = 60


@dataclass(frozen=True)
class ChainCounts:
    """How many guesses of a chain were accepted.

    Attributes:
        engine: whose counts these are.
        reached: share of steps in which the first 1, 2, 3 … guesses were accepted, [guesses].
        steps: how many steps were counted; 0 if that is not known.
        guesses: guesses of a step, on average; None if that is not known.
        verifier: whose acceptance this is above temperature 0.
        notes: what is to be known of them, one line each.
    """

    engine: str
    reached: FloatArray
    steps: int = 0
    guesses: float | None = None
    verifier: str = DETERMINISTIC_VERIFIER
    notes: list[str] = field(default_factory=list)

    def rates(self, where: str) -> FloatArray:
        """The conditional rates, [depths, 1]: p[d] = reached[d] / reached[d - 1].

        Depths that no step reached are left out.

        Raises:
            SequoiaError: a share outside 0 to 1, or one that is larger than that before it.
        """
        before = np.concatenate(([1.0], self.reached[:-1]))
        for depth, (share, previous) in enumerate(zip(self.reached, before, strict=True), start=1):
            if not 0 <= share <= previous + ROUNDING:
                raise SequoiaError(
                    f"{where}: found {share:.3g} of the steps accepted to position {depth}, "
                    f"expected 0 to {previous:.3g}, the share of the position before"
                )
        known = before > 0
        return np.minimum(self.reached[known] / before[known], 1.0)[:, None]

    def warnings(self) -> list[str]:
        """What is to be known of the rates, one line each."""
        lines = list(self.notes)
        if self.guesses is not None and self.guesses < (1 - FEWER) * len(self.reached):
            lines.append(
                f"steps had {self.guesses:.2f} guesses on average, not {len(self.reached)}: with "
                "chains that end early the rates are lower bounds"
            )
        if len(self.reached) > 1:
            lines.append(
                f"depths past {len(self.reached)} were not drafted and take the last rate; a run "
                "with longer chains would measure them"
            )
        return lines


def of_histogram(
    engine: str,
    counts: Sequence[int],
    where: str,
    guesses: float | None = None,
    verifier: str = DETERMINISTIC_VERIFIER,
) -> ChainCounts:
    """The counts of a histogram: in how many steps 0, 1, 2 … guesses were accepted.

    Args:
        where: the file of the counts, for messages.
        guesses: of a step, on average; a histogram may end at the most that were accepted.

    Raises:
        SequoiaError: no guess was accepted, or so many were drafted that this is no chain.
    """
    if not sum(counts[1:]):
        raise SequoiaError(f"{where}: {engine} accepted no guesses; is its speculation on?")
    steps = int(sum(counts))
    at_least = np.cumsum(np.array(counts, dtype=np.float64)[::-1])[::-1]
    reached = to_the_last_guess(at_least[1:] / steps, guesses, where)
    return ChainCounts(engine, reached, steps, guesses, verifier)


def to_the_last_guess(reached: FloatArray, guesses: float | None, where: str) -> FloatArray:
    """Shares that end at the most accepted guesses, with 0 for the later ones that were drafted.

    Args:
        guesses: of a step, on average; None if that is not known.

    Raises:
        SequoiaError: there are so many that this is no chain.
    """
    return np.pad(reached, (0, max(0, _length(guesses or 0.0, where) - len(reached))))


def _length(guesses: float, where: str) -> int:
    if guesses > LONGEST_CHAIN:
        raise SequoiaError(
            f"{where}: found {guesses:.4g} guesses in a step, expected at most {LONGEST_CHAIN}"
        )
    return round(guesses)


def of_totals(
    engine: str, accepted: float, drafted: float, steps: float, where: str
) -> ChainCounts:
    """Counts of which only the sums are known: one rate p, the same at every depth.

    Chains of K = drafted / steps guesses on average are taken as ones of ⌊K⌋, and of one more in
    the share f = K - ⌊K⌋ of the steps: Σ p^i over i = 1 … ⌊K⌋, + f p^(⌊K⌋ + 1), = accepted / steps.

    Raises:
        SequoiaError: no guess was accepted, or there are so many that this is no chain.
    """
    if not accepted:
        raise SequoiaError(f"{where}: {engine} accepted no guesses; is its speculation on?")
    guesses = drafted / steps
    nearest = _length(guesses, where)
    is_whole = abs(guesses - nearest) < FEWER * guesses and accepted < nearest * steps
    if is_whole:  # engines print two decimals, and the end of a text may end a chain
        guesses = float(nearest)
    shares = np.append(np.ones(int(guesses)), guesses - int(guesses))  # of steps, by guess
    powers = np.arange(1, len(shares) + 1)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_low = (shares * middle**powers).sum() < accepted / steps
        low, high = (middle, high) if is_low else (low, middle)
    notes = [
        f"these are totals of chains of {guesses:.3g} guesses on average: the rate is taken as the "
        "same at every depth"
    ]
    if not is_whole:
        notes.append(
            "some chains ended early; if the draft ends them where it is unsure, the rate is too "
            "high for longer ones"
        )
    return ChainCounts(engine, np.array([high]), round(steps), notes=notes)


def pooled(
    engine: str, rows: Sequence[Sequence[float]], weights: Sequence[float], where: str
) -> FloatArray:
    """The mean of several rows of shares, weighted by their numbers of steps, [guesses].

    Raises:
        SequoiaError: they are of chains of different lengths, or no steps were counted.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise SequoiaError(
            f"{where}: found chains of {' and '.join(map(str, lengths))} guesses, expected one "
            f"length; keep the lines of {engine} with one setting"
        )
    if not sum(weights) > 0:
        raise SequoiaError(f"{where}: {engine} counted no guesses; is its speculation on?")
    return np.average(np.array(rows, dtype=np.float64), axis=0, weights=np.array(weights))
