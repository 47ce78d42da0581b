"""A transformers model, its caches and its forward pass.

Knows how to run any dense decoder-only transformers model on given tokens, positions and slots,
and how to fill a cache with a prompt. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from sequoia_opt.engine.torch.compile import Forward, compile_and_check, compiled_for_device
from sequoia_opt.engine.torch.growing_passes import Record, TorchGrowingPasses
from sequoia_opt.engine.torch.hidden_states import HiddenStates
from sequoia_opt.engine.torch.layer_stream import LayerStream
from sequoia_opt.engine.torch.layer_weights import decoder_layers
from sequoia_opt.engine.torch.memory import check_fits
from sequoia_opt.engine.torch.onednn_linear import pack, unpack
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
KEPT_TABLES = 8  # causal mask tables that stay prepared, one for each chunk length
# On CUDA: attention kernels copy a mask whose rows do not begin at a multiple of this.
ALIGNED_SLOTS = 8
LOGIT_COPIES = 4  # of a step's logits, in float32: themselves, warped, sorted, the residual


class Runner:
    """A model and its forward pass; see `Model`.

    Attributes:
        model: the transformers model, its attention set to this program's, its weights packed.
        layers: what its attention layers store.
        stream: what brings in the layers that do not stay on the device, if there are such.
        record: records passes over trees that grow, where steps are recorded.
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
        self._chunks: dict[int, MaskTable] = {}
        self.compiled = False
        self._graphs: dict[tuple[int, ...], Forward] = {}
        self._hidden_states: HiddenStates | None = None
        self._pack()
        check_agreement(self, library)

    def _pack(self) -> None:
        """Lay the weights out for this machine, unless each forward pass reads them again."""
        if self.stream is None:
            pack(self.model)

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
        length = min(CHECKED_TOKENS, self.positions - 2)
        cache = self.reserve(2 * length + 2, batch)  # more slots than are read, as always
        try:
            text = torch.arange(length, device=self.device)[None] % self.vocabulary
            self.extend(cache, text.expand(batch, -1), 0)
            for count in (1, 2):
                compile_and_check(self, self._compiled_forward(()), cache, count, length)
        finally:
            self.release(cache)
        self.compiled = True

    @property
    def device_compiles_whole(self) -> bool:
        """Whether the model is compiled as one graph and not layer by layer; see compile.py."""
        return self.device.type == "cpu"

    def _compiled_forward(self, hidden_layers: tuple[int, ...]) -> Forward:
        """The forward pass, compiled as suits the device, for these layers' hidden states."""
        if hidden_layers not in self._graphs:
            if not self.device_compiles_whole:
                self._attention = OPAQUE_ATTENTION
            self._graphs[hidden_layers] = compiled_for_device(
                self.model,
                self.positions - 1,
                self.device_compiles_whole,
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
        if self.device.type == "cuda":
            used = min(used + -used % ALIGNED_SLOTS, cache.capacity)
        return cache.slots[:used]

    def tree_pass(self, tree: TokenTree) -> TorchTreePass:
        """See `Model`."""
        return TorchTreePass(self, tree)

    def level_passes(self, tree: TokenTree) -> TorchLevelPasses:
        """See `Model`."""
        return TorchLevelPasses(self, tree)

    def growing_passes(self, nodes: int, branches: int) -> TorchGrowingPasses:
        """See `Model`."""
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
        return self._forward(cache, tokens, positions, slots, masks, keep, ())[0]

    def forward_with_hidden(
        self,
        cache: KVCache,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
        keep: int,
        layers: Sequence[int],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The forward pass of a step, and the hidden states of chosen layers.

        Args:
            cache, tokens, positions, slots, masks, keep: see `forward`.
            layers: whose hidden states to return: 0 for the embeddings, i for the output of the
                i-th layer, before the final norm.

        Returns:
            Logits [batch, keep or tokens, vocabulary]; for each of `layers`, hidden states
            [batch, tokens, hidden size].
        """
        chosen = tuple(layers)
        if self._hidden_states is None:
            self._hidden_states = HiddenStates(list(decoder_layers(self.model)[1]))
        with self._hidden_states.collect(chosen):
            return self._forward(cache, tokens, positions, slots, masks, keep, chosen)

    def _forward(
        self,
        cache: KVCache,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
        keep: int,
        hidden_layers: tuple[int, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What `forward_with_hidden` computes, compiled or eagerly."""
        if not self._graphs or not self.compiled:
            # A prompt's many tokens need all processors; a step's few are computed while layers
            # are read.
            reading = self.stream is not None and self.stream.reads
            with leave_one_processor_free() if reading else nullcontext():
                return self.eager(cache, tokens, positions, slots, masks, keep, hidden_layers)
        graphs = self._graphs.get(hidden_layers) or self._compiled_forward(hidden_layers)
        logits, hidden = graphs(tokens, positions, slots, masks, cache)
        return logits[:, -keep:], hidden

    def eager(
        self,
        cache: KVCache,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        masks: Masks,
        keep: int,
        layers: tuple[int, ...] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What `forward_with_hidden` computes, for any number of tokens."""
        output = self.model(
            input_ids=tokens,
            position_ids=positions.clamp(max=self.positions - 1),
            logits_to_keep=keep,
            **Attend(cache, slots, masks).arguments(),
        )
        if self._hidden_states is None:
            return output.logits, ()
        return output.logits, tuple(self._hidden_states.states[layer] for layer in layers)

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
        [masks] = self._causal(count).masks(
            self.places(cache, torch.tensor([length], device=self.device), used)
        )
        positions = slots[None]
        if pad is not None:
            positions = (positions - pad[:, None]).clamp(min=0)
            padded = self.read_slots(cache, used) < pad[:, None]
            masks = {
                window: mask.masked_fill(padded[:, None, None], torch.finfo(mask.dtype).min)
                for window, mask in masks.items()
            }
        return self.eager(cache, tokens, positions, slots, masks, keep)[0]

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

    def _causal(self, count: int) -> MaskTable:
        """The mask table of `count` tokens in order. It is kept, unless layers are streamed:
        making it costs little then, and its memory would count."""
        if count in self._chunks:
            return self._chunks[count]
        order = list(range(count))
        table = self.mask_table(np.tri(count, dtype=np.bool_), query_depths=order, depths=order)
        if self.stream is None:
            if len(self._chunks) >= KEPT_TABLES:
                self._chunks.clear()
            self._chunks[count] = table
        return table
