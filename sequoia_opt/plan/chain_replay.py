"""Chains that an engine drafted, replayed with fewer guesses per step.

A greedy text is the same whatever is guessed. So one run with a long chain shows at each position
whether the draft's guess is right, and so how a shorter chain would decode the text. A chain with a
threshold ends before a guess that the draft finds too unlikely, like llama.cpp's p-min; a run with
that threshold shows which guesses these are. Knows steps and positions. Knows
nothing of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sequoia_opt.plan.tree import IntArray


@dataclass(frozen=True)
class StepCounts:
    """The steps of one text after its first token, which follows from the prompt.

    Attributes:
        drafted, accepted: guesses of each step, and how many of them were accepted, [steps].
    """

    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def add(self, drafted: int, accepted: int) -> None:
        """Add a step."""
        self.drafted.append(drafted)
        self.accepted.append(accepted)


@dataclass(frozen=True)
class ChainWalk:
    """The steps of texts decoded with one setting, by their guesses.

    Attributes:
        tokens: new tokens of each text after its first, [texts].
        full: steps by number of guesses, with a draft pass for each guess, [texts, guesses + 1].
        cut: the other steps by number of guesses, where the guess of one more draft pass was
            dropped, [texts, guesses + 1].
    """

    tokens: IntArray
    full: IntArray
    cut: IntArray

    @property
    def steps(self) -> IntArray:
        """Steps of each text, [texts]."""
        return np.asarray((self.full + self.cut).sum(axis=1))


@dataclass(frozen=True)
class _Positions:
    """What is known of the positions of one text, [positions] each.

    Attributes:
        hit: whether the draft's guess is likely enough to be made, and is the target's token.
        unsure: whether the draft's guess is too unlikely to be made.
        tail: at a wrong guess, how many more guesses the draft would make after it.
    """

    hit: Sequence[bool]
    unsure: Sequence[bool]
    tail: Sequence[int]


class ChainRecord:
    """One run with a long chain.

    Attributes:
        guesses: the most guesses in a step.
        threshold: the draft's probability below which a step stops guessing.
        texts: the steps of each text.
    """

    def __init__(self, guesses: int, threshold: float, texts: Sequence[StepCounts]) -> None:
        """Work out what the steps show about each position."""
        self.guesses, self.threshold, self.texts = guesses, threshold, list(texts)
        share = self._share_behind_hits()
        self._positions = [self._of_text(steps, share) for steps in self.texts]

    @property
    def reached(self) -> IntArray:
        """In how many steps at least the first 1, 2, 3 … guesses were accepted, [guesses]."""
        accepted = np.array([count for steps in self.texts for count in steps.accepted])
        return np.array([(accepted >= depth).sum() for depth in range(1, self.guesses + 1)])

    @property
    def traces(self) -> list[list[int]]:
        """The rank trace of each text, see `Acceptance`: 1 where the guess is right, else 0."""
        return [[int(hit) for hit in positions.hit] for positions in self._positions]

    def walk(self, guesses: int) -> ChainWalk:
        """Decode the texts with at most so many guesses a step.

        Args:
            guesses: at most those of the run.
        """
        rows = [_walk(positions, guesses) for positions in self._positions]
        return ChainWalk(
            np.array([len(positions.hit) for positions in self._positions]),
            np.stack([full for full, _ in rows]),
            np.stack([cut for _, cut in rows]),
        )

    def _of_text(self, steps: StepCounts, share: float) -> _Positions:
        """What the steps of a text show about its positions.

        The token after a fully accepted chain was never guessed. As many of these positions count
        as hits, evenly spread, as there are hits among the guesses after an accepted guess.
        """
        total = sum(steps.accepted) + len(steps.accepted)
        hit: list[bool] = []
        unsure: list[bool] = []
        tail: list[int] = []
        credit = 0.5
        for drafted, accepted in zip(steps.drafted, steps.accepted, strict=True):
            most = min(self.guesses, total - len(hit) - 1)
            is_untested = accepted == drafted == most
            credit += share * is_untested
            is_hit = is_untested and credit >= 1
            credit -= is_hit
            hit += [True] * accepted + [is_hit]
            is_unsure = accepted == drafted and not is_hit and self.threshold > 0
            unsure += [False] * accepted + [is_unsure]
            # Without a threshold a chain always goes on, even past the end of this run's.
            behind = drafted - accepted - 1 if self.threshold else self.guesses
            tail += [0] * accepted + [max(0, behind)]
        return _Positions(hit, unsure, tail)

    def _share_behind_hits(self) -> float:
        """Share of the guesses after an accepted guess that were accepted too."""
        tested = hits = 0
        for steps in self.texts:
            for drafted, accepted in zip(steps.drafted, steps.accepted, strict=True):
                tested += max(0, min(drafted, accepted + 1) - 1)
                hits += max(0, accepted - 1)
        return hits / tested if tested else 0.0


def _walk(positions: _Positions, guesses: int) -> tuple[IntArray, IntArray]:
    """Steps of a text by number of guesses, see `ChainWalk`; each [guesses + 1].

    An engine guesses no token past the requested length, and never the last token.
    """
    full, cut = np.zeros(guesses + 1, np.int64), np.zeros(guesses + 1, np.int64)
    start, total = 0, len(positions.hit)
    while start < total:
        most = min(guesses, total - start - 1)
        accepted = 0
        while accepted < most and positions.hit[start + accepted]:
            accepted += 1
        drafted = accepted
        if accepted < most and not positions.unsure[start + accepted]:
            drafted += 1 + min(positions.tail[start + accepted], most - accepted - 1)
        (full if drafted == most else cut)[drafted] += 1
        start += accepted + 1
    return full, cut
