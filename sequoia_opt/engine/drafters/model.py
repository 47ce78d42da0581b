"""A draft model as drafter: one forward pass for each level of the tree.

It evaluates internal nodes only. Its cache lacks at most one token besides the root, an accepted
leaf; so its first pass always takes the last two tokens, the elder of which may be evaluated
twice. Knows nothing of caches: the engine's `LevelPasses` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.base import State
from sequoia_opt.engine.drafters.levels import Levels
from sequoia_opt.engine.drafters.model_guesses import ModelGuesses, matches_on_host
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.model import GrowingPasses, Likeliest, Model
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.verify import NodeRule, TreeIndex, Verifier, likely_guesses
from sequoia_opt.plan.draft_passes import PER_LEVEL
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree


class ModelDrafter:
    """A draft model; see `Drafter`.

    Attributes:
        model: the draft model.
        vocabulary: the target's, which its logits are cut or padded to.
    """

    hidden = None
    passes = PER_LEVEL

    def __init__(self, model: Model, vocabulary: int) -> None:
        self.about: dict[str, Any] = {}
        self.model, self.vocabulary = model, vocabulary
        self.positions = model.positions
        self.width = min(model.vocabulary, vocabulary)

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> Any:
        """See `Drafter`."""
        return self.model.reserve(capacity, batch, branches)

    def release(self, cache: Any) -> None:
        """See `Drafter`."""
        self.model.release(cache)

    def prefill(
        self,
        cache: Any,
        tokens: Tensor,
        pad: Tensor | None = None,
        held: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """See `Drafter`."""
        return self._fitted(self.model.prefill(cache, self._known(tokens), pad, held))

    def extend(
        self,
        cache: Any,
        tokens: Tensor,
        length: int,
        pad: Tensor | None = None,
        before: Tensor | None = None,
        runs: Tensor | None = None,
    ) -> Tensor:
        """See `Drafter`."""
        return self._fitted(self.model.extend(cache, self._known(tokens), length, pad))

    def read(
        self,
        cache: Any,
        tokens: Tensor,
        chunk: int,
        before: Iterator[Tensor | None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """See `Drafter`."""
        for start, logits in self.model.read(cache, self._known(tokens), keep=0, chunk=chunk):
            yield start, self._fitted(logits)

    def on(
        self,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> ModelTreeDrafter:
        """See `Drafter`."""
        return ModelTreeDrafter(self, tree, index, verifier, processor)

    def growing_passes(self, nodes: int, branches: int, likeliest: bool = False) -> GrowingPasses:
        """See `Drafter`."""
        if self.model.vocabulary == self.vocabulary:
            return self.model.growing_passes(nodes, branches, likeliest)
        passes = self.model.growing_passes(nodes, branches)
        return _FittedPasses(passes, self.model.vocabulary, self.vocabulary)

    def guess_source(
        self, policy: Policy, rule: NodeRule, world: World, device: torch.device
    ) -> ModelGuesses:
        """See `Drafter`."""
        passes = self.growing_passes(
            policy.most_drafted, policy.most_drafted_leaves, likeliest=matches_on_host(rule)
        )
        return ModelGuesses(self, passes, policy, rule, world, device)

    def _known(self, tokens: Tensor) -> Tensor:
        """Tokens that the draft's embedding table has."""
        if self.model.vocabulary < self.vocabulary:
            return tokens.clamp(max=self.model.vocabulary - 1)
        return tokens

    def _fitted(self, logits: Tensor) -> Tensor:
        """Logits over the target's vocabulary, at least float32."""
        return fit_vocabulary(at_least_float32(logits), self.vocabulary)


class _FittedPasses:
    """Forward passes of a draft whose vocabulary has another size than the target's."""

    def __init__(self, passes: GrowingPasses, known: int, vocabulary: int) -> None:
        self._passes, self._last, self._vocabulary = passes, known - 1, vocabulary
        self.begin, self.accept = passes.begin, passes.accept

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """See `GrowingPasses`."""
        known = [min(token, self._last) for token in tokens]
        return fit_vocabulary(self._passes.run(known, parents, rows), self._vocabulary)

    def likeliest(
        self, tokens: Sequence[int], parents: Sequence[int], rows: int, ranks: int
    ) -> Likeliest:
        """See `GrowingPasses`."""
        return Likeliest(*likely_guesses(self.run(tokens, parents, rows).numpy(), ranks))


class ModelTreeDrafter:
    """A draft model prepared for one tree; see `TreeDrafter`."""

    def __init__(
        self,
        drafter: ModelDrafter,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> None:
        self._drafter = drafter
        self._passes = drafter.model.level_passes(tree)
        self._levels = Levels(
            tree, index, verifier, processor, drafter.vocabulary, drafter.model.device
        )

    @property
    def drafter(self) -> ModelDrafter:
        """The draft model."""
        return self._drafter

    def draft(
        self, cache: Any, state: State, bound: int, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `TreeDrafter`."""
        passes = self._passes.begin(cache, state.length, bound)
        runs = [partial(self._run, cache, level_pass) for level_pass in passes]
        return self._levels.draft(state, state.recent, runs, uniforms)

    def accept(self, cache: Any, length: Tensor, last: Tensor) -> None:
        """See `TreeDrafter`."""
        self._passes.accept(cache, length, last)

    def _run(self, cache: Any, level_pass: Any, tokens: Tensor) -> Tensor:
        """The logits [nodes, target vocabulary] of one level."""
        known = self._drafter._known(tokens)
        return self._drafter._fitted(self._passes.run(cache, level_pass, known, keep=False))


def fit_vocabulary(logits: Tensor, vocabulary: int) -> Tensor:
    """Cut or pad the draft's logits [..., its vocabulary] to the target's: models of one
    tokenizer may round their embedding tables up differently."""
    missing = vocabulary - logits.shape[-1]
    if missing == 0:
        return logits
    if missing < 0:
        return logits[..., :vocabulary]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
