"""Samples a lookup's acceptance, and records its guesses, along the target's continuations.

The target continues the prompts alone; then the index is run along each text as decoding would
run it. A guess is accepted if it is the text's next token, greedily and by `topk`. Knows texts and
matches. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.engine.drafters.lookup_index import TextIndex, behind
from sequoia_opt.engine.model import reserved
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.verify import Verifier
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.continuations import Continuation
from sequoia_opt.measure.pair_reader import PairLogits
from sequoia_opt.measure.sample_texts import SampleText
from sequoia_opt.measure.trials import Sampler, positions_to_try
from sequoia_opt.plan.recording import LOOKUP_ENVELOPE, Envelope, Recording, slots_of
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import IntArray
from sequoia_opt.plan.verifiers import DETERMINISTIC_VERIFIER
from sequoia_opt.types import FloatArray


def check_sampling(sampling: Sampling, teacher_forced: bool) -> None:
    """Refuse what cannot be sampled of a lookup.

    Raises:
        SequoiaError: the verifier tests draws, or a dataset's text is to be followed.
    """
    if sampling.temperature and sampling.verifier != DETERMINISTIC_VERIFIER:
        raise SequoiaError(
            f"verifier: found {sampling.verifier}, which tests drawn guesses, but a lookup's are "
            f"not drawn; use --verifier {DETERMINISTIC_VERIFIER}"
        )
    if teacher_forced:
        raise SequoiaError(
            "teacher-forced: a lookup is sampled along the target's own continuations; drop it"
        )


def sample_lookups(
    pair: Pair,
    drafter: LookupDrafter,
    sampler: Sampler,
    texts: Sequence[SampleText],
    width: int,
    envelope: Envelope | None,
) -> Iterator[int]:
    """Continue a batch of prompts, and tally and record the lookup's guesses.

    Args:
        sampler: the verifier, and the tallies of these texts, which are added to.
        width: ranks to offer.
        envelope: what to record; None for nothing.

    Yields:
        The number of tokens sampled, or recorded, since the last one.
    """
    continuations: list[list[int]] = [[] for _ in texts]
    yield from _continue(pair, sampler.verifier, texts, continuations)
    for text, tally, tokens in zip(texts, sampler.tallies, continuations, strict=True):
        walk = _Walk(drafter, width, envelope)
        walk.follow(text.prompt, tokens)
        contexts = [len(text.prompt) + 1 + place for place in range(len(walk.ranks))]
        tally.record(walk.chances(width), walk.ranks, contexts)
        tally.recording = walk.recording()
        if envelope is not None:
            yield len(walk.ranks)


def record_lookups(
    drafter: LookupDrafter,
    sampler: Sampler,
    texts: Sequence[SampleText],
    continuations: Sequence[Continuation],
    width: int,
) -> None:
    """Record a lookup's guesses beside a model's, in the recordings of the texts' tallies.

    Args:
        width: ranks to offer.
    """
    envelope = LOOKUP_ENVELOPE.within(width)
    for text, tally, continuation in zip(texts, sampler.tallies, continuations, strict=True):
        assert tally.recording is not None
        walk = _Walk(drafter, width, envelope)
        walk.follow(text.prompt, continuation.tokens)
        tally.recording = replace(tally.recording, lookup=walk.recording())


def _continue(
    pair: Pair,
    verifier: Verifier,
    texts: Sequence[SampleText],
    continuations: Sequence[list[int]],
) -> Iterator[int]:
    """Fill the texts' continuations with the target's own tokens, the first one the prompt's."""
    longest = max(len(text.prompt) for text in texts)
    steps = 1 + max(text.new_tokens for text in texts)
    padding = [longest - len(text.prompt) for text in texts]
    rows = [[0] * count + text.prompt for count, text in zip(padding, texts, strict=True)]
    pads = torch.tensor(padding, device=pair.device)
    target = pair.target
    with torch.inference_mode(), reserved(target, longest + steps, len(texts)) as cache:
        logits = target.prefill(cache, torch.tensor(rows, device=pair.device), pads)
        is_running = np.ones(len(texts), np.bool_)
        for step in range(steps):
            both = PairLogits(at_least_float32(logits), at_least_float32(logits))
            tokens = verifier.trial(positions_to_try(both, 1)).emit()
            emitted = tokens.cpu().numpy()
            for i in np.flatnonzero(is_running).tolist():
                continuations[i].append(int(emitted[i]))
            if step:
                yield int(is_running.sum())
            is_running &= ~np.isin(emitted, list(pair.end_tokens))
            if not is_running.any() or step + 1 == steps:
                break
            logits = target.extend(cache, tokens[:, None], longest + step, pads)[:, 0]


