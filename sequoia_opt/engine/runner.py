"""One model's forward over its KV buffers.

Knows how to run any dense decoder-only transformers model on given tokens, positions and
slots, and how to fill its buffers with a prompt. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.attention import (
    OPAQUE_ATTENTION,
    PROBE_ATTENTION,
    TREE_ATTENTION,
    Attend,
    KVCache,
    LayerShape,
    Masks,
    MaskTable,
    buffer_bytes,
    places,
)
from sequoia_opt.engine.compiling import Forward, compiled, compiled_by_layer, vary_sizes
from sequoia_opt.engine.memory import check_fits
from sequoia_opt.engine.offload import decoder_layers
from sequoia_opt.engine.packing import pack, unpack
from sequoia_opt.engine.processors import one_left_free
from sequoia_opt.engine.streaming import LayerStream
from sequoia_opt.errors import SequoiaError

PREFILL_CHUNK = 512  # tokens of a prompt that are read together, where all weights stay
KEPT_TABLES = 8  # causal mask tables of that many chunk lengths stay prepared
CHECKED_TOKENS = 16
# On CUDA: attention kernels copy a mask whose rows do not begin at a multiple of this.
ALIGNED_SLOTS = 8
# How far logits may be off, relative to their spread, before an architecture is refused: well
# above rounding, well below what a wrong position or mask does.
AGREEMENT = {
    torch.float64: 1e-6,
    torch.float32: 1e-2,
    torch.bfloat16: 0.25,
    torch.float16: 0.1,
}
VARYING_ROPE = {"longrope", "dynamic"}
SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "attention"}


class Runner:
    """A model, its KV buffers and its forward.

    Attributes:
        model: the transformers model, its attention set to this program's, its weights packed.
        parameters: how many it has.
        layers: what its attention layers store.
        vocabulary: number of logits.
        positions: the most tokens that it can take.
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
        self.positions = _usable_positions(config)
        _keep_rope(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, _activation_dtype(model)
        self.layers = self._probe(config)
        self.cache: KVCache | None = None
        self._slots = torch.arange(0, device=self.device)
        self._chunks: dict[int, MaskTable] = {}
        self.compiled = False
        self._graphs: Forward | None = None
        self._pack()
        self._check_agreement(config)

    def _pack(self) -> None:
        """Lay the weights out for this machine, unless they are to be read anew every time."""
        if self.stream is None:
            pack(self.model)

    def _probe(self, config: object) -> list[LayerShape]:
        """Run one token through the model and see what its attention layers ask for."""
        kind = getattr(config, "model_type", "unknown")
        unsupported = set(getattr(config, "layer_types", None) or []) - SUPPORTED_LAYERS
        if unsupported:
            raise SequoiaError(
                f"{self.name}: architecture {kind!r} has {', '.join(sorted(unsupported))} layers, "
                "which cannot score a token tree; only softmax attention can"
            )
        found: dict[int, LayerShape] = {}
        self._native: str = self.model.config._attn_implementation  # type: ignore[union-attr, assignment]
        self._attention = TREE_ATTENTION
        try:
            self.model.set_attn_implementation(PROBE_ATTENTION)  # type: ignore[operator]
            with torch.inference_mode():
                self.model(
                    input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device),
                    position_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device),
                    use_cache=False,
                    probe=found,
                )
            self.model.set_attn_implementation(TREE_ATTENTION)  # type: ignore[operator]
        except SequoiaError as error:
            raise SequoiaError(f"{self.name}: {error}") from None
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise SequoiaError(
                f"{self.name}: architecture {kind!r} does not take an attention function "
                f"({reason[:120]})"
            ) from None
        expected = getattr(config, "num_hidden_layers", len(found))
        if not found or sorted(found) != list(range(expected)):
            raise SequoiaError(
                f"{self.name}: architecture {kind!r} runs {len(found)} of its {expected} layers "
                "through transformers' attention interface; it cannot score a token tree"
            )
        layers = [found[index] for index in range(expected)]
        if len({layer.groups for layer in layers}) != 1:
            raise SequoiaError(f"{self.name}: layers that share heads differently: not supported")
        return layers

    @torch.inference_mode()
    def _check_agreement(self, config: object) -> None:
        """Refuse an architecture whose logits come out otherwise than in the library's forward.

        A short text in two chunks, as a tree would read it: positions that a model counts in its
        own way, or attention that asks for something unknown, show here.
        """
        kind = getattr(config, "model_type", "unknown")
        windows = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        hidden = windows[0] is not None and windows[1] is None
        if (
            hidden
            and getattr(config, "use_sliding_window", True)
            and all(layer.window is None for layer in self.layers)
        ):
            raise SequoiaError(
                f"{self.name}: architecture {kind!r} keeps its sliding window from the attention "
                "function; it cannot score a token tree"
            )
        count = min(CHECKED_TOKENS, self.positions)
        tokens = torch.arange(count, device=self.device)[None] % self.vocabulary
        native = self._native
        self._native = "eager"  # the one attention that every model of the library has
        with self.native() as model:
            wanted = model(input_ids=tokens, use_cache=False).logits[0, -1].double()
        self._native = native
        self.reserve(count)
        if count > 1:
            self.extend(tokens[:, : count // 2], 0)
        found = self.extend(tokens[:, count // 2 :], count // 2)[0, -1].double()
        if off := self._difference(found, wanted):
            raise SequoiaError(
                f"{self.name}: architecture {kind!r} gives other logits on a tree than in the "
                f"library's own forward ({off}); it is not supported"
            )

    def _difference(self, found: Tensor, wanted: Tensor) -> str:
        """How far logits are off; nothing where that is rounding."""
        error = float((found - wanted).abs().max())
        scale = float((wanted - wanted.mean()).abs().max())
        agree = error <= AGREEMENT[self.dtype] * max(scale, 1e-3)
        return "" if agree else f"off by {error:.2g} of {scale:.2g}"

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
            if off := self._difference(found[0, -1].double(), wanted[0, -1].double()):
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
            use_cache=False,
            logits_to_keep=keep,
            tree=Attend(self.cache, slots, masks),
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


def _keep_rope(model: torch.nn.Module) -> None:
    """Rotary embeddings that would look at each position, whether to change: within the usable
    positions they never do, and looking waits for the device."""
    rotary: Any
    for rotary in model.modules():
        own = getattr(rotary, "rope_type", None)
        if isinstance(own, dict):
            rotary.rope_type = {k: "default" if v in VARYING_ROPE else v for k, v in own.items()}
        elif own in VARYING_ROPE:
            rotary.rope_type = "default"


def _usable_positions(config: object) -> int:
    """The most tokens that a model can take, position by position.

    Rotary embeddings that change once a text is longer than the original context cannot be
    cached across that point: such a model stops there.
    """
    positions = int(getattr(config, "max_position_embeddings", None) or 2**31 - 1)
    rope = getattr(config, "rope_parameters", None) or {}
    each = [r for r in rope.values() if isinstance(r, dict)] if "rope_type" not in rope else [rope]
    for parameters in each:
        if parameters.get("rope_type") in VARYING_ROPE:
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            positions = min(positions, int(original or positions))
    return positions


def _activation_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of keys and values: that of the floating weights (quantised ones are not)."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(model.parameters()).dtype
