"""A model of a served text: at each position the draft is sure to a degree, and right or wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sequoia_opt.plan.chain_replay import StepCounts

FURTHER = 64  # positions behind a wrong guess for which the draft's probabilities are known


@dataclass(frozen=True)
class ChainModel:
    """The draft along one text.

    Attributes:
        right: whether the guess at a position is the target's token, [positions].
        sure: the draft's probability of its guess there, [positions].
        astray: its probabilities behind a wrong guess there, [positions, FURTHER].
    """

    right: list[bool]
    sure: list[float]
    astray: list[list[float]]

    @classmethod
    def drawn(cls, seed: int, positions: int, easy: float = 0.75) -> ChainModel:
        """A text whose guesses are right more often where the draft is sure."""
        generator = np.random.default_rng(seed)
        sure = generator.beta(4 * easy, 4 * (1 - easy), positions)
        return cls(
            (generator.random(positions) < sure).tolist(),
            sure.tolist(),
            generator.beta(1.5, 1.0, (positions, FURTHER)).tolist(),
        )

    def step(self, start: int, guesses: int, threshold: float) -> tuple[int, int, int]:
        """Drafted and accepted guesses, and the draft's passes, of a step that starts there."""
        most = min(guesses, len(self.right) - start - 1)
        drafted = accepted = passes = 0
        wrong_at = -1
        while drafted < most:
            passes += 1
            place = start + drafted
            if wrong_at < 0:
                probability = self.sure[place]
            else:
                probability = self.astray[wrong_at][place - wrong_at - 1]
            if probability < threshold:
                break
            drafted += 1
            if wrong_at < 0 and self.right[place]:
                accepted += 1
            elif wrong_at < 0:
                wrong_at = place
        return drafted, accepted, passes

    def steps(self, guesses: int, threshold: float) -> list[tuple[int, int, int]]:
        """All steps of the text, see `step`."""
        start, steps = 0, []
        while start < len(self.right):
            steps.append(self.step(start, guesses, threshold))
            start += steps[-1][1] + 1
        return steps

    def counted(self, guesses: int, threshold: float) -> StepCounts:
        """The steps as a server counts them."""
        counts = StepCounts()
        for drafted, accepted, _ in self.steps(guesses, threshold):
            counts.add(drafted, accepted)
        return counts
