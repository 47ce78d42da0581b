"""Drafting and verification at a single node, in numpy: `node_rules` where the host has the logits.

A growing tree is decided about between forward passes, which leave the processor's caches full of
weights; each tensor operation then costs more than its arithmetic. Here a node takes few: a draw
is tested by two probabilities, and a residual is computed only where a draw has failed. Knows
nothing of policies, models or text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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
# Where the largest logit lies between these, float32 holds its power and that of a block, and
# those of all logits that count beside it.
LEAST, MOST = -20.0, 80.0
FEW = 16  # of the most likely tokens: so many are found faster one after the other
BLOCK = 256  # weights whose sum a draw passes over at once; few enough for float32 sums


class Chances:
    """The probabilities of a row, up to a factor.

    A draw passes over blocks of the vocabulary first, whose sums numpy has ready in a tenth of the
    time that a cumulative sum takes. It looks into sums by `bisect`, since each call of numpy
    takes some 10 µs after a forward pass.

    Attributes:
        weights: [vocabulary], proportional to the probabilities.
        total: their sum.
    """

    __slots__ = ("_sums", "total", "weights")

    def __init__(self, weights: Row) -> None:
        self.weights = weights
        sums = np.add.reduceat(weights, block_starts(len(weights)))
        self._sums: NDArray[np.float64] = np.add.accumulate(sums, dtype=np.float64)
        self.total: float = self._sums.item(-1)

    @classmethod
    def of(cls, logits: Row, temperature: float, out: Row | None = None) -> Chances:
        """A softmax; see `weigh`."""
        return cls(weigh(logits, temperature, out))

    def __getitem__(self, token: int) -> float:
        """A token's probability, which is 0 beyond the vocabulary."""
        return float(self.weights[token]) / self.total if token < len(self.weights) else 0.0

    def draw(self, uniform: float) -> int:
        """One draw, by inversion of the cumulative sum."""
        sums = self._sums
        point = uniform * self.total
        # Behind the last of these the weights are 0.
        block = min(bisect_right(sums, point), bisect_left(sums, self.total))
        before = sums.item(block - 1) if block else 0.0
        share = (point - before) / (sums.item(block) - before)
        first = block * BLOCK
        # In float64, so that rounding loses no token's share.
        inside = np.add.accumulate(self.weights[first : first + BLOCK], dtype=np.float64)
        last = inside.item(-1)
        return first + min(bisect_right(inside, share * last), bisect_left(inside, last))

    def without(self, tokens: Sequence[int]) -> Chances:
        """The same without some tokens.

        Its total is a sum again: the difference between 1 and nearly 1 would lose all its digits.
        """
        weights = self.weights.copy()
        weights[[token for token in tokens if token < len(weights)]] = 0
        return Chances(weights)

    def residual(self, draft: Chances, scale: float) -> Chances:
        """These probabilities minus `scale` times the draft's, or 0 where that is negative."""
        ours = self.weights
        rest = draft.weights[: len(ours)] * (scale * self.total / draft.total)
        np.subtract(ours[: len(rest)], rest, out=rest)
        if len(rest) < len(ours):
            rest = np.concatenate([rest, ours[len(rest) :]])
        return Chances(np.maximum(rest, 0, out=rest))


