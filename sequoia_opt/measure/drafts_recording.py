"""Records what a draft model says at each position of a continuation, for adaptive plans.

At each position it grows the tree that `Recording` describes: behind the text's token, level by
level, the slots of `slots_of`. The trees of several positions grow in the same forward passes,
each behind its own token of the text. Knows forward passes and draws. Knows nothing of policies
or of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia_opt.engine.drafters import Drafter
from sequoia_opt.engine.model import GrowingPasses
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.verify import Verifier, node_rule
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.continuations import Continuation
from sequoia_opt.measure.sample_texts import SampleText
from sequoia_opt.measure.trials import Sampler
from sequoia_opt.plan.recording import Envelope, Recording, slots_of
from sequoia_opt.plan.tree import BoolArray, IntArray
from sequoia_opt.types import FloatArray

ROOTS = (16, 8, 4, 2, 1)
"""Positions whose trees grow in the same forward passes: as many as the engine can tell apart."""


def check_recordable(pair: Pair) -> None:
    """Refuse a pair whose drafts cannot be recorded.

    Raises:
        SequoiaError: its drafter has no model, or trees cannot grow with it.
    """
    if pair.drafter.model is None:
        raise SequoiaError(
            f"envelope: {pair.draft_name} has no model whose probabilities could be recorded; "
            "estimate with --no-envelope"
        )
    if not pair.drafter.grows:
        raise SequoiaError(
            f"envelope: {pair.draft_name} drafts fixed trees only, which need no recording; "
            "estimate with --no-envelope"
        )


def record_drafts(
    pair: Pair,
    sampler: Sampler,
    texts: Sequence[SampleText],
    continuations: Sequence[Continuation],
    envelope: Envelope,
) -> Iterator[int]:
    """Record a batch of texts into their tallies, see `Tally.recording`.

    Args:
        sampler: the tallies of these texts, with their traces.

    Yields:
        The number of positions recorded since the last one.

    Raises:
        SequoiaError: see `DraftsRecorder`.
    """
    longest = max(len(text.prompt) + text.new_tokens for text in texts)
    with DraftsRecorder(pair, sampler.verifier, envelope, longest) as recorder:
        for text, tally, continuation in zip(texts, sampler.tallies, continuations, strict=True):
            tally.recording = recorder.record(text.prompt, continuation, tally.trace)
            yield len(tally.trace)


class DraftsRecorder:
    """Records drafts of one pair and one verifier.

    Use it as a context manager: its cache is given back at the end.
    """

    def __init__(self, pair: Pair, verifier: Verifier, envelope: Envelope, longest: int) -> None:
        """Reserve a cache.

        Args:
            longest: tokens of the longest text, prompt and continuation.

        Raises:
            SequoiaError: the drafter has no model, it cannot grow trees, or the cache does not fit
                into memory.
        """
        check_recordable(pair)
        self._drafter, self._machine = pair.drafter, pair.machine
        self._rule, self._envelope = node_rule(verifier), envelope
        self._roots, self._passes = _widest_passes(pair.drafter, envelope)
        nodes, branches = _extent(envelope, self._roots)
        capacity = pair.machine.capacity_for(longest) + nodes
        self._cache = pair.drafter.reserve(capacity, 1, branches)

    def __enter__(self) -> DraftsRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._drafter.release(self._cache)

    @torch.inference_mode()
    def record(self, prompt: Sequence[int], text: Continuation, ranks: Sequence[int]) -> Recording:
        """Record one document.

        Args:
            prompt: its tokens, at least one.
            ranks: accepted at each position, 0 for none.
        """
        sheet = _Sheet.of(text, ranks, self._envelope, self._roots)
        if ranks:
            tokens = torch.tensor([list(prompt)], device=self._machine.device)
            self._drafter.prefill(self._cache, tokens)
        for start in range(0, len(ranks), self._roots):
            self._grow(sheet, start, len(prompt))
        within = [rank if rank <= self._envelope.ranks else 0 for rank in ranks]
        starts = np.array([0, len(ranks)], np.int64)
        return Recording(sheet.probabilities, sheet.origins, np.array(within, np.uint8), starts)

    def _grow(self, sheet: _Sheet, start: int, prompt_length: int) -> None:
        """Grow the trees of the positions from `start` on, and note what the draft says.

        Args:
            prompt_length: tokens before the first position's root.
        """
        roots = sheet.tokens[start : start + self._roots]
        length = prompt_length + start
        self._passes.begin(self._cache, length, self._machine.bound_for(length))
        logits = self._run(roots, np.arange(-1, len(roots) - 1))
        level = _Level.of_roots(len(roots))
        for depth in range(self._envelope.levels):
            likely, guesses = self._said(logits, level)
            sheet.follow_text(start + depth, level, guesses)
            sheet.note_probabilities(start, depth, likely)
            if depth + 1 < self._envelope.levels:
                origins = _origins(likely, level, self._envelope.slots)
                sheet.origins[start : start + len(roots), depth] = origins
                parents = level.parents(origins, self._envelope.ranks)
                level, tokens = level.next(
                    origins, likely, guesses, sheet.ranks[start + depth :][: len(roots)]
                )
                logits = self._run(tokens, parents)
        self._passes.accept(range(len(roots)))

    def _run(self, tokens: IntArray, parents: IntArray) -> Tensor:
        """Logits [nodes, target's vocabulary] after new nodes, of any shape."""
        return self._passes.run(tokens.ravel().tolist(), parents.ravel().tolist(), tokens.size)

    def _said(self, logits: Tensor, level: _Level) -> tuple[NDArray[np.float16], IntArray]:
        """The probabilities of each node's likeliest tokens, and its guesses.

        Args:
            logits: [nodes, vocabulary].

        Returns:
            Two arrays [roots, slots, ranks].
        """
        guesses = self._rule.guess(logits, self._envelope.ranks, self._uniforms)
        shape = (*level.numbers.shape, self._envelope.ranks)
        probabilities = guesses.probabilities.double().cpu().numpy().astype(np.float16)
        return probabilities.reshape(shape), guesses.tokens.cpu().numpy().reshape(shape)

    def _uniforms(self, count: int) -> Tensor:
        """Random numbers in [0, 1) from torch's own generator."""
        return torch.rand(count, device=self._machine.device)


@dataclass(frozen=True)
class _Sheet:
    """A document's text, and what is noted of it.

    Attributes:
        tokens: [positions], the root at each position.
        guesses: [positions, ranks], those of the position's trial.
        ranks: accepted at each position, with zeros behind the last one for all levels and roots.
        probabilities, origins: see `Recording`.
    """

    tokens: IntArray
    guesses: IntArray
    ranks: IntArray
    probabilities: NDArray[np.float16]
    origins: NDArray[np.uint8]

    @classmethod
    def of(cls, text: Continuation, ranks: Sequence[int], envelope: Envelope, roots: int) -> _Sheet:
        """An empty sheet for a text; `roots` positions are looked at together."""
        positions = len(ranks)
        return cls(
            np.array(text.tokens[:positions], np.int64),
            np.array(text.guesses, np.int64).reshape(positions, envelope.ranks),
            np.array([*ranks, *[0] * (envelope.levels + roots)], np.int64),
            np.zeros((positions, envelope.nodes, envelope.ranks), np.float16),
            np.zeros((positions, envelope.levels - 1, envelope.slots), np.uint8),
        )

    def follow_text(self, first: int, level: _Level, guesses: IntArray) -> None:
        """Give the nodes on the text's path the guesses that decided what the text is.

        Args:
            first: the position of the first root's node on that path; of the other roots, those
                that follow. Behind the text's end nothing is decided.
            guesses: [roots, slots, ranks], which are changed.
        """
        roots, slots = np.nonzero(level.on_text[: max(0, len(self.tokens) - first)])
        guesses[roots, slots] = self.guesses[first + roots]

    def note_probabilities(
        self, start: int, depth: int, probabilities: NDArray[np.float16]
    ) -> None:
        """Note a level's probabilities [roots, slots, ranks], of the roots from `start` on."""
        roots, slots, _ = probabilities.shape
        node = 1 + (depth - 1) * slots if depth else 0
        self.probabilities[start : start + roots, node : node + slots] = probabilities


@dataclass(frozen=True)
class _Level:
    """The nodes of one level of several trees, each array [roots, slots].

    Attributes:
        numbers: in the order of the forward passes.
        products: of the draft's probabilities on the path to each node.
        on_text: whether the path is the text's own.
    """

    numbers: IntArray
    products: FloatArray
    on_text: BoolArray

    @classmethod
    def of_roots(cls, count: int) -> _Level:
        """The trees' first level: a node each, one behind the other."""
        shape = (count, 1)
        return cls(np.arange(count)[:, None], np.ones(shape), np.ones(shape, np.bool_))

    def parents(self, origins: IntArray, ranks: int) -> IntArray:
        """The numbers of the next level's parents [roots, slots], see `Recording.origins`."""
        return np.take_along_axis(self.numbers, origins // ranks, axis=1)

    def next(
        self,
        origins: IntArray,
        likely: NDArray[np.float16],
        guesses: IntArray,
        accepted: IntArray,
    ) -> tuple[_Level, IntArray]:
        """The next level, and its tokens.

        Args:
            origins: [roots, slots], which guesses its nodes are.
            likely, guesses: [roots, slots of this level, ranks].
            accepted: [roots], the rank that the text accepted at this level.
        """
        parents, ranks = np.divmod(origins, likely.shape[2])
        roots = np.arange(len(origins))[:, None]
        first = int(self.numbers[-1, -1]) + 1
        level = _Level(
            np.arange(first, first + origins.size).reshape(origins.shape),
            self.products[roots, parents] * likely[roots, parents, ranks],
            self.on_text[roots, parents] & (ranks + 1 == accepted[:, None]),
        )
        return level, guesses[roots, parents, ranks]


def _extent(envelope: Envelope, roots: int) -> tuple[int, int]:
    """Nodes and leaves of the trees of several positions."""
    # One leaf more, since trees branch off inside the trunk.
    return roots * envelope.nodes, roots * envelope.leaves + 1


def _widest_passes(drafter: Drafter, envelope: Envelope) -> tuple[int, GrowingPasses]:
    """As many positions together as the engine can run, and the passes for them.

    Raises:
        SequoiaError: it cannot even run one position's tree.
    """
    for roots in ROOTS[:-1]:
        with suppress(SequoiaError):
            return roots, drafter.growing_passes(*_extent(envelope, roots))
    return ROOTS[-1], drafter.growing_passes(*_extent(envelope, ROOTS[-1]))


def _origins(likely: NDArray[np.float16], level: _Level, slots: int) -> IntArray:
    """The origins of the next level's slots [roots, slots] of each tree."""
    rows = zip(likely.astype(np.float64), level.products, strict=True)
    return np.array([slots_of(table, products.tolist(), slots) for table, products in rows])
