"""Drafting and verification at a single node, in numpy: `node_rules` where the host has the logits.

A growing tree is decided about between forward passes, which leave the processor's caches full of
weights; each tensor operation then costs more than its arithmetic. Here a node takes few: a draw
is tested by two probabilities, and a residual is computed only where a draw has failed. Knows
nothing of policies, models or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia_opt.engine.sampling import LOW, Cuts, warp
from sequoia_opt.engine.verify.base import Verifier
from sequoia_opt.engine.verify.exact_match import Greedy, TopK
from sequoia_opt.engine.verify.node_rules import (
    Guesses,
    MatchRule,
    NodeRule,
    ResidualRule,
    Uniforms,
    node_rule,
)
from sequoia_opt.engine.verify.residual import Sequoia
from sequoia_opt.engine.verify.traversal import Traversal

Row = NDArray[Any]
"""[vocabulary], logits, probabilities or weights, in the models' number type."""

UNCUT = Cuts()
TAME = 50.0  # a logit whose power, and a vocabulary of it, float32 can hold
FEW = 16  # of the most likely tokens: so many are found faster one after the other
BLOCK = 256  # weights whose sum a draw passes over at once


class HostRule(NodeRule, Protocol):
    """A rule that also takes one row of logits at a time, as llama.cpp has them."""

    def guess_row(
        self, logits: Row, ranks: int, uniforms: Sequence[float]
    ) -> tuple[list[int], Row | None]:
        """A node's guesses, from the draft's logits [vocabulary], which it may overwrite.

        Args:
            uniforms: one for each guess, where guesses are drawn.

        Returns:
            Their tokens; and the distribution that they were drawn from, None where they were not
            drawn.
        """
        ...

    def decide_row(
        self, logits: Row, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """`decide`, from the target's logits [vocabulary]."""
        ...


class HostMatchRule:
    """`MatchRule` in numpy."""

    draws = False

    def __init__(self, verifier: Greedy) -> None:
        self._sampler = verifier if isinstance(verifier, TopK) else None

    def guess(self, logits: Tensor, ranks: int, uniforms: Uniforms) -> Guesses:
        """The draft's most likely tokens."""
        return Guesses(*likely_guesses(logits.numpy(), ranks), None)

    def guess_row(
        self, logits: Row, ranks: int, uniforms: Sequence[float]
    ) -> tuple[list[int], None]:
        """The draft's most likely tokens."""
        return most_likely(logits, ranks), None

    def uniform_count(self, ranks: int) -> int:
        """One for the target's draw, if it draws."""
        return 0 if self._sampler is None else 1

    def decide(
        self, logits: Tensor, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """Look for the target's choice among the guesses."""
        return self.decide_row(logits.numpy()[0], tokens, draft, uniforms)

    def decide_row(
        self, logits: Row, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """See `decide`."""
        if self._sampler is None:
            token = int(logits.argmax())
        else:
            token = draw(target_chances(logits, self._sampler), uniforms[0])
        return (tokens.index(token) + 1 if token in tokens else 0), token


class HostResidualRule:
    """`ResidualRule` in numpy."""

    draws = True

    def __init__(self, verifier: Sequoia) -> None:
        self._verifier = verifier

    def guess(self, logits: Tensor, ranks: int, uniforms: Uniforms) -> Guesses:
        """Draws from the draft at the temperature."""
        drafts = [softmax(row, self._verifier.temperature) for row in logits.numpy()]
        numbers = iter(uniforms(len(drafts) * ranks).tolist())
        tokens = [
            self.draw_guesses(draft, [next(numbers) for _ in range(ranks)]) for draft in drafts
        ]
        likely = [likeliest(draft.copy(), 1.0, ranks)[0] for draft in drafts]
        return Guesses(likely, tokens, drafts)

    def guess_row(
        self, logits: Row, ranks: int, uniforms: Sequence[float]
    ) -> tuple[list[int], Row]:
        """Draws from the draft at the temperature."""
        draft = softmax(logits, self._verifier.temperature)
        return self.draw_guesses(draft, uniforms), draft

    def draw_guesses(self, draft: Row, uniforms: Sequence[float]) -> list[int]:
        """As many draws as there are uniforms; without replacement by repeated inversion.

        Where the draft's support is exhausted, the token is one of probability 0.
        """
        if self._verifier.with_replacement:
            return [draw(draft, uniform) for uniform in uniforms]
        tokens = [draw(draft, uniforms[0])]
        if len(uniforms) > 1:
            undrawn = draft.copy()
            for uniform in uniforms[1:]:
                undrawn[tokens[-1]] = 0
                tokens.append(draw(undrawn, uniform) if undrawn.any() else int(draft.argmin()))
        return tokens

    def uniform_count(self, ranks: int) -> int:
        """One for each guess's test, and one for the next token."""
        return ranks + 1

    def decide(
        self, logits: Tensor, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """Test the guesses in order, and draw from what remains if all of them fail."""
        return self.decide_row(logits.numpy()[0], tokens, draft, uniforms)

    def decide_row(
        self, logits: Row, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """See `decide`.

        With c the scale, S the mass and M the undrawn mass as `residual` has them.
        """
        target = target_chances(logits, self._verifier)
        rest, scale, mass = target, 0.0, 1.0
        for number, token in enumerate(tokens):
            drafted = float(draft[token])
            if drafted == 0:
                continue  # a void draw
            undrawn = self._undrawn(draft, tokens[:number])
            excess = max(float(target[token]) - scale * drafted, 0.0)
            if passes(min(1.0, excess * undrawn / (mass * drafted)), uniforms[number]):
                return number + 1, token
            scale += mass / undrawn
            rest = np.maximum(target - scale * draft, 0)
            mass = float(rest.sum())
            if mass == 0:  # rounding has left nothing of the residual
                rest = target
                break
        return 0, draw(rest, uniforms[-1])

    def _undrawn(self, draft: Row, drawn: Sequence[int]) -> float:
        """The draft's mass without these draws.

        Only sums: the difference between 1 and nearly 1 would lose all its digits.
        """
        if self._verifier.with_replacement or not drawn:
            return 1.0
        others = draft.copy()
        others[list(drawn)] = 0
        return float(others.sum())


def host_rule(verifier: Verifier) -> HostRule:
    """The verifier's rule at a single node, for models whose logits the host has.

    Raises:
        SequoiaError: see `node_rule`.
    """
    rule = node_rule(verifier)
    if isinstance(rule, MatchRule):
        return HostMatchRule(rule.verifier)
    assert isinstance(rule, ResidualRule)
    return HostResidualRule(rule.verifier)


def takes_rows(verifier: Verifier) -> bool:
    """Whether the verifier's rule decides without a tensor operation, from rows of logits."""
    if isinstance(verifier, TopK | Sequoia) and not isinstance(verifier, Traversal):
        return verifier.cuts == UNCUT
    return isinstance(verifier, Greedy)


def target_chances(logits: Row, verifier: TopK | Sequoia) -> Row:
    """The target's probabilities after a node."""
    if verifier.cuts == UNCUT:
        return softmax(logits, verifier.temperature)
    chances: Row = warp(torch.from_numpy(logits), verifier.temperature, *verifier.cuts).numpy()
    return chances


def powers(logits: Row, temperature: float = 1.0) -> tuple[Row, float]:
    """What is proportional to the probabilities, in an array of its own, and its sum."""
    largest = float(logits[logits.argmax()])
    if temperature == 1 and abs(largest) < TAME:
        weights = np.exp(logits)
        return weights, float(np.add.reduce(weights))
    shifted = logits - largest
    if temperature < LOW:
        with np.errstate(over="ignore"):  # what is far below the largest becomes 0
            shifted /= temperature
    elif temperature != 1:
        shifted /= temperature
    np.exp(shifted, out=shifted)
    return shifted, float(np.add.reduce(shifted))


def softmax(logits: Row, temperature: float = 1.0) -> Row:
    """Probabilities, in an array of their own."""
    chances, total = powers(logits, temperature)
    chances /= total
    return chances


def likely_guesses(rows: Iterable[Row], ranks: int) -> tuple[list[list[float]], list[list[int]]]:
    """The `ranks` largest probabilities, in order, and their tokens, after each row of logits."""
    guesses = [likeliest(*powers(row), ranks) for row in rows]
    return [values for values, _ in guesses], [tokens for _, tokens in guesses]


def likeliest(weights: Row, total: float, count: int) -> tuple[list[float], list[int]]:
    """The `count` largest probabilities, in order, and their tokens.

    Args:
        weights: of all tokens; overwritten.
        total: their sum.
    """
    values, tokens = [], []
    for _ in range(count):
        token = int(weights.argmax())
        tokens.append(token)
        values.append(float(weights[token]) / total)
        weights[token] = -1  # so that the next one is found
    return values, tokens


def most_likely(logits: Row, count: int) -> list[int]:
    """The tokens of the `count` largest logits, in order; it may overwrite these."""
    if count > FEW:
        largest = np.argpartition(logits, -count)[-count:]
        return [int(token) for token in largest[np.argsort(-logits[largest], kind="stable")]]
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        logits[tokens[-1]] = -np.inf
        tokens.append(int(logits.argmax()))
    return tokens


def draw(weights: Row, uniform: float) -> int:
    """One draw from weights, which need not be normalised.

    By inversion of the cumulative sum, in float64 so that rounding loses no token's share: first of
    the blocks' sums, then of one block, in a tenth of the time that all of it takes.
    """
    sums = np.add.reduceat(weights, block_starts(len(weights)), dtype=np.float64).cumsum()
    point = uniform * sums[-1]
    block = min(int(sums.searchsorted(point, side="right")), len(sums) - 1)
    if block:
        point -= sums[block - 1]
    first = block * BLOCK
    inside = weights[first : first + BLOCK].cumsum(dtype=np.float64)
    last = int(inside.searchsorted(inside[-1]))  # behind it all weights are 0
    return first + min(int(inside.searchsorted(point, side="right")), last)


@cache
def block_starts(count: int) -> NDArray[np.intp]:
    """Where the blocks of so many weights begin."""
    return np.arange(0, count, BLOCK)


def passes(chance: float, uniform: float) -> bool:
    """Whether a test that passes with this chance does."""
    return uniform < chance
