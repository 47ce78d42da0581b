"""Whether a model can be run on token trees, and computes there what the library computes.

Checked when a model is loaded, past every length at which it may change: on the masks that the
library itself builds for the last positions that the model can take, and on logits at the first
and at the last positions. Neither needs a long text: a cache that only says how many tokens came
before makes the library build its masks for them. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from sequoia_opt.engine.torch.attention import PROBE_ATTENTION, LayerShape, Probe, probing
from sequoia_opt.errors import SequoiaError, one_line

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner

CHECKED_TOKENS = 16
# Of three queries in a row a sliding window's first keys are three in a row too; no other mask's.
PROBED_TOKENS = 3
# What one row of a mask may be long, in tokens; longer texts are not taken.
LONGEST_CHECKED = 2**20
# How far logits may be off, relative to their spread, before an architecture is refused: well
# above rounding (the library's softmax is in float32 for every model), well below what a wrong
# position or mask does.
AGREEMENT = {
    torch.float64: 1e-4,
    torch.float32: 1e-2,
    torch.bfloat16: 0.25,
    torch.float16: 0.1,
}
SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "attention"}


class AbsentCache(Cache):
    """Says that tokens came before, and holds none of them.

    The library asks its cache how long a text is when it counts positions and builds masks.
    """

    def __init__(self, length: int, shown: bool) -> None:
        """Say how many tokens came before.

        Args:
            shown: whether masks are to be as wide as the whole text; else they are for the new
                tokens alone, as if all others had been forgotten.
        """
        super().__init__(layers=[])
        self._length, self._shown = length, shown

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep nothing; the new keys and values are all that there are."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens came before."""
        return self._length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The first new token's position."""
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys a mask is for, and the position of the first."""
        if self._shown:
            return self._length + query_length, 0
        return query_length, self._length


def usable_positions(config: object) -> tuple[int, str]:
    """The most tokens that a model can take, position by position, and what ends them there.

    Rotary embeddings that change once a text is longer than the original context cannot be
    cached across that point: such a model stops there.
    """
    positions = int(getattr(config, "max_position_embeddings", None) or LONGEST_CHECKED)
    why = ""
    if positions > LONGEST_CHECKED:
        positions, why = LONGEST_CHECKED, "no model is run on longer texts"
    rope = getattr(config, "rope_parameters", None) or {}
    each = [r for r in rope.values() if isinstance(r, dict)] if "rope_type" not in rope else [rope]
    for parameters in each:
        kind = parameters.get("rope_type")
        if changes_with_length(kind):
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            if original and int(original) < positions:
                positions = int(original)
                why = (
                    f"its rotary embedding ({kind}) changes for longer texts, and with it what "
                    "was computed before; this program stops there"
                )
    return positions, why


def changes_with_length(kind: object) -> bool:
    """Whether rotary embeddings of this type depend on how long the text is."""
    return isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")


def keep_rope(model: torch.nn.Module) -> None:
    """Rotary embeddings that would look at each position, whether to change: within the usable
    positions they never do, and looking waits for the device."""
    rotary: Any
    for rotary in model.modules():
        own = getattr(rotary, "rope_type", None)
        if isinstance(own, dict):
            kinds = own.items()
            rotary.rope_type = {k: "default" if changes_with_length(v) else v for k, v in kinds}
        elif changes_with_length(own):
            rotary.rope_type = "default"


def check_layer_types(model: torch.nn.Module, name: str) -> None:
    """Refuse layers that are no attention, by what the configuration calls them.

    Raises:
        SequoiaError: there are such.
    """
    types = getattr(_text_config(model), "layer_types", None) or []
    if unsupported := set(types) - SUPPORTED_LAYERS:
        raise SequoiaError(
            f"{_architecture(model, name)} has {', '.join(sorted(unsupported))} layers, "
            "which cannot score a token tree; only softmax attention can"
        )


def probe(model: torch.nn.Module, name: str, positions: int) -> list[LayerShape]:
    """See what the attention layers ask for, and what the library masks for them at the last of
    the positions.

    Raises:
        SequoiaError: the architecture cannot score a token tree.
    """
    library: Any = model
    config = _text_config(model)
    architecture = f"{_architecture(model, name)} cannot score a token tree:"
    count = min(PROBED_TOKENS, positions)
    before = positions - count
    device = next(model.parameters()).device
    noted = Probe(before, count)
    try:
        library.set_attn_implementation(PROBE_ATTENTION)
        with torch.inference_mode(), probing(noted):
            model(
                input_ids=torch.zeros(1, count, dtype=torch.long, device=device),
                position_ids=torch.arange(before, positions, device=device)[None],
                past_key_values=AbsentCache(before, shown=True),
                use_cache=True,
                tree=noted,
            )
    except SequoiaError as error:
        raise SequoiaError(f"{architecture} {error}") from None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many kinds: the library's own forward has run before
        if noted.layers:
            raise SequoiaError(
                f"{architecture} it does not run with another attention function and a cache of "
                f"another kind ({_reason(error)})"
            ) from None
    expected = getattr(config, "num_hidden_layers", len(noted.layers))
    if not noted.layers:
        raise SequoiaError(
            f"{architecture} its attention is written out in its own code, where transformers' "
            "attention interface, and with it a tree's mask, does not reach"
        )
    if sorted(noted.layers) != list(range(expected)):
        raise SequoiaError(
            f"{architecture} only {len(noted.layers)} of its {expected} layers run through "
            "transformers' attention interface"
        )
    layers = [noted.layers[index] for index in range(expected)]
    if len({layer.groups for layer in layers}) != 1:
        raise SequoiaError(f"{architecture} its layers share key-value heads differently")
    if any(layer.window for layer in layers) and not all(layer.told for layer in layers):
        raise SequoiaError(
            f"{architecture} its layers have sliding windows and do not pass keyword arguments on "
            "to their attention"
        )
    _check_library_cache(config, layers, positions, architecture)
    return layers


def _check_library_cache(
    config: Any, layers: list[LayerShape], positions: int, architecture: str
) -> None:
    """Refuse a window that the library's cache has and its masks have not: it would compute one
    text with its cache and another without."""
    try:
        library = DynamicCache(config=config).layers
    except Exception as error:  # of several kinds: sizes that exclude one another
        raise SequoiaError(
            f"{architecture} transformers has no cache for its config.json ({_reason(error)})"
        ) from None
    for layer, cached in zip(layers, library, strict=False):
        window = getattr(cached, "sliding_window", None)
        if window is not None and window < positions and layer.window != window:
            raise SequoiaError(
                f"{architecture} config.json has a window of {window} tokens (sliding_window or "
                "attention_chunk_size), which transformers' cache keeps to and its layers do not; "
                "if the model has none, take it out of config.json"
            )


class LibraryLogits:
    """What the library's own forward computes for a short text from given positions on.

    Attributes:
        tokens: the text [tokens].
        starts: the first positions that it was computed from.
        logits: for each of these [tokens, vocabulary], float64.
    """

    def __init__(self, model: torch.nn.Module, name: str, positions: int, vocabulary: int) -> None:
        self._model, self._name = model, name
        self._device = next(model.parameters()).device
        self._last = max(0, positions - CHECKED_TOKENS)
        count = min(CHECKED_TOKENS, positions)
        self.tokens = torch.arange(count, device=self._device) % vocabulary
        self.starts: list[int] = []
        self.logits: list[Tensor] = []

    def compute_first(self) -> None:
        """Run the text at the first positions: whether the model runs at all.

        Raises:
            SequoiaError: it does not, or its logits are not finite.
        """
        try:
            self._compute(0, use_cache=False)
        except (SequoiaError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of many kinds, and not the tree's fault
            device, dtype = self._device.type, str(self._model.dtype).removeprefix("torch.")
            reason = _reason(error) if str(error) else "it does not say why"
            quantised: Any = getattr(self._model.config, "quantization_config", None)
            if quantised is not None:
                method = getattr(quantised, "quant_method", "an unnamed method")
                raise SequoiaError(
                    f"{self._name}: its weights, quantised by {getattr(method, 'value', method)}, "
                    f"do not run on the {device}, in transformers either ({reason}); use a GPU, or "
                    "weights that are not quantised, without quantization_config in config.json"
                ) from None
            raise SequoiaError(
                f"{self._name}: does not run on the {device} in {dtype}, in transformers either "
                f"({reason}); try another --dtype or --device"
            ) from None

    def compute_last(self) -> None:
        """Run the text at the last positions, if these are others.

        Raises:
            SequoiaError: that cannot be.
        """
        if not self._last:
            return
        positions = torch.arange(len(self.tokens), device=self._device)[None] + self._last
        cache = AbsentCache(self._last, shown=False)
        try:
            self._compute(self._last, position_ids=positions, past_key_values=cache, use_cache=True)
        except (SequoiaError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of many kinds
            raise SequoiaError(
                f"{_architecture(self._model, self._name)} cannot score a token tree: what it "
                f"computes at position {self._last} cannot be checked ({_reason(error)})"
            ) from None

    @torch.inference_mode()
    def _compute(self, start: int, **options: Any) -> None:
        """Run the text, with the one attention function that every model of the library has."""
        library: Any = self._model
        library.set_attn_implementation("eager")
        logits = library(input_ids=self.tokens[None], **options).logits[0].double()
        _check_finite(self._model, self._name, logits)
        self.starts.append(start)
        self.logits.append(logits)


def _check_finite(model: torch.nn.Module, name: str, logits: Tensor) -> None:
    """Refuse logits that are not numbers, and say whether the weights are to blame."""
    if not bool(logits.isnan().any() or logits.isposinf().any() or logits.isneginf().all()):
        return
    kind: torch.dtype = model.dtype  # type: ignore[assignment]
    dtype = str(kind).removeprefix("torch.")
    advice = advice_for(kind)
    for weight, values in model.named_parameters():
        if values.is_floating_point() and not bool(values.isfinite().all()):
            damaged = "the file is damaged"
            if kind == torch.float16:
                damaged = f"{advice}; if it is not finite there either, the file is damaged"
            raise SequoiaError(
                f"{name}: its logits are not finite in {dtype}, since its weight {weight} is not; "
                f"{damaged}"
            )
    raise SequoiaError(
        f"{name}: its logits are not finite in {dtype}, in transformers either; {advice}"
    )


def advice_for(dtype: torch.dtype) -> str:
    """What to do where logits are not finite in a dtype."""
    if dtype == torch.float16:
        return "use --dtype bfloat16 or float32"
    if dtype == torch.bfloat16:
        return "try --dtype float32"
    return "nothing finite comes out of these weights; load the model that was meant"


@torch.inference_mode()
def check_agreement(runner: Runner, library: LibraryLogits) -> None:
    """Refuse an architecture whose logits on a tree are others than in the library's forward.

    A short text in two parts, the second a tree that has a wrong token beside each right one:
    positions that a model counts in its own way, attention that looks at where a token lies
    rather than at its mask, or that asks for something unknown, show here.
    """
    count, texts = len(library.tokens), len(library.starts)
    half = count // 2
    levels = count - half
    # Node 2 i is a wrong token at depth i, node 2 i + 1 the right one, whose path has right ones.
    nodes = np.arange(2 * levels)
    attends = (nodes[:, None] // 2 > nodes // 2) & (nodes % 2 == 1) | np.eye(len(nodes), dtype=bool)
    depths = (nodes // 2).tolist()
    device = library.tokens.device
    starts = torch.tensor(library.starts, device=device)[:, None]
    slots = torch.arange(half + len(nodes), device=device)
    cache = runner.reserve(len(slots), texts)
    if half:
        text = library.tokens[:half].expand(texts, -1)
        order = list(range(half))
        table = runner.mask_table(np.tri(half, dtype=np.bool_), order, order)
        [masks] = table.masks(runner.places(cache, slots[:1], half))
        runner.forward(cache, text, starts + slots[:half], slots[:half], masks, keep=1)
    right = library.tokens[half:]
    tree = torch.stack([(right + count) % runner.vocabulary, right], dim=1).flatten()
    [masks] = runner.mask_table(attends, depths, depths).masks(
        runner.places(cache, torch.tensor([half], device=device), len(slots))
    )
    positions = starts + half + torch.tensor(depths, device=device)
    logits = runner.forward(cache, tree.expand(texts, -1), positions, slots[half:], masks, keep=0)
    for row, expected, start in zip(logits, library.logits, library.starts, strict=True):
        if off := difference(row[1::2].double(), expected[half:], runner.dtype):
            raise SequoiaError(
                f"{_architecture(runner.model, runner.name)} gives other logits on a tree than in "
                f"the library's own forward ({off}, from position {start}); it is not supported"
            )


def difference(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    """How far logits are off; nothing where that is rounding.

    In half precision a token or two of a mixture of experts may go to another expert, and what
    they say then is no rounding any more: there the median token counts, which a wrong position
    or mask changes too.

    Args:
        logits, expected: [vocabulary] or [tokens, vocabulary].
        dtype: what the model computes in.
    """
    errors = (logits - expected).abs().amax(dim=-1)
    error = float(errors.median() if dtype.itemsize == 2 else errors.max())
    scale = float((expected - expected.mean()).abs().max())
    agree = error <= AGREEMENT[dtype] * max(scale, 1e-3)
    return "" if agree else f"off by {error:.2g} of {scale:.2g}"


def _text_config(model: Any) -> Any:
    """The configuration of a model's part that writes text."""
    return model.config.get_text_config()


def _architecture(model: Any, name: str) -> str:
    """A model's name and its architecture's, as messages begin with."""
    return f"{name}: architecture {getattr(_text_config(model), 'model_type', 'unknown')!r}"


def _reason(error: Exception) -> str:
    """Another library's message, short, or its kind where it has none."""
    return one_line(error)[:160] or type(error).__name__
