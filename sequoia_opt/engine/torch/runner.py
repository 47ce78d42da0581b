"""One model's forward over its KV buffers.

Knows how to run any dense decoder-only transformers model on given tokens, positions and
slots, and how to fill its buffers with a prompt. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.torch.agreement import (
    CHECKED_TOKENS,
    LibraryLogits,
    check_agreement,
    check_layer_types,
    difference,
    keep_rope,
    probe,
    usable_positions,
)
from sequoia_opt.engine.torch.attention import (
    OPAQUE_ATTENTION,
    TREE_ATTENTION,
    Attend,
    KVCache,
    Masks,
    MaskTable,
    buffer_bytes,
    places,
)
from sequoia_opt.engine.torch.compile import Forward, compiled, compiled_by_layer, vary_sizes
from sequoia_opt.engine.torch.cpu_threads import one_left_free
from sequoia_opt.engine.torch.layer_stream import LayerStream
from sequoia_opt.engine.torch.memory import check_fits
from sequoia_opt.engine.torch.offload import decoder_layers
from sequoia_opt.engine.torch.onednn_linear import pack, unpack
from sequoia_opt.errors import SequoiaError

PREFILL_CHUNK = 512  # tokens of a prompt that are read together, where all weights stay
KEPT_TABLES = 8  # causal mask tables of that many chunk lengths stay prepared
# On CUDA: attention kernels copy a mask whose rows do not begin at a multiple of this.
ALIGNED_SLOTS = 8


class Runner:
    """A model, its KV buffers and its forward.

    Attributes:
        model: the transformers model, its attention set to this program's, its weights packed.
        parameters: how many it has.
        layers: what its attention layers store.
        vocabulary: number of logits.
        positions: the most tokens that it can take.
        ends: why no more, where that is not the configuration's own last position.
        cache: the buffers; `reserve` makes them.
        compiled: whether a step's forwards are compiled graphs; see `compile`.
        stream: what brings layers in that are not on the device, if there are such.
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
        config = model.config.get_text_config()  # type: ignore[union-attr, operator]
        self.vocabulary = int(config.vocab_size)
        self.parameters = sum(p.numel() for p in model.parameters())  # packed ones are gone
        self.positions, self.ends = usable_positions(config)
        keep_rope(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, _activation_dtype(model)
        self._native: str = config._attn_implementation
        check_layer_types(self.model, name)
        library = LibraryLogits(self.model, name, self.positions, self.vocabulary)
        library.compute_first()
        self.layers = probe(self.model, name, self.positions)
        library.compute_last()
        self._attention = TREE_ATTENTION
        self.model.set_attn_implementation(self._attention)  # type: ignore[operator]
        self.cache: KVCache | None = None
        self._slots = torch.arange(0, device=self.device)
        self._chunks: dict[int, MaskTable] = {}
        self.compiled = False
        self._graphs: Forward | None = None
        self._pack()
        check_agreement(self, library)

    def _pack(self) -> None:
        """Lay the weights out for this machine, unless they are to be read anew every time."""
        if self.stream is None:
            pack(self.model)

    @torch.inference_mode()
    def compile(self, batch: int = 1) -> None:
        """Run a step's forwards as compiled graphs from now on; takes seconds to minutes.

        Args:
            batch: of what graphs are for: one sequence, or any larger number.

        Raises:
            SequoiaError: the model cannot be compiled, or its graphs compute something else.
        """
        if self.stream is not None:
            raise SequoiaError(
                f"{self.name}: layers that are brought in as they are used cannot be compiled; "
                "compile the draft alone"
            )
        length = min(CHECKED_TOKENS, self.positions - 2)
        self.reserve(2 * length + 2, batch)  # more than are read, as always
        text = torch.arange(length, device=self.device)[None] % self.vocabulary
        self.extend(text.expand(batch, -1), 0)
        place = torch.tensor([length], device=self.device)
        self._graphs = self._graphs or self._compiled()
        for count in (1, 2):
            order = list(range(count))
            table = self.mask_table(np.tri(count, dtype=np.bool_), order, order)
            tokens = torch.arange(count, device=self.device)
            [masks] = table.masks(self.places(place, length + count))
            inputs = tokens.repeat(batch, 1)
            arguments = (inputs, (place + tokens)[None], place + tokens, masks)
            wanted = self._eager(*arguments, keep=0)
            assert self.cache is not None
            vary_sizes(*arguments, self.cache)
            try:
                found = self._graphs(*arguments, self.cache)
            except Exception as error:  # the compiler's own, of many kinds
                # After an empty line it says how to debug the compiler.
                reason = " ".join(str(error).partition("\n\n")[0].split())[:200]
                raise SequoiaError(
                    f"{self.name}: cannot be compiled ({reason}); use --no-compile"
                ) from None
            if off := difference(found[0, -1].double(), wanted[0, -1].double(), self.dtype):
                raise SequoiaError(
                    f"{self.name}: gives other logits when compiled ({off}); use --no-compile"
                )
        self.compiled = True

    @property
    def device_compiles_whole(self) -> bool:
        """Whether the model is compiled as one graph and not layer by layer; see compiling.py."""
        return self.device.type == "cpu"

    def _compiled(self) -> Forward:
        """The forward pass, to be compiled as suits the device."""
        if self.device_compiles_whole:
            return compiled(self.model, self.positions - 1)
        self._attention = OPAQUE_ATTENTION
        layers = decoder_layers(self.model)[1]
        return compiled_by_layer(self.model, list(layers), self.positions - 1)

    @contextmanager
    def native(self) -> Iterator[torch.nn.Module]:
        """The model as transformers loads and runs it, to be compared with."""
        self.model.set_attn_implementation(self._native)  # type: ignore[operator]
        unpack(self.model)
        try:
            yield self.model
        finally:
            self._pack()
            self.model.set_attn_implementation(self._attention)  # type: ignore[operator]

    def reserve(self, capacity: int, batch: int = 1) -> None:
        """Have buffers of at least `capacity` slots for `batch` sequences.

        Raises:
            SequoiaError: they do not fit into the memory that is left.
        """
        if self.cache is None or self.cache.batch != batch or self.cache.capacity < capacity:
            self.cache = None  # freed before the new one is made
            check_fits(
                buffer_bytes(self.layers, batch, capacity, self.dtype),
                self.device,
                f"buffers of {self.name} for {batch} × {capacity} tokens",
                "shorten the prompt, ask for fewer new tokens, or run fewer sequences together",
            )
            self.cache = KVCache(self.layers, batch, capacity, self.dtype, self.device)
        if len(self._slots) < capacity:
            self._slots = torch.arange(capacity, device=self.device)

    def mask_table(
        self,
        attends: np.ndarray,
        query_depths: list[int],
        depths: list[int],
        forwards: list[int] | None = None,
    ) -> MaskTable:
        """A mask table for this model; see MaskTable."""
        return MaskTable(
            attends, query_depths, depths, self.layers, self.dtype, self.device, forwards
        )

    def places(self, length: Tensor, used: int) -> Tensor:
        """Columns in a mask table of the first slots, `used` at least, for a tree at `length`."""
        return places(length, self._read_slots(used))

    def _read_slots(self, used: int) -> Tensor:
        """The slots that a forward reads if it needs the first `used`."""
        if self.device.type == "cuda":
            assert self.cache is not None
            used = min(used + -used % ALIGNED_SLOTS, self.cache.capacity)
        return self._slots[:used]

    def forward(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, keep: int
    ) -> Tensor:
        """One forward of a step.

        Args:
            tokens: [batch, tokens].
            positions: [batch or 1, tokens]; past the model's last they are cut to it.
            slots: [tokens], where keys and values go, the same for every sequence.
            masks: what each token attends to, as wide as the slots that are read.
            keep: how many of the last tokens' logits are wanted; 0 for all.

        Returns:
            Logits [batch, keep or tokens, vocabulary].
        """
        if self._graphs is None or not self.compiled:
            # A prompt's many tokens need all processors; so few are computed while layers are read.
            reading = self.stream is not None and self.stream.reads
            with one_left_free() if reading else nullcontext():
                return self._eager(tokens, positions, slots, masks, keep)
        assert self.cache is not None
        return self._graphs(tokens, positions, slots, masks, self.cache)[:, -keep:]

    def _eager(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, keep: int
    ) -> Tensor:
        """What `forward` computes, for any number of tokens."""
        assert self.cache is not None
        output = self.model(
            input_ids=tokens,
            position_ids=positions.clamp(max=self.positions - 1),
            logits_to_keep=keep,
            **Attend(self.cache, slots, masks).arguments(),
        )
        logits: Tensor = output.logits
        return logits

    def read(
        self,
        tokens: Tensor,
        pad: Tensor | None = None,
        keep: int = 1,
        chunk: int | None = None,
        held: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """Put a text into the buffers, in chunks of bounded memory.

        Args:
            tokens: [batch, count], put into the first slots that are not held.
            pad: [batch], how many of each sequence's first slots are padding.
            keep: logits wanted of each chunk's last tokens; 0 for all of its tokens.
            chunk: tokens of one forward; by default as many as memory is sure to hold.
            held: slots that hold what goes before already.

        Yields:
            For each chunk: its first token's place in `tokens`, and its logits.
        """
        chunk = chunk or (PREFILL_CHUNK if self.stream is None else self.stream.chunk)
        for start in range(0, tokens.shape[1], chunk):
            yield start, self.extend(tokens[:, start : start + chunk], held + start, pad, keep)

    def prefill(self, tokens: Tensor, pad: Tensor | None = None, held: int = 0) -> Tensor:
        """Put prompts [batch, count] into the buffers; logits [batch, vocabulary] after them.

        Args:
            held: tokens before these that are there already.
        """
        *_, (_, logits) = self.read(tokens, pad, held=held)
        return logits[:, -1]

    def extend(
        self, tokens: Tensor, length: int, pad: Tensor | None = None, keep: int = 1
    ) -> Tensor:
        """One forward of `tokens` [batch, count] that follow `length` cached ones, in order."""
        count = tokens.shape[1]
        used = length + count
        slots = self._slots[length:used]
        [masks] = self._causal(count).masks(
            self.places(torch.tensor([length], device=self.device), used)
        )
        positions = slots[None]
        if pad is not None:
            positions = (positions - pad[:, None]).clamp(min=0)
            padded = self._read_slots(used) < pad[:, None]
            masks = {
                window: mask.masked_fill(padded[:, None, None], torch.finfo(mask.dtype).min)
                for window, mask in masks.items()
            }
        return self._eager(tokens, positions, slots, masks, keep)

    def _causal(self, count: int) -> MaskTable:
        """The mask table of `count` tokens in order; kept, unless layers are brought in: making it
        is nothing beside that, and its memory would count."""
        if count in self._chunks:
            return self._chunks[count]
        order = list(range(count))
        table = self.mask_table(np.tri(count, dtype=np.bool_), query_depths=order, depths=order)
        if self.stream is None:
            if len(self._chunks) >= KEPT_TABLES:
                self._chunks.clear()
            self._chunks[count] = table
        return table


def _activation_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of keys and values: that of the floating weights (quantised ones are not)."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(model.parameters()).dtype