class _Walk:
    """A walk of the index along one text.

    Attributes:
        ranks: which guess the text's next token was at each position, 0 for none.
    """

    def __init__(self, drafter: LookupDrafter, width: int, envelope: Envelope | None) -> None:
        self._drafter, self._width, self._envelope = drafter, width, envelope
        self._index = TextIndex()
        self._trees: list[tuple[FloatArray, IntArray, IntArray]] = []
        self.ranks: list[int] = []

    def follow(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Look up at each new token but the last."""
        self._index.extend(prompt)
        for place, (token, following) in enumerate(pairwise(tokens), start=1):
            self._index.extend([token])
            context = self._index.context
            _, guesses = self._drafter.candidates(self._index, context, self._width)
            self.ranks.append(_rank(guesses, following))
            if self._envelope is not None:
                self._trees.append(
                    grown_tree(self._drafter, self._index, self._envelope, tokens[place:])
                )

    def chances(self, width: int) -> FloatArray:
        """Which rank was accepted, [positions, ranks], 1 for that one."""
        ranks = np.array(self.ranks, np.int64)
        return (ranks[:, None] == np.arange(1, width + 1)).astype(np.float64)

    def recording(self) -> Recording | None:
        """What was recorded, as far as anything was to be."""
        envelope, positions = self._envelope, len(self.ranks)
        if envelope is None:
            return None
        probabilities = np.zeros((positions, envelope.nodes, envelope.ranks), np.float16)
        origins = np.zeros((positions, envelope.levels - 1, envelope.slots), np.uint8)
        along = np.zeros((positions, envelope.levels), np.uint8)
        for position, tree in enumerate(self._trees):
            probabilities[position], origins[position], along[position] = tree
        within = [rank if rank <= envelope.ranks else 0 for rank in self.ranks]
        starts = np.array([0, positions], np.int64)
        ranks = np.array(within, np.uint8)
        return Recording(probabilities, origins, ranks, starts, path_ranks=along)


def grown_tree(
    drafter: LookupDrafter, index: TextIndex, envelope: Envelope, following: Sequence[int]
) -> tuple[FloatArray, IntArray, IntArray]:
    """The tree that is recorded at the end of an index's text, see `Recording`.

    Args:
        following: the tokens with which the text goes on.

    Returns:
        How far each guess is believed, [nodes, ranks]; the origins, [levels - 1, slots]; and the
        text's ranks on its own path, [levels].
    """
    ranks, slots = envelope.ranks, envelope.slots
    believed = np.zeros((envelope.nodes, ranks))
    origins = np.zeros((envelope.levels - 1, slots), np.int64)
    along = np.zeros(envelope.levels, np.int64)
    on_text: int | None = 0  # the text's own node of the level, if there is one
    contexts: list[bytes | None] = [index.context]  # of each of a level's nodes, as far as filled
    products, first = [1.0], 0
    for level in range(envelope.levels):
        table = believed[first : first + len(contexts)]
        first += len(contexts)
        guesses: list[list[int]] = []
        for row, context in enumerate(contexts):
            rates, tokens = (
                ([], []) if context is None else drafter.candidates(index, context, ranks)
            )
            table[row, : len(rates)] = rates
            guesses.append(tokens)
        if on_text is not None and level < len(following):
            along[level] = _rank(guesses[on_text], following[level])
        if level + 1 == envelope.levels or not any(guesses):
            break
        origins[level] = slots_of(table, products, slots)
        above, nodes = contexts, [divmod(int(origin), ranks) for origin in origins[level]]
        contexts = [
            behind(above[node] or b"", guesses[node][rank]) if rank < len(guesses[node]) else None
            for node, rank in nodes
        ]
        products = [products[node] * float(table[node, rank]) for node, rank in nodes]
        path = (on_text, int(along[level]) - 1)
        on_text = nodes.index(path) if along[level] and path in nodes else None
    return believed, origins, along


def _rank(guesses: Sequence[int], token: int) -> int:
    """Which of the guesses a token is, from 1; 0 if none."""
    return guesses.index(token) + 1 if token in guesses else 0
