"""A transformers model, its caches and its forward pass.

Knows how to run any dense decoder-only transformers model on given tokens, positions and slots,
and how to fill a cache with a prompt. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.cpu import leave_one_processor_free
from sequoia_opt.engine.devices import dtype_name
from sequoia_opt.engine.torch.agreement import (
    CHECKED_TOKENS,
    LibraryLogits,
    check_agreement,
)
from sequoia_opt.engine.torch.attention import (
    OPAQUE_ATTENTION,
    TREE_ATTENTION,
    Attend,
    KVCache,
    Masks,
    MaskTable,
    places,
)
from sequoia_opt.engine.torch.cache_pool import CachePool
from sequoia_opt.engine.torch.causal_masks import CausalMasks
from sequoia_opt.engine.torch.compile import (
    Forward,
    Output,
    compile_and_check,
    compiled_for_device,
)
from sequoia_opt.engine.torch.growing_passes import Record, TorchGrowingPasses
from sequoia_opt.engine.torch.hidden_states import HiddenStates, KeptStates
from sequoia_opt.engine.torch.layer_stream import LayerStream
from sequoia_opt.engine.torch.layer_weights import decoder_layers
from sequoia_opt.engine.torch.likeliest import LikeliestForward, compile_likeliest
from sequoia_opt.engine.torch.memory import check_fits
from sequoia_opt.engine.torch.onednn_linear import graph_sizes, pack, pack_for_graphs, unpack
from sequoia_opt.engine.torch.support import (
    activation_dtype,
    check_layer_types,
    fix_rope,
    probe,
    usable_positions,
)
from sequoia_opt.engine.torch.tree_passes import TorchLevelPasses, TorchTreePass, chain_pass
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import TokenTree

PREFILL_CHUNK = 512  # tokens of a prompt in one forward pass, where all weights stay
LOGIT_COPIES = 4  # of a step's logits, in float32: themselves, warped, sorted, the residual


class Runner:
    """A model and its forward pass; see `Model`.

    Attributes:
        model: the transformers model, its attention set to this program's, its weights packed.
        layers: what its attention layers store.
        stream: what brings in the layers that do not stay on the device, if there are such.
        record: records passes over trees that grow, where steps are recorded.
        likeliest: the forward pass that ends with the likeliest tokens, once it is compiled.
        kept: the hidden states that forward passes keep.
    """

    def __init__(
        self, model: torch.nn.Module, name: str, stream: LayerStream | None = None
    ) -> None:
        """Take over a loaded model.

        Raises:
            SequoiaError: its architecture cannot be run on trees.
        """
        self.model = model.eval().requires_grad_(False)
        self.name, self.stream = name, stream
        self.record: Record | None = None
        config = model.config.get_text_config()  # type: ignore[union-attr, operator]
        self.vocabulary = int(config.vocab_size)
        self.parameters = sum(p.numel() for p in model.parameters())  # packing removes some
        self.positions, self.ends = usable_positions(config)
        fix_rope(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, activation_dtype(model)
        self.number_type = dtype_name(self.dtype)
        self._native: str = config._attn_implementation
        check_layer_types(self.model, name)
        library = LibraryLogits(self.model, name, self.positions, self.vocabulary)
        library.compute_first()
        self.layers = probe(self.model, name, self.positions)
        library.compute_last()
        self._attention = TREE_ATTENTION
        self.model.set_attn_implementation(self._attention)  # type: ignore[operator]
        self._pool = CachePool(self.layers, self.dtype, self.device, name)
        # With streamed layers a table's memory would count, and making it costs little.
        self._causal = CausalMasks(self.layers, self.dtype, self.device, keep=stream is None)
        self.compiled = False
        self._summed: int | None = None  # see `summed_rows`; None before the first compilation
        self._graphs: dict[tuple[int, ...], Forward] = {}
        self.likeliest: LikeliestForward | None = None
        self._hidden_states: HiddenStates | None = None
        self.kept = KeptStates()
        self._pack()
        check_agreement(self, library)

    def _pack(self) -> None:
        """Lay the weights out for this machine, unless each forward pass reads them again."""
        if self.stream is None:
            pack(self.model, self._summed or 0)

    @property
    def streamed_layers(self) -> int:
        """See `Model`."""
        return 0 if self.stream is None else len(self.stream.streamed)

    @property
    def moved_bytes(self) -> int:
        """See `Model`."""
        return 0 if self.stream is None else self.stream.moved_bytes

    @property
    def generation_config(self) -> Any:
        """See `Model`."""
        return getattr(self.model, "generation_config", None)

    @torch.inference_mode()
    def compile(self, batch: int = 1) -> None:
        """Compile the forward passes of a step from now on; takes seconds to minutes.

        Args:
            batch: 1 for graphs of one text, any larger number for graphs of several.

        Raises:
            SequoiaError: the model cannot be compiled, or its graphs compute something else.
        """
        if self.stream is not None:
            raise SequoiaError(
                f"{self.name}: a model whose layers are streamed cannot be compiled; compile the "
                "draft alone"
            )
        if self._summed is None and self.device_compiles_whole:
            self._summed = pack_for_graphs(self.model)  # decided once: the graphs rely on it
        with self._some_text(batch) as (cache, length), self._collecting():
            forward = self._compiled_forward()
            for count in self.graph_sizes if batch == 1 else (1, 2):
                compile_and_check(self, forward, cache, count, length)
        self.compiled = True

    @contextmanager
    def _some_text(self, batch: int) -> Iterator[tuple[KVCache, int]]:
        """A cache with tokens of some text, to compile with, and how many it has."""
        length = min(CHECKED_TOKENS, self.positions - 2)
        # More slots than are read, as always.
        cache = self.reserve(2 * (length + max(self.graph_sizes)), batch)
        try:
            text = torch.arange(length, device=self.device)[None] % self.vocabulary
            self.extend(cache, text.expand(batch, -1), 0)
            yield cache, length
        finally:
            self.release(cache)

    @property
    def graph_sizes(self) -> Sequence[int]:
        """Numbers of tokens that together compile all graphs of one text."""
        return graph_sizes(self._summed or 0)

    @property
    def device_compiles_whole(self) -> bool:
        """Whether the model is compiled as one graph and not layer by layer; see compile.py."""
        return self.device.type == "cpu"

    def _compiled_forward(self) -> Forward:
        """The forward pass, compiled as suits the device, with the hidden states that are kept."""
        hidden_layers = self.kept.layers
        if hidden_layers not in self._graphs:
            if not self.device_compiles_whole:
                self._attention = OPAQUE_ATTENTION
            self._graphs[hidden_layers] = compiled_for_device(
                self.model,
                self.positions - 1,
                self.device_compiles_whole,
                self.graph_sizes,
                hidden_layers,
                self._hidden_states,
            )
        return self._graphs[hidden_layers]

    @contextmanager
    def native(self) -> Iterator[torch.nn.Module]:
        """The model as transformers loads and runs it, to compare with."""
        self.model.set_attn_implementation(self._native)  # type: ignore[operator]
        unpack(self.model)
        try:
            yield self.model
        finally:
            self._pack()
            self.model.set_attn_implementation(self._attention)  # type: ignore[operator]

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> KVCache:
        """See `Model`; a cache here takes a tree of any number of branches."""
        return self._pool.reserve(capacity, batch)

    def release(self, cache: KVCache) -> None:
        """Give a cache back, for the next caller that needs one."""
        self._pool.release(cache)

    def mask_table(
        self,
        attends: np.ndarray,
        query_depths: list[int],
        depths: list[int],
        forwards: list[int] | None = None,
    ) -> MaskTable:
        """A mask table for this model; see MaskTable."""
        model = self.layers, self.dtype, self.device
        return MaskTable(attends, query_depths, depths, *model, forwards)

    def places(self, cache: KVCache, length: Tensor, used: int) -> Tensor:
        """Columns in a mask table of the first slots, `used` at least, for a tree at `length`."""
        return places(length, self.read_slots(cache, used))

    def read_slots(self, cache: KVCache, used: int) -> Tensor:
        """The slots that a forward pass reads if it needs the first `used`."""
        return cache.read_slots(used)

    def tree_pass(self, tree: TokenTree) -> TorchTreePass:
        """See `Model`."""
        return TorchTreePass(self, tree)

    def level_passes(self, tree: TokenTree) -> TorchLevelPasses:
        """See `Model`."""
        return TorchLevelPasses(self, tree)

    @torch.inference_mode()
    def growing_passes(
        self, nodes: int, branches: int, likeliest: bool = False
    ) -> TorchGrowingPasses:
        """See `Model`."""
        if likeliest and self.compiled and self.device_compiles_whole and self.likeliest is None:
            with self._some_text(batch=1) as (cache, length):
                self.likeliest = compile_likeliest(self, cache, length)
        return TorchGrowingPasses(self, nodes, self.record)

    def forward(
        self,
        cache: KVCache,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
        keep: int,
    ) -> Tensor:
        """The forward pass of a step.

        Args:
            cache: the cache to read from and write to.
            tokens: [batch, tokens].
            positions: [batch or 1, tokens]; past the model's last they are cut to it.
            slots: [tokens], where keys and values go, the same for every text.
            masks: what each token attends to, as wide as the slots that are read.
            keep: how many of the last tokens' logits to return; 0 for all.

        Returns:
            Logits [batch, keep or tokens, vocabulary].
        """
        return self._kept_of(self._forward, cache, tokens, positions, slots, masks, keep)

    def keep_hidden(self, layers: Sequence[int]) -> KeptStates:
        """Keep the hidden states of these layers in each forward pass from now on.

        Args:
            layers: see `HiddenStates.states`; none to keep nothing.
        """
        if self._hidden_states is None:
            self._hidden_states = HiddenStates(list(decoder_layers(self.model)[1]))
        size = int(self.model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
        self.kept = KeptStates(tuple(layers), size)
        return self.kept

    def _collecting(self) -> AbstractContextManager[None]:
        """The context in which forward passes leave the hidden states that are kept."""
        if self._hidden_states is None:
            return nullcontext()
        return self._hidden_states.collect(self.kept.layers)

    def _kept_of(self, run: Callable[..., Output], *arguments: Any) -> Tensor:
        """The logits of a forward pass, whose hidden states are kept."""
        with self._collecting():
            logits, self.kept.states = run(*arguments)
        return logits

    def _forward(
        self,
        cache: KVCache,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
        keep: int,
    ) -> Output:
        """What `forward` computes, compiled or eagerly, and the hidden states that are kept."""
        if not self._graphs or not self.compiled:
            # A prompt's many tokens need all processors; a step's few are computed while layers
            # are read.
            reading = self.stream is not None and self.stream.reads
            with leave_one_processor_free() if reading else nullcontext():
                return self.eager(cache, tokens, positions, slots, masks, keep)
        logits, hidden = self._compiled_forward()(tokens, positions, slots, masks, cache)
        return logits[:, -keep:], hidden

    def eager(
        self,
        cache: KVCache,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
        keep: int,
    ) -> Output:
        """What `_forward` computes, for any number of tokens."""
        output = self.model(
            input_ids=tokens,
            position_ids=positions.clamp(max=self.positions - 1),
            logits_to_keep=keep,
            **Attend(cache, slots, masks).arguments(),
        )
        states = {} if self._hidden_states is None else self._hidden_states.states
        return output.logits, tuple(states[layer] for layer in self.kept.layers)

    def read(
        self,
        cache: KVCache,
        tokens: Tensor,
        pad: Tensor | None = None,
        keep: int = 1,
        chunk: int | None = None,
        held: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """Put a text into a cache, in chunks of bounded memory.

        Args:
            tokens: [batch, count], put into the first slots that are not held.
            pad: [batch], how many of each text's first slots are padding.
            keep: how many of each chunk's last tokens' logits to return; 0 for all.
            chunk: tokens of one forward pass; by default as many as memory is sure to hold.
            held: tokens before these that the cache holds already.

        Yields:
            For each chunk: the index of its first token in `tokens`, and its logits.
        """
        chunk = chunk or (PREFILL_CHUNK if self.stream is None else self.stream.chunk)
        for start in range(0, tokens.shape[1], chunk):
            part = tokens[:, start : start + chunk]
            yield start, self.extend(cache, part, held + start, pad, keep)

    def prefill(
        self, cache: KVCache, tokens: Tensor, pad: Tensor | None = None, held: int = 0
    ) -> Tensor:
        """Put prompts [batch, count] into a cache; logits [batch, vocabulary] after them."""
        *_, (_, logits) = self.read(cache, tokens, pad, held=held)
        return logits[:, -1]

    def extend(
        self, cache: KVCache, tokens: Tensor, length: int, pad: Tensor | None = None, keep: int = 1
    ) -> Tensor:
        """One forward pass over tokens [batch, count] that follow `length` cached ones, in order.

        Returns:
            Logits [batch, keep or count, vocabulary].
        """
        count = tokens.shape[1]
        used = length + count
        slots = cache.slots[length:used]
        masks = self._causal.masks(self.read_slots(cache, used), length, count, pad)
        positions = slots[None] if pad is None else (slots - pad[:, None]).clamp(min=0)
        return self._kept_of(self.eager, cache, tokens, positions, slots, masks, keep)

    def pass_to_time(
        self, cache: KVCache, context: int, count: int, bound: int
    ) -> Callable[[], object]:
        """See `Model`."""
        return chain_pass(self, cache, context, count, bound)

    def check_logits_fit(self, count: int, batch: int) -> None:
        """See `Model`."""
        logit_bytes = self.dtype.itemsize + LOGIT_COPIES * torch.float32.itemsize
        check_fits(
            batch * count * self.vocabulary * logit_bytes,
            self.device,
            f"logits of {batch} x {count} tokens of {self.name}",
            "measure fewer --tokens, or free memory",
        )
