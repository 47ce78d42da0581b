"""An EAGLE-3 head over preallocated caches: it reads texts, and its passes are timed.

A token's keys and values lie in the slot of the token before it, whose hidden states it is read
with: a text of n tokens takes n - 1 slots, the first token none. Knows slots, masks and positions.
Knows nothing of drafting or verifying.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.devices import dtype_name
from sequoia_opt.engine.torch.attention import (
    OPAQUE_ATTENTION,
    TREE_ATTENTION,
    Attend,
    KVCache,
    LayerShape,
    Masks,
    MaskTable,
    places,
)
from sequoia_opt.engine.torch.cache_pool import CachePool
from sequoia_opt.engine.torch.causal_masks import CausalMasks
from sequoia_opt.engine.torch.compile import (
    OPTIONS,
    check_compiled,
    compiled_as_one,
    vary_sizes,
)
from sequoia_opt.engine.torch.eagle.feedback import LONGEST_RUN, FedBack
from sequoia_opt.engine.torch.eagle.growing_passes import EagleGrowingPasses
from sequoia_opt.engine.torch.eagle.head import EagleHead
from sequoia_opt.engine.torch.eagle.passes import EagleLevelPasses
from sequoia_opt.engine.torch.memory import check_fits
from sequoia_opt.engine.torch.onednn_linear import graph_sizes, pack, pack_for_graphs
from sequoia_opt.engine.torch.support import fix_rope, rotary_positions
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.plan.tree import TokenTree

Pass = Callable[[Tensor, Tensor, Tensor, Tensor, Masks, KVCache], tuple[Tensor, Tensor]]
"""Tokens [batch, tokens], features [batch, tokens, hidden size], positions [1, tokens], slots
[tokens], masks and cache -> logits [batch, tokens, draft vocabulary], and outputs like the
features."""

READ_CHUNK = 512  # tokens of a text in one forward pass


class EagleModel:
    """A head that is ready to run; see `HeadModel` and `TimedModel`.

    Attributes:
        head: what is computed.
        token_ids: the target's token of each of the head's, [vocabulary].
        layers: what its attention layers store.
    """

    streamed_layers = 0
    moved_bytes = 0

    def __init__(self, head: EagleHead, name: str, token_ids: Tensor) -> None:
        self.head, self.name = head, name
        self.parameters = sum(weight.numel() for weight in head.parameters())
        weight = head.norm.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.number_type = dtype_name(self.dtype)
        layer: Any = head.config.layer
        self.token_ids = token_ids.to(self.device)
        self.vocabulary = len(token_ids)
        # Heads are trained on short texts and run on longer ones.
        self.positions, self.ends = rotary_positions(layer)
        fix_rope(head)
        layer._attn_implementation = TREE_ATTENTION
        shape = LayerShape(
            layer.num_attention_heads,
            layer.num_key_value_heads,
            layer.head_dim,
            layer.head_dim,
            None,
        )
        self.layers = [shape] * layer.num_hidden_layers
        self._pool = CachePool(self.layers, self.dtype, self.device, name)
        self._causal = CausalMasks(self.layers, self.dtype, self.device)
        self._fed_back: weakref.WeakKeyDictionary[KVCache, FedBack] = weakref.WeakKeyDictionary()
        self.compiled = False
        self._compiled: Pass | None = None
        self._summed = 0  # the most rows that compiled graphs sum, see `summed_rows`
        pack(head)

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> KVCache:
        """See `Model`; a cache here takes a tree of any number of branches."""
        return self._pool.reserve(capacity + LONGEST_RUN, batch)

    def release(self, cache: KVCache) -> None:
        """See `Model`."""
        self._pool.release(cache)

    def mask_table(
        self, attends: np.ndarray, depths: list[int], forwards: list[int] | None = None
    ) -> MaskTable:
        """A mask table for the head; see `MaskTable`."""
        return MaskTable(attends, depths, depths, self.layers, self.dtype, self.device, forwards)

    def forward(
        self,
        cache: KVCache,
        tokens: Tensor,
        features: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
    ) -> tuple[Tensor, Tensor]:
        """A forward pass over tokens all of whose logits are wanted.

        Args:
            tokens: [batch, tokens].
            features: [batch, tokens, hidden size].
            positions: [batch or 1, tokens].
            slots: [tokens], where keys and values go.
            masks: what each token attends to.

        Returns:
            Logits [batch, tokens, vocabulary], and outputs [batch, tokens, hidden size].
        """
        run = self._compiled if self.compiled and self._compiled else self._eager
        return run(tokens, features, positions, slots, masks, cache)

    def outputs(
        self,
        cache: KVCache,
        tokens: Tensor,
        states: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
    ) -> Tensor:
        """Outputs [batch, tokens, hidden size] of tokens that are read with hidden states.

        Args:
            states: [batch, tokens, width], the target's at the token before each.
        """
        features = self.head.project(states)
        positions = positions.clamp(max=self.positions - 1)
        return self.head(self._known(tokens), features, positions, Attend(cache, slots, masks))

    def read(
        self,
        cache: KVCache,
        tokens: Tensor,
        states: Tensor,
        first: int,
        pad: Tensor | None = None,
        keep: int = 0,
    ) -> Tensor:
        """Read a part of a text.

        Args:
            tokens: [batch, count].
            states: [batch, count, width], the target's at the token before each.
            first: the first token's number in the text, from 1; of a padded text, the column.
            pad: [batch], how many of each text's first columns are padding.
            keep: how many of the last tokens' logits to return; 0 for all.

        Returns:
            Logits [batch, keep or count, vocabulary].
        """
        parts = []
        for start in range(0, tokens.shape[1], READ_CHUNK):
            part = slice(start, start + READ_CHUNK)
            length = first - 1 + start
            parts.append(self._read_chunk(cache, tokens[:, part], states[:, part], length, pad))
        outputs = torch.cat(parts, dim=1)
        self._fed_back[cache] = FedBack(outputs[:, -1:])
        return self.head.logits(outputs[:, -keep:])

    def follow(
        self,
        cache: KVCache,
        tokens: Tensor,
        states: Tensor,
        first: int,
        runs: Tensor,
        pad: Tensor | None = None,
    ) -> Tensor:
        """Read one more token of each text; see `HeadModel`."""
        outputs, known = (
            self._read_chunk(cache, tokens, states, first - 1, pad),
            self._known(tokens),
        )
        fed_back = self._fed_back.setdefault(cache, FedBack(torch.zeros_like(outputs)))
        outputs = fed_back.follow(self, cache, known, outputs, first - 1, runs, pad)
        return self.head.logits(outputs)

    def prefill(
        self, cache: KVCache, tokens: Tensor, pad: Tensor | None = None, held: int = 0
    ) -> Tensor:
        """See `TimedModel`: without a target its hidden states are zeros."""
        width = self.head.fc.in_features
        states = torch.zeros(*tokens.shape, width, dtype=self.dtype, device=self.device)
        return self.read(cache, tokens, states, held + 1, pad, keep=1)[:, -1]

    def level_passes(self, tree: TokenTree) -> EagleLevelPasses:
        """Forward passes over a tree's internal nodes, level by level."""
        return EagleLevelPasses(self, tree)

    def growing_passes(self, nodes: int) -> EagleGrowingPasses:
        """Forward passes over trees that grow; see `HeadModel`."""
        return EagleGrowingPasses(self, nodes)

    def pass_to_time(
        self, cache: KVCache, context: int, count: int, bound: int
    ) -> Callable[[], object]:
        """See `TimedModel`: a pass over one level of a tree."""
        table = self.mask_table(np.tri(count, dtype=np.bool_), list(range(count)))
        length = torch.tensor([context], device=self.device)
        slots = length + torch.arange(count, device=self.device)
        shape = cache.batch, count
        tokens = torch.zeros(*shape, dtype=torch.long, device=self.device)
        hidden = self.head.config.layer.hidden_size
        features = torch.zeros(*shape, hidden, dtype=self.dtype, device=self.device)

        def run() -> object:
            [masks] = table.masks(places(length, cache.read_slots(bound + count)))
            return self.forward(cache, tokens, features, slots[None], slots, masks)

        return run

    def compile(self, batch: int = 1) -> None:
        """See `Model`; only the reading of a text's parts stays as it is.

        Raises:
            SequoiaError: the head cannot be compiled.
        """
        if self._compiled is None:
            self._compiled = self._made_to_compile()
        try:
            self._try_compiled(batch)
        except SequoiaError:
            raise
        except Exception as error:  # the compiler's own, of many kinds
            reason = one_line(error)[:200]
            raise SequoiaError(
                f"{self.name}: cannot be compiled ({reason}); use --no-compile"
            ) from None
        self.compiled = True

    def _made_to_compile(self) -> Pass:
        """The forward pass, compiled when it is first called."""

        def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
            return self._eager(*arguments)

        if self.device.type == "cpu":
            # The graphs rely on it. Behind the target's pass no cache has the head any more, so the
            # first of its passes reads all of it from memory.
            self._summed = pack_for_graphs(self.head, eager=("fc",), narrow=True)
            graphs: Any = compiled_as_one(forward, graph_sizes(self._summed))
            return graphs
        # Attention reads the cache of its own layer, see compile.py.
        self.head.config.layer._attn_implementation = OPAQUE_ATTENTION
        # Graphs are kept, and their number is limited, by code object: each head has its own.
        forward.__code__ = forward.__code__.replace()
        compiled: Pass = torch.compile(forward, options=OPTIONS)
        return compiled

    def check_logits_fit(self, count: int, batch: int) -> None:
        """See `Model`."""
        check_fits(
            2 * batch * count * self.vocabulary * torch.float32.itemsize,
            self.device,
            f"logits of {batch} x {count} tokens of {self.name}",
            "measure fewer --tokens, or free memory",
        )

    def _eager(
        self,
        tokens: Tensor,
        features: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
        cache: KVCache,
    ) -> tuple[Tensor, Tensor]:
        """See `Pass`."""
        positions = positions.clamp(max=self.positions - 1)
        outputs = self.head(self._known(tokens), features, positions, Attend(cache, slots, masks))
        return self.head.logits(outputs), outputs

    def _known(self, tokens: Tensor) -> Tensor:
        """Tokens that the head's embedding table has."""
        return tokens.clamp(max=self.head.embed_tokens.num_embeddings - 1)

    def _read_chunk(
        self, cache: KVCache, tokens: Tensor, states: Tensor, length: int, pad: Tensor | None
    ) -> Tensor:
        """The outputs of tokens behind `length` slots that are filled."""
        count = tokens.shape[1]
        slots = cache.slots[length : length + count]
        masks = self._causal.masks(cache.read_slots(length + count), length, count, pad)
        positions = slots[None] if pad is None else (slots - pad[:, None]).clamp(min=0)
        return self.outputs(cache, tokens, states, positions, slots, masks)

    @torch.inference_mode()
    def _try_compiled(self, batch: int) -> None:
        """Compile the graphs of each kind of number of tokens, and compare with eager logits.

        Raises:
            SequoiaError: they differ by more than rounding.
        """
        assert self._compiled is not None
        length, hidden = 8, self.head.config.layer.hidden_size
        counts = graph_sizes(self._summed) if batch == 1 else (1, 2)
        cache = self.reserve(2 * (length + max(counts)), batch)  # more than are read, as always
        try:
            for count in counts:
                table = self.mask_table(np.tri(count, dtype=np.bool_), list(range(count)))
                place = torch.tensor([length], device=self.device)
                slots = place + torch.arange(count, device=self.device)
                [masks] = table.masks(places(place, cache.read_slots(length + count)))
                tokens = slots.repeat(batch, 1) % self.vocabulary
                features = torch.linspace(-1, 1, batch * count * hidden, device=self.device)
                features = features.view(batch, count, hidden).to(self.dtype)
                arguments = (tokens, features, slots[None], slots, masks, cache)
                expected, _ = self._eager(*arguments)
                vary_sizes(tokens, slots[None], slots, masks, cache)
                if count > 1:
                    torch._dynamo.mark_dynamic(features, 1)
                if batch > 1:
                    torch._dynamo.mark_dynamic(features, 0)
                self._compiled(*arguments)
                # The first call of a graph is not as the others, see graph_calls.py.
                logits, _ = self._compiled(*arguments)
                check_compiled(self.name, self.dtype, logits[-1, -1], expected[-1, -1])
        finally:
            self.release(cache)
