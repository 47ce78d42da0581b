"""The speculative step as one function of tensors.

Draft a tree, score it in one target forward pass, verify, keep the accepted path. No branch
depends on a tensor's value and nothing is read back: shapes follow from the tree. Knows nothing
of prompts, text, or when to stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.drafters import Committed, Drafter, State, TreeDrafter
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.model import Caches, Model
from sequoia_opt.engine.verify import TreeIndex, Verdict, Verifier, indices
from sequoia_opt.plan.tree import TokenTree

TOLD = 3  # numbers that a step returns besides its tokens of the tree


class TensorStep:
    """A step that passes the text's state on in tensors.

    Attributes:
        mode: makes the context that it runs in.
    """

    mode = torch.inference_mode

    def started(self, state: State) -> State:
        """The state of a text before its first step, as a step returns it."""
        return state


class Step(TensorStep):
    """One step of speculative decoding with a fixed tree.

    Attributes:
        tree: the token tree.
        uniform_count: random numbers in [0, 1) that a step takes.
    """

    def __init__(
        self,
        target: Model,
        drafter: Drafter,
        tree: TokenTree,
        verifier: Verifier,
        world: World = ALONE,
        processor: LogitsProcessor | None = None,
    ) -> None:
        """Prepare a step.

        Args:
            world: the processes that the target is spread over.
            processor: processes logits before tokens are chosen.
        """
        self.tree, self.verifier, self.processor = tree, verifier, processor
        self.device, self.vocabulary = target.device, target.vocabulary
        self._world = world
        self.index = TreeIndex(tree, self.device)
        self._target_pass = target.tree_pass(tree)
        self._drafter = drafter.on(tree, self.index, verifier, processor) if tree.size > 1 else None
        self._hidden = None if self._drafter is None else drafter.hidden
        self._no_logits = torch.zeros(0, self.vocabulary, device=self.device)
        self._places = torch.arange(tree.depth + 1, device=self.device)
        self._outcomes = _Outcomes.of(tree, self.device)
        self.uniform_count = verifier.uniform_count(self.index, self.vocabulary)

    @property
    def drafter(self) -> TreeDrafter | None:
        """The drafter, prepared for the tree; None in plain decoding."""
        return self._drafter

    def __call__(
        self, caches: Caches, state: State, bound: int, uniforms: Tensor
    ) -> tuple[Tensor, State]:
        """Run one step.

        Args:
            caches: the text's.
            state: where the text stands.
            bound: at least `state.length`, known without asking the device: attention reads this
                many slots and the tree's.
            uniforms: [uniform_count], in [0, 1).

        Returns:
            [depth + 3]: the step's tokens, the last accepted node, and how many of the tokens
            count; and where the text stands now.
        """
        tokens, draft_logits = self._draft(caches, state, bound, uniforms)
        tokens = self._world.agree(tokens)
        target_logits = self._target_pass.score(caches.target, tokens, state.length, bound)
        hidden = None if self._hidden is None else self._hidden.last()[0]
        if self.processor is not None and state.seen is not None:
            target_logits = self.processor.apply_to_tree(
                target_logits, state.seen, tokens, self.index.ancestors, state.counts
            )
        verdict = self.verifier.verify(self.index, tokens, target_logits, draft_logits, uniforms)
        verdict = Verdict(self._world.agree(verdict.last), self._world.agree(verdict.next))
        if self._drafter is not None:
            self._target_pass.accept(caches.target, state.length, verdict.last)
            self._drafter.accept(caches.draft, state.length, verdict.last)
        return self._after(state, tokens, verdict, hidden)

    def _draft(
        self, caches: Caches, state: State, bound: int, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nodes' tokens [size], and the draft's logits in the verifier's order."""
        if self._drafter is None:
            return state.recent[1:], self._no_logits
        return self._drafter.draft(caches.draft, state, bound, uniforms)

    def _after(
        self, state: State, tokens: Tensor, verdict: Verdict, hidden: Tensor | None
    ) -> tuple[Tensor, State]:
        """What a step returns once verification has decided; see `__call__`.

        Args:
            hidden: [size, width], the target's hidden states at each node, if the drafter reads
                them.
        """
        known = torch.cat([tokens, verdict.next])
        if self._drafter is None:
            emitted, recent, count = verdict.next, known, self._outcomes.counts
        else:
            outcome = self._outcomes.tokens.index_select(0, verdict.last)[0]
            emitted, recent = known.take(outcome).split([len(outcome) - 2, 2])
            count = self._outcomes.counts.gather(0, verdict.last)
        # Behind the tokens that count, the last of them is repeated.
        seen = None if state.seen is None else state.seen.index_fill(0, emitted, True)
        counts = None
        if state.counts is not None:
            counted = (self._places < count).to(state.counts.dtype)
            counts = state.counts.index_add(0, emitted, counted)
        told = torch.cat([emitted, verdict.last, count])
        committed = None
        if hidden is not None:
            path = self._outcomes.paths.index_select(0, verdict.last)[0]
            committed = Committed(emitted, hidden.index_select(0, path), count)
        return told, State(state.length + count, recent, seen, counts, committed)


@dataclass(frozen=True)
class _Outcomes:
    """What a step commits, for each node that may turn out the last accepted one.

    Attributes:
        tokens: [size, depth + 3], which of the nodes' tokens, and of the one that follows them
            (index `size`), the step commits; then the two that were committed last.
        counts: [size], how many of the committed tokens count.
        paths: [size, depth + 1], the node before each of these tokens; behind them, the last one.
    """

    tokens: Tensor
    counts: Tensor
    paths: Tensor

    @classmethod
    def of(cls, tree: TokenTree, device: torch.device) -> _Outcomes:
        """The outcomes of a tree."""
        rows, paths = [], []
        for node in range(tree.size):
            path = np.flatnonzero(tree.ancestor_mask[node])[1:].tolist()
            behind = tree.depth - len(path)
            rows.append([*path, *[tree.size] * (behind + 1), node, tree.size])
            paths.append([0, *path, *[node] * behind])
        counts = indices(tree.depths + 1, device)
        return cls(indices(rows, device), counts, indices(paths, device))
