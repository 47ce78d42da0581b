"""Records what a draft model or a head says at each position of a continuation.

At each position it grows the tree that `Recording` describes: behind the text's token, level by
level, the slots of `slots_of`. The trees of several positions grow in the same forward passes,
each behind its own token of the text. Adaptive plans are found with it. Knows forward passes and
draws. Knows nothing of policies or of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia_opt.engine.drafters import HeadDrafter
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.verify import Verifier, node_rule
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.continuations import Continuation
from sequoia_opt.measure.recording_sheet import Level, Sheet
from sequoia_opt.measure.roots_together import extent, widest_passes
from sequoia_opt.measure.sample_texts import SampleText
from sequoia_opt.measure.text_followers import Follower, HeadFollower, ModelFollower
from sequoia_opt.measure.trials import Sampler
from sequoia_opt.plan.recording import Envelope, Recording, slots_of
from sequoia_opt.plan.tree import IntArray


def check_recordable(pair: Pair) -> None:
    """Refuse a pair whose drafts cannot be recorded.

    Raises:
        SequoiaError: its drafter has no model.
    """
    if pair.drafter.model is None:
        raise SequoiaError(
            f"envelope: {pair.draft_name} has no model whose probabilities could be recorded; "
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
            SequoiaError: the drafter has no model, or the cache does not fit into memory.
        """
        check_recordable(pair)
        self._drafter, self._machine = pair.drafter, pair.machine
        self._rule, self._envelope = node_rule(verifier), envelope
        self._follower: Follower
        if isinstance(pair.drafter, HeadDrafter):
            self._roots, head_passes = widest_passes(pair.drafter.growing_passes, envelope)
            self._follower = HeadFollower(pair, head_passes, verifier, longest)
        else:
            self._roots, passes = widest_passes(pair.drafter.growing_passes, envelope)
            self._follower = ModelFollower(pair, passes)
        nodes, branches = extent(envelope, self._roots)
        capacity = pair.machine.capacity_for(longest) + nodes
        try:
            self._cache = pair.drafter.reserve(capacity, 1, branches)
        except BaseException:
            self._follower.release()
            raise

    def __enter__(self) -> DraftsRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._drafter.release(self._cache)
        self._follower.release()

    @torch.inference_mode()
    def record(self, prompt: Sequence[int], text: Continuation, ranks: Sequence[int]) -> Recording:
        """Record one document.

        Args:
            prompt: its tokens, at least one.
            ranks: accepted at each position, 0 for none.
        """
        sheet = Sheet.of(text, ranks, self._envelope, self._roots)
        if ranks:
            self._follower.read(self._cache, prompt, sheet.tokens)
        for start in range(0, len(ranks), self._roots):
            self._grow(sheet, start, len(prompt))
        within = [rank if rank <= self._envelope.ranks else 0 for rank in ranks]
        starts = np.array([0, len(ranks)], np.int64)
        return Recording(
            sheet.probabilities,
            sheet.origins,
            np.array(within, np.uint8),
            starts,
            path_ranks=sheet.path_ranks if self._follower.own_ranks else None,
        )

    def _grow(self, sheet: Sheet, start: int, prompt_length: int) -> None:
        """Grow the trees of the positions from `start` on, and note what the draft says.

        Args:
            prompt_length: tokens before the first position's root.
        """
        roots = sheet.tokens[start : start + self._roots]
        self._follower.begin(self._cache, prompt_length + start, len(roots))
        logits = self._run(roots, np.arange(-1, len(roots) - 1))
        level = Level.of_roots(len(roots))
        for depth in range(self._envelope.levels):
            likely, guesses = self._said(logits, level)
            accepted = self._follower.follow(sheet, start, depth, level, logits, guesses)
            sheet.note_probabilities(start, depth, likely)
            if depth + 1 < self._envelope.levels:
                origins = _origins(likely, level, self._envelope.slots)
                sheet.origins[start : start + len(roots), depth] = origins
                parents = level.parents(origins, self._envelope.ranks)
                level, tokens = level.next(origins, likely, guesses, accepted)
                logits = self._run(tokens, parents)
        self._follower.passes.accept(range(len(roots)))

    def _run(self, tokens: IntArray, parents: IntArray) -> Tensor:
        """Logits [nodes, target's vocabulary] after new nodes, of any shape."""
        return self._follower.passes.run(
            tokens.ravel().tolist(), parents.ravel().tolist(), tokens.size
        )

    def _said(self, logits: Tensor, level: Level) -> tuple[NDArray[np.float16], IntArray]:
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


def _origins(likely: NDArray[np.float16], level: Level, slots: int) -> IntArray:
    """The origins of the next level's slots [roots, slots] of each tree."""
    rows = zip(likely.astype(np.float64), level.products, strict=True)
    return np.array([slots_of(table, products.tolist(), slots) for table, products in rows])
