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

from sequoia_opt.engine.attention import MaskTable
from sequoia_opt.engine.runner import Runner
from sequoia_opt.engine.verify import TreeIndex, Verifier, indices
from sequoia_opt.plan.tree import TokenTree


@dataclass
class State:
    """Where a generation stands.

    Attributes:
        length: [1], committed tokens in the target's buffers: the root's place.
        recent: [2], the last two committed tokens; the second is the root, in no buffer yet.
    """

    length: Tensor
    recent: Tensor


class Step:
    """One step of speculative decoding with a fixed tree.

    The draft evaluates internal nodes only, level by level, in slots of their own, counted
    breadth-first. Its cache misses at most one token besides the root, an accepted leaf; so
    its first forward always takes the last two tokens, the elder of which may be evaluated
    twice.
    """

    def __init__(self, target: Runner, draft: Runner, tree: TokenTree, verifier: Verifier) -> None:
        self.target, self.draft, self.tree, self.verifier = target, draft, tree, verifier
        device = target.device
        self._size = tree.size
        self.index = TreeIndex(tree, device)
        depths = tree.depths.tolist()
        self._target_mask = target.mask_table(tree.ancestor_mask, depths, depths)
        self._nodes = torch.arange(tree.size, device=device)
        self._depths = indices(depths, device)

        internal = [node for level in tree.internal_levels for node in level]
        self.internal_count = len(internal)
        slot = {node: i for i, node in enumerate(internal)}
        attends = tree.ancestor_mask[np.ix_(internal, internal)]
        internal_depths = [depths[node] for node in internal]
        self._levels = []
        for level in tree.internal_levels:
            rows = [slot[node] for node in level]
            seen, query_depths, slots = attends[rows], [depths[v] for v in level], rows
            if level == [0]:  # the token before the root comes along
                seen = np.vstack([np.zeros_like(seen), seen])
                query_depths, slots = [-1, 0], [-1, 0]
            counts = tree.child_counts[level]
            widest = int(counts.max())
            self._levels.append(
                _Level(
                    nodes=slice(rows[0], rows[-1] + 1),
                    ranks=widest,
                    mask=draft.mask_table(seen, query_depths, internal_depths),
                    offsets=indices(slots, device),
                    depths=indices(query_depths, device)[None],
                    children=indices(
                        [i * widest + rank for i, c in enumerate(counts) for rank in range(c)],
                        device,
                    ),
                    inner=indices(_inner_children(tree, level), device),
                )
            )
        # Rows of the drafted logits in the verifier's order, and each node's slot in the
        # draft's buffers; a leaf has none, and stays where it is.
        self._verified = indices([slot[node] for node in self.index.internal], device)
        self._slot = indices([*(slot.get(node, -1) for node in range(tree.size)), -1], device)
        self._path = torch.arange(tree.depth + 1, device=device)
        self._nothing = torch.zeros(1, dtype=torch.long, device=device)
        self.uniform_count = verifier.uniform_count(self.index, target.vocabulary)

    def __call__(self, state: State, length: int, uniforms: Tensor) -> tuple[Tensor, State]:
        """Run one step.

        Args:
            state: where the generation stands.
            length: a bound on `state.length` that the host knows: attention reads this many
                slots and the tree's.
            uniforms: [uniform_count], in [0, 1).

        Returns:
            [depth + 2]: the step's tokens, and in the last place how many of them count; and
            where the generation stands now.
        """
        tokens, draft_logits = self._draft_tree(state, length, uniforms)
        target_logits = self.score(tokens, state.length, length)
        verdict = self.verifier.verify(self.index, tokens, target_logits, draft_logits, uniforms)
        path, count = verdict.path, verdict.count
        if self._levels:
            accepted = path < self._size
            self._move(self.target, state.length, torch.where(accepted, path, self._path))
            slots = self._slot.index_select(0, path)
            self._move(self.draft, state.length, torch.where(slots >= 0, slots, self._path))
        along = torch.cat([tokens, self._nothing]).index_select(0, path)
        emitted = torch.where(
            self._path == count - 1, verdict.next, torch.cat([along[1:], self._nothing])
        )
        recent = torch.cat([tokens.gather(0, verdict.last), verdict.next])
        return torch.cat([emitted, count]), State(state.length + count, recent)

    def _draft_tree(self, state: State, length: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Guess all nodes' tokens [size]; the draft's logits in the verifier's order."""
        root = state.recent[1:]
        if not self._levels:
            return root, root.new_zeros(0, self.target.vocabulary, dtype=torch.float32)
        tokens, logits = [root], []
        inputs = state.recent
        columns = self.draft.places(state.length, length + self.internal_count)
        noise = self.verifier.noise(self.index, uniforms)
        for level in self._levels:
            found = self.evaluate(level, inputs, state.length, columns)
            guesses = self.verifier.draft(found, level.ranks, noise[level.nodes])
            children = guesses.flatten().index_select(0, level.children)
            tokens.append(children)
            logits.append(found)
            inputs = children.index_select(0, level.inner)
        if not self.verifier.reads_draft:
            return torch.cat(tokens), logits[0]
        return torch.cat(tokens), torch.cat(logits).index_select(0, self._verified)

    def evaluate(self, level: _Level, inputs: Tensor, place: Tensor, columns: Tensor) -> Tensor:
        """The draft's logits [nodes, vocabulary] at the internal nodes of one level.

        Args:
            columns: of the slots that are read, in the levels' mask tables.
        """
        nodes = level.nodes.stop - level.nodes.start
        if self.draft.vocabulary < self.target.vocabulary:
            inputs = inputs.clamp(max=self.draft.vocabulary - 1)
        logits = self.draft.forward(
            inputs[None],
            place + level.depths,
            place + level.offsets,
            level.mask.masks(columns),
            keep=1 if nodes == 1 else 0,
        )[0]
        return fit_vocabulary(at_least_float32(logits), self.target.vocabulary)

    def score(self, tokens: Tensor, place: Tensor, length: int) -> Tensor:
        """The target's logits [size, vocabulary] after each node."""
        used = length + self._size
        masks = self._target_mask.masks(self.target.places(place, used))
        logits = self.target.forward(
            tokens[None],
            (place + self._depths)[None],
            place + self._nodes,
            masks,
            keep=0,
        )[0]
        return at_least_float32(logits)

    def _move(self, runner: Runner, place: Tensor, source: Tensor) -> None:
        """Move the accepted path's keys and values to where the text goes on."""
        assert runner.cache is not None
        runner.cache.move(place + source[1:], place + self._path[1:])


@dataclass(frozen=True)
class _Level:
    """One level of drafting.

    Attributes:
        nodes: the level's internal nodes, counted breadth-first among all internal ones.
        ranks: how many children any of them has.
        mask: what its queries attend to.
        offsets: the queries' slots, relative to the root's.
        depths: [1, queries], their positions, relative to the root's.
        children: places of the level's children in the flattened guesses [nodes, ranks].
        inner: which of these children are internal nodes themselves.
    """

    nodes: slice
    ranks: int
    mask: MaskTable
    offsets: Tensor
    depths: Tensor
    children: Tensor
    inner: Tensor


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
