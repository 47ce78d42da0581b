"""The speculative step as one function of tensors.

Draft every level, one target forward, verify, move the accepted path's keys and values. No
branch depends on a tensor's value and nothing is read back: shapes follow from the tree. Knows
nothing of prompts, text, or when to stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.logits_processors import LogitRules
from sequoia_opt.engine.torch.attention import Masks
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.engine.verify import TreeIndex, Verdict, Verifier, indices
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.tree import TokenTree


@dataclass
class State:
    """Where a generation stands.

    Attributes:
        length: [1], committed tokens in the target's buffers: the root's place.
        recent: [2], the last two committed tokens; the second is the root, in no buffer yet.
        seen: [vocabulary], which tokens are in the text, where that matters.
        counts: [vocabulary], how often each token is in the new text, where that matters.
    """

    length: Tensor
    recent: Tensor
    seen: Tensor | None = None
    counts: Tensor | None = None


class Step:
    """One step of speculative decoding with a fixed tree.

    The draft evaluates internal nodes only, level by level, in slots of their own, counted
    breadth-first. Its cache misses at most one token besides the root, an accepted leaf; so
    its first forward always takes the last two tokens, the elder of which may be evaluated
    twice.
    """

    def __init__(
        self,
        target: Runner,
        draft: Runner,
        tree: TokenTree,
        verifier: Verifier,
        world: World = ALONE,
        rules: LogitRules | None = None,
    ) -> None:
        self.target, self.draft, self.tree, self.verifier = target, draft, tree, verifier
        self.rules = rules
        self._world = world
        device = target.device
        self._size = tree.size
        self.index = TreeIndex(tree, device)
        depths = tree.depths.tolist()
        self._target_mask = target.mask_table(tree.ancestor_mask, depths, depths)
        self._nodes = torch.arange(tree.size, device=device)
        self._places = torch.arange(tree.depth + 1, device=device)
        self._depths = indices(depths, device)

        internal = [node for level in tree.internal_levels for node in level]
        self._draft_size = len(internal)
        slot = {node: i for i, node in enumerate(internal)}
        attends = tree.ancestor_mask[np.ix_(internal, internal)]
        internal_depths = [depths[node] for node in internal]
        self._levels = [_Level.of(tree, level, device) for level in tree.internal_levels]
        self._widths = [level.nodes for level in self._levels]
        if internal:
            # The root's forward takes the token before it along.
            self._queries = list(draft_passes(tree))
            query_depths = [-1, *internal_depths]
            self._draft_mask = draft.mask_table(
                np.vstack([np.zeros_like(attends[:1]), attends]),
                query_depths,
                internal_depths,
                self._queries,
            )
            self._draft_depths = indices(query_depths, device)
            self._draft_slots = torch.arange(-1, len(internal), device=device)
        # Rows of the drafted logits in the verifier's order.
        self._verified = indices([slot[node] for node in self.index.internal], device)
        self._paths = _Paths.of(tree, slot, device)
        self.uniform_count = verifier.uniform_count(self.index, target.vocabulary)

    def __call__(self, state: State, length: int, uniforms: Tensor) -> tuple[Tensor, State]:
        """Run one step.

        Args:
            state: where the generation stands.
            length: a bound on `state.length` that the host knows: attention reads this many
                slots and the tree's.
            uniforms: [uniform_count], in [0, 1).

        Returns:
            [depth + 3]: the step's tokens, the last accepted node, and how many of the tokens
            count; and where the generation stands now.
        """
        tokens, draft_logits = self._draft_tree(state, length, uniforms)
        tokens = self._world.agree(tokens)
        target_logits = self.score(tokens, state.length, length)
        if self.rules is not None and state.seen is not None:
            target_logits = self.rules.apply_to_tree(
                target_logits, state.seen, tokens, self.index.needed, state.counts
            )
        verdict = self.verifier.verify(self.index, tokens, target_logits, draft_logits, uniforms)
        verdict = Verdict(self._world.agree(verdict.last), self._world.agree(verdict.next))
        if self._levels:
            self._move(state.length, verdict.last)
        told = self._paths.told.index_select(0, verdict.last)[0]
        emitted, recent = torch.cat([tokens, verdict.next]).take(told).split([len(told) - 2, 2])
        count = self._paths.counts.gather(0, verdict.last)
        told = torch.cat([emitted, verdict.last, count])
        # Past those that count the last one is repeated.
        seen = None if state.seen is None else state.seen.index_fill(0, emitted, True)
        counts = None
        if state.counts is not None:
            counted = (self._places < count).to(state.counts.dtype)
            counts = state.counts.index_add(0, emitted, counted)
        return told, State(state.length + count, recent, seen, counts)

    def _draft_tree(self, state: State, length: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Guess all nodes' tokens [size]; the draft's logits in the verifier's order."""
        root = state.recent[1:]
        if not self._levels:
            return root, root.new_zeros(0, self.target.vocabulary, dtype=torch.float32)
        tokens, logits = [root], []
        inputs, place = state.recent, state.length
        columns = self.draft.places(place, length + self._draft_size)
        noises = self.verifier.noise(self.index, uniforms).split(self._widths)
        forwards = zip(
            (place + self._draft_depths).split(self._queries),
            (place + self._draft_slots).split(self._queries),
            self._draft_mask.masks(columns),
            strict=True,
        )
        for level, noise, forward in zip(self._levels, noises, forwards, strict=True):
            found = self._evaluate(level, inputs, *forward)
            if self.rules is not None and state.seen is not None:
                # As good a guess as any, and nearer to what the target will be.
                found = self.rules.apply(found, state.seen, state.counts)
            guesses = self.verifier.draft(found, level.ranks, noise)
            children = guesses.take(level.children)
            tokens.append(children)
            logits.append(found)
            inputs = children.index_select(0, level.inner)
        if not self.verifier.reads_draft:
            return torch.cat(tokens), logits[0]
        return torch.cat(tokens), torch.cat(logits).index_select(0, self._verified)

    def _evaluate(
        self, level: _Level, inputs: Tensor, positions: Tensor, slots: Tensor, masks: Masks
    ) -> Tensor:
        """The draft's logits [nodes, vocabulary] at the internal nodes of one level."""
        if self.draft.vocabulary < self.target.vocabulary:
            inputs = inputs.clamp(max=self.draft.vocabulary - 1)
        keep = 1 if level.nodes == 1 else 0
        logits = self.draft.forward(inputs[None], positions[None], slots, masks, keep)[0]
        return fit_vocabulary(at_least_float32(logits), self.target.vocabulary)

    def score(self, tokens: Tensor, place: Tensor, length: int) -> Tensor:
        """The target's logits [size, vocabulary] after each node."""
        used = length + self._size
        [masks] = self._target_mask.masks(self.target.places(place, used))
        logits = self.target.forward(
            tokens[None],
            (place + self._depths)[None],
            place + self._nodes,
            masks,
            keep=0,
        )[0]
        return at_least_float32(logits)

    def _move(self, place: Tensor, last: Tensor) -> None:
        """Move the keys and values of the path to the node `last` to where the text goes on."""
        sources = place + self._paths.sources.index_select(0, last)[0]
        destination = place + self._paths.places
        for runner, source in zip((self.target, self.draft), sources, strict=True):
            assert runner.cache is not None
            runner.cache.move(source, destination)