class HostRule(NodeRule, Protocol):
    """A rule that also takes one row of logits at a time, as llama.cpp has them."""

    def guess_row(
        self, logits: Row, ranks: int, uniforms: Sequence[float], out: Row
    ) -> tuple[list[int], Chances | None]:
        """A node's guesses, from the draft's logits [vocabulary], which it may overwrite.

        Args:
            out: [vocabulary], where the weights of what is returned may stand.
            uniforms: one for each guess, where guesses are drawn.

        Returns:
            Their tokens; and the distribution that they were drawn from, None where they were not
            drawn.
        """
        ...

    def decide_row(
        self, logits: Row, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """`decide`, from the target's logits [vocabulary], which it may overwrite."""
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
        self, logits: Row, ranks: int, uniforms: Sequence[float], out: Row
    ) -> tuple[list[int], None]:
        """The draft's most likely tokens."""
        return most_likely(logits, ranks), None

    def uniform_count(self, ranks: int) -> int:
        """One for the target's draw, if it draws."""
        return 0 if self._sampler is None else 1

    def choices(self, logits: Tensor) -> list[int] | None:
        """The target's choice after each node, from its logits [nodes, vocabulary]; None where it
        is drawn."""
        if self._sampler is not None:
            return None
        tokens: list[int] = logits.numpy().argmax(axis=1).tolist()
        return tokens

    def decide(
        self, logits: Tensor, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """Look for the target's choice among the guesses."""
        row = logits.numpy()[0]
        return self.decide_row(
            row if self._sampler is None else row.copy(), tokens, draft, uniforms
        )

    def decide_row(
        self, logits: Row, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """See `decide`."""
        if self._sampler is None:
            token = int(logits.argmax())
        else:
            token = target_chances(logits, self._sampler).draw(uniforms[0])
        return (tokens.index(token) + 1 if token in tokens else 0), token


class HostResidualRule:
    """`ResidualRule` in numpy."""

    draws = True

    def __init__(self, verifier: Sequoia) -> None:
        self._verifier = verifier

    def guess(self, logits: Tensor, ranks: int, uniforms: Uniforms) -> Guesses:
        """Draws from the draft at the temperature."""
        temperature = self._verifier.temperature
        drafts = [Chances.of(row, temperature) for row in logits.numpy()]
        numbers = iter(uniforms(len(drafts) * ranks).tolist())
        tokens = [
            self.draw_guesses(draft, [next(numbers) for _ in range(ranks)]) for draft in drafts
        ]
        likely = [likeliest(draft.weights.copy(), draft.total, ranks)[0] for draft in drafts]
        return Guesses(likely, tokens, drafts)

    def guess_row(
        self, logits: Row, ranks: int, uniforms: Sequence[float], out: Row
    ) -> tuple[list[int], Chances]:
        """Draws from the draft at the temperature."""
        draft = Chances.of(logits, self._verifier.temperature, out)
        return self.draw_guesses(draft, uniforms), draft

    def draw_guesses(self, draft: Chances, uniforms: Sequence[float]) -> list[int]:
        """As many draws as there are uniforms; without replacement by repeated inversion.

        Where the draft's support is exhausted, the token is one of probability 0.
        """
        if self._verifier.with_replacement:
            return [draft.draw(uniform) for uniform in uniforms]
        tokens = [draft.draw(uniforms[0])]
        for uniform in uniforms[1:]:
            undrawn = draft.without(tokens)
            tokens.append(undrawn.draw(uniform) if undrawn.total else int(draft.weights.argmin()))
        return tokens

    def uniform_count(self, ranks: int) -> int:
        """One for each guess's test, and one for the next token."""
        return ranks + 1

    def decide(
        self, logits: Tensor, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """Test the guesses in order, and draw from what remains if all of them fail."""
        return self.decide_row(logits.numpy()[0].copy(), tokens, draft, uniforms)

    def decide_row(
        self, logits: Row, tokens: Sequence[int], draft: Any, uniforms: Sequence[float]
    ) -> tuple[int, int]:
        """See `decide`.

        With c the scale, S the mass and M the undrawn mass as `residual` has them.
        """
        target = target_chances(logits, self._verifier)
        rest, scale, mass = target, 0.0, 1.0
        for number, token in enumerate(tokens):
            drafted = draft[token]
            if drafted == 0:
                continue  # a void draw
            undrawn = self._undrawn(draft, tokens[:number])
            excess = max(target[token] - scale * drafted, 0.0)
            if passes(min(1.0, excess * undrawn / (mass * drafted)), uniforms[number]):
                return number + 1, token
            scale += mass / undrawn
            rest = target.residual(draft, scale)
            mass = rest.total / target.total
            if mass == 0:  # rounding has left nothing of the residual
                rest = target
                break
        return 0, rest.draw(uniforms[-1])

    def _undrawn(self, draft: Chances, drawn: Sequence[int]) -> float:
        """The draft's mass without these draws."""
        if self._verifier.with_replacement or not drawn:
            return 1.0
        return draft.without(drawn).total / draft.total


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
    """Whether the verifier's rule decides from rows of logits, node by node."""
    return isinstance(verifier, Greedy | Sequoia) and not isinstance(verifier, Traversal)


def target_chances(logits: Row, verifier: TopK | Sequoia) -> Chances:
    """The target's probabilities after a node; it may overwrite the logits."""
    if verifier.cuts == UNCUT:
        return Chances.of(logits, verifier.temperature, logits)
    return Chances(warp(torch.from_numpy(logits), verifier.temperature, *verifier.cuts).numpy())


def weigh(logits: Row, temperature: float = 1.0, out: Row | None = None) -> Row:
    """What is proportional to the probabilities.

    Args:
        out: where to, and then the logits are overwritten; by default an array of its own.
    """
    space = None if out is None else logits
    largest = float(logits[logits.argmax()])
    if temperature >= LOW and LEAST < largest / temperature < MOST:
        if temperature == 1:
            return np.exp(logits, out=out)
        scaled = np.multiply(logits, 1 / temperature, out=space)
    else:
        scaled = np.subtract(logits, largest, out=space)
        with np.errstate(over="ignore"):  # what is far below the largest becomes 0
            scaled /= temperature
    return np.exp(scaled, out=scaled if out is None else out)


def likely_guesses(rows: Iterable[Row], ranks: int) -> tuple[list[list[float]], list[list[int]]]:
    """The `ranks` largest probabilities, in order, and their tokens, after each row of logits."""
    weights = [weigh(row) for row in rows]
    guesses = [likeliest(row, float(np.add.reduce(row)), ranks) for row in weights]
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


@cache
def block_starts(count: int) -> NDArray[np.intp]:
    """Where the blocks of so many weights begin."""
    return np.arange(0, count, BLOCK)


def passes(chance: float, uniform: float) -> bool:
    """Whether a test that passes with this chance does."""
    return uniform < chance
