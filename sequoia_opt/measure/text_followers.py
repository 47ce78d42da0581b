"""Which guesses a document's text takes in the recorded trees, and what reads the text for that.

What a draft model says at a position depends on the tokens before it alone: the trial that made the
text decided about its guesses. What a head says depends on where its step began as well: behind
each root it reads its own outputs. So of each root the guesses on the text's path are looked up, or
drawn, given the text. Knows forward passes and trials. Knows nothing of how trees grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.model import Cache, GrowingPasses, HeadGrowingPasses
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.reading import StatesBefore
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.verify import Sequoia, Verifier, drawn_before
from sequoia_opt.measure.recording_sheet import Level, Sheet
from sequoia_opt.plan.tree import IntArray


class Follower(Protocol):
    """What follows a document's text for its recording.

    Attributes:
        own_ranks: whether the text's ranks at a position depend on the root; see
            `Recording.path_ranks`.
    """

    own_ranks: bool

    @property
    def passes(self) -> GrowingPasses:
        """In which the document's trees grow."""
        ...

    def read(self, cache: Cache, prompt: Sequence[int], tokens: IntArray) -> None:
        """Read a document: put its prompt into the draft's cache.

        Args:
            tokens: [positions], the text behind the prompt but for the last token.
        """
        ...

    def begin(self, cache: Cache, length: int, roots: int) -> None:
        """Begin passes with so many of the text's tokens, behind `length` others."""
        ...

    def follow(
        self, sheet: Sheet, start: int, depth: int, level: Level, logits: Tensor, guesses: IntArray
    ) -> IntArray:
        """Give the nodes on the text's path the guesses with which the text came about.

        Args:
            start: the position of the first root.
            level: of depth `depth`, from 0.
            logits: [nodes, vocabulary], the draft's after the level's nodes.
            guesses: [roots, slots, ranks], which are changed.

        Returns:
            [roots], the rank that the text takes on each root's path; 0 for none.
        """
        ...

    def release(self) -> None:
        """Give back what it has reserved."""
        ...


class ModelFollower:
    """Of a draft model; see `Follower`."""

    own_ranks = False

    def __init__(self, pair: Pair, passes: GrowingPasses) -> None:
        self._pair, self.passes = pair, passes

    def read(self, cache: Cache, prompt: Sequence[int], tokens: IntArray) -> None:
        """See `Follower`."""
        self._pair.drafter.prefill(cache, torch.tensor([list(prompt)], device=self._pair.device))

    def begin(self, cache: Cache, length: int, roots: int) -> None:
        """See `Follower`."""
        self.passes.begin(cache, length, self._pair.machine.bound_for(length))

    def follow(
        self, sheet: Sheet, start: int, depth: int, level: Level, logits: Tensor, guesses: IntArray
    ) -> IntArray:
        """See `Follower`: the guesses are those of the positions' trials."""
        first = start + depth
        roots, slots = sheet.on_text(first, level)
        guesses[roots, slots] = sheet.guesses[first + roots]
        return sheet.ranks[first : first + level.count]

    def release(self) -> None:
        """See `Follower`."""


class HeadReader:
    """Reads documents for a head on the target, and tells which of its guesses a text takes."""

    def __init__(
        self, pair: Pair, passes: HeadGrowingPasses, verifier: Verifier, longest: int
    ) -> None:
        """Reserve a cache of the target.

        Args:
            longest: tokens of the longest document.

        Raises:
            SequoiaError: it does not fit into memory.
        """
        self._pair, self.passes = pair, passes
        self._tests_draws = verifier if isinstance(verifier, Sequoia) else None
        self._cache = pair.target.reserve(pair.machine.capacity_for(longest))
        self._before = torch.empty(0)  # [tokens - 1, width], at the token before each
        self._logits: list[Tensor] = []  # the target's after each position's root

    def read(self, cache: Cache, prompt: Sequence[int], tokens: IntArray) -> None:
        """Read a document with the target, and put its prompt into the head's cache.

        Args:
            cache: the head's.
            tokens: [positions], the text behind the prompt but for the last token.
        """
        pair, states = self._pair, StatesBefore(self._pair.drafter.hidden)
        asked = torch.tensor([list(prompt)], device=pair.device)
        behind = torch.from_numpy(tokens)[None].to(pair.device)
        parts, self._logits = [], []
        for _, _ in pair.target.read(self._cache, asked):
            parts.append(next(states))
        keep = 1 if self._tests_draws is None else 0
        for _, logits in pair.target.read(self._cache, behind, keep=keep, held=len(prompt)):
            parts.append(next(states))
            self._logits += at_least_float32(logits[0])
        self._before = torch.cat([part[0] for part in parts if part is not None])
        known = self._before[None, : len(prompt) - 1]
        pair.drafter.prefill(cache, asked, before=known)

    def begin(self, cache: Cache, length: int, roots: int) -> None:
        """Begin passes with so many of the text's tokens, behind `length` others."""
        self.passes.begin(cache, length, self._pair.machine.bound_for(length))
        self.passes.take_states(self._before[length - 1 : length - 1 + roots])

    def taken(
        self, positions: IntArray, logits: Tensor, following: IntArray, guesses: IntArray
    ) -> tuple[IntArray, IntArray]:
        """The guesses with which the text came about: what is drawn, is drawn given the text.

        Args:
            positions: [nodes], of the text.
            logits: [nodes, vocabulary], the head's.
            following: [nodes], the text's next token.
            guesses: [nodes, ranks], the head's, for a verifier that tests no draws.

        Returns:
            Guesses [nodes, ranks], and which of them the text takes, [nodes]; 0 for none.
        """
        if self._tests_draws is not None and len(positions):
            drawn, ranks = drawn_before(
                self._tests_draws,
                torch.stack([self._logits[position] for position in positions]),
                logits,
                torch.from_numpy(following).to(logits.device),
                guesses.shape[1],
                self.uniforms,
            )
            return drawn.cpu().numpy(), ranks.cpu().numpy()
        hits = guesses == following[:, None]
        return guesses, np.where(hits.any(axis=1), 1 + hits.argmax(axis=1), 0)

    def uniforms(self, count: int) -> Tensor:
        """Random numbers in [0, 1) from torch's own generator."""
        return torch.rand(count, device=self._pair.device)

    def release(self) -> None:
        """Give back what it has reserved."""
        self._pair.target.release(self._cache)


class HeadFollower(HeadReader):
    """Of a head on the target; see `Follower`."""

    own_ranks = True

    def follow(
        self, sheet: Sheet, start: int, depth: int, level: Level, logits: Tensor, guesses: IntArray
    ) -> IntArray:
        """See `Follower`."""
        roots, slots = sheet.on_text(start + depth, level)
        positions = start + depth + roots
        nodes = torch.from_numpy(roots * level.numbers.shape[1] + slots).to(logits.device)
        guesses[roots, slots], taken = self.taken(
            positions, logits[nodes], sheet.following[positions], guesses[roots, slots]
        )
        accepted = np.zeros(level.count, np.int64)
        accepted[roots] = taken
        sheet.path_ranks[start : start + level.count, depth] = accepted
        return accepted