@dataclass(frozen=True)
class _Level:
    """One level of drafting.

    Attributes:
        nodes: how many internal nodes it has.
        ranks: how many children any of them has.
        children: places of the level's children in the flattened guesses [nodes, ranks].
        inner: which of these children are internal nodes themselves.
    """

    nodes: int
    ranks: int
    children: Tensor
    inner: Tensor

    @classmethod
    def of(cls, tree: TokenTree, level: list[int], device: torch.device) -> _Level:
        """That of these internal nodes."""
        counts = tree.child_counts[level]
        ranks = int(counts.max())
        children = [i * ranks + rank for i, count in enumerate(counts) for rank in range(count)]
        inner = indices(_inner_children(tree, level), device)
        return cls(len(level), ranks, indices(children, device), inner)


@dataclass(frozen=True)
class _Paths:
    """What follows from each node, should it turn out the last accepted one.

    Attributes:
        sources: [size, 2, depth], where the path's keys and values lie in the target's and the
            draft's buffers, relative to the root's. The draft has none of a leaf's; that slot, and
            those past the path, are moved onto themselves.
        places: [depth], where they go.
        told: [size, depth + 3], which of the nodes' tokens, and of the next one behind them, are
            the step's; then the two that were committed last.
        counts: [size], how many of the step's count.
    """

    sources: Tensor
    places: Tensor
    told: Tensor
    counts: Tensor

    @classmethod
    def of(cls, tree: TokenTree, slot: dict[int, int], device: torch.device) -> _Paths:
        """Those of a tree.

        Args:
            slot: of each internal node in the draft's buffers.
        """
        places = list(range(1, tree.depth + 1))
        sources, told = [], []
        for node in range(tree.size):
            path = np.flatnonzero(tree.ancestor_mask[node])[1:].tolist()
            drafted = [slot.get(v, place) for v, place in zip(path, places, strict=False)]
            past = places[len(path) :]
            sources.append([path + past, drafted + past])
            told.append([*path, *[tree.size] * (len(past) + 1), node, tree.size])
        return cls(
            indices(sources, device),
            indices(places, device),
            indices(told, device),
            indices(tree.depths + 1, device),
        )


def _inner_children(tree: TokenTree, level: list[int]) -> list[int]:
    """Places among the children of `level` that have children themselves."""
    parents = set(level)
    children = [v for v in range(tree.size) if tree.parents[v] in parents]
    return [i for i, child in enumerate(children) if tree.child_counts[child]]


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32; others as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def fit_vocabulary(logits: Tensor, vocabulary: int) -> Tensor:
    """Cut or pad the draft's logits [..., its vocabulary] to the target's: models of one
    tokenizer may round their embedding tables up differently."""
    missing = vocabulary - logits.shape[-1]
    if missing == 0:
        return logits
    if missing < 0:
        return logits[..., :vocabulary]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
