"""Whether a model can score token trees, and what its attention layers need for it.

Checked when a model is loaded, on its configuration and on the masks that transformers builds for
the last positions that the model can take. That needs no long text: a cache that only claims that
tokens came before makes transformers build the masks for them. Whether the model then computes
the same logits on a tree is checked in agreement.py. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import sdpa_mask

from sequoia_opt.engine.torch.attention import LayerShape
from sequoia_opt.errors import SequoiaError, one_line

PROBE_ATTENTION = "sequoia_probe"
# With three queries in a row the first keys of a sliding window are three in a row too; no other
# mask looks like that.
PROBED_TOKENS = 3
# Longer texts are not accepted; this bounds the length of the probe's mask rows.
LONGEST_CHECKED = 2**20
SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "attention"}


class AbsentCache(Cache):
    """A cache that claims that tokens came before, and holds none of them.

    transformers asks its cache how long a text is when it counts positions and builds masks.
    """

    def __init__(self, length: int, visible: bool) -> None:
        """Claim `length` tokens.

        Args:
            visible: whether masks are as wide as the whole text; otherwise they are for the new
                tokens alone, as if the layers had forgotten the others.
        """
        super().__init__(layers=[])
        self._length, self._visible = length, visible

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store nothing; the layer reads its new keys and values only."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens before."""
        return self._length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the first new token."""
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys that a mask is for, and the position of the first."""
        if self._visible:
            return self._length + query_length, 0
        return query_length, self._length


def usable_positions(config: object) -> tuple[int, str]:
    """The number of positions that a model can take, and why it is fewer than configured.

    Returns:
        The number of positions, and the reason for a limit below the configuration's own, or "".
    """
    positions, why = rotary_positions(config)
    configured = int(getattr(config, "max_position_embeddings", None) or LONGEST_CHECKED)
    return (configured, "") if configured <= positions else (positions, why)


def rotary_positions(config: object) -> tuple[int, str]:
    """The number of positions for which a model's rotary embeddings stay the same, and why.

    Some rotary embeddings change once a text is longer than the original context. Keys that were
    cached before that point would be wrong after it, so such a model stops there.
    """
    positions, why = LONGEST_CHECKED, "this program runs no model on longer texts"
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = "rope_type" not in rope
    for parameters in rope.values() if by_layer_type else [rope]:
        kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
        if not changes_with_length(kind):
            continue
        original = (
            parameters.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", None)
            or getattr(config, "max_position_embeddings", None)
        )
        if original and int(original) < positions:
            positions = int(original)
            why = (
                f"its rotary embedding ({kind}) changes for longer texts, which invalidates "
                "cached keys; this program stops there"
            )
    return positions, why


def changes_with_length(rope_type: object) -> bool:
    """Whether rotary embeddings of this type depend on the length of the text."""
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")


def fix_rope(model: torch.nn.Module) -> None:
    """Keep rotary embeddings from checking each position for whether they must change.

    Within the usable positions they never change, and the check waits for the device.
    """
    rotary: Any
    for rotary in model.modules():
        rope_type = getattr(rotary, "rope_type", None)
        if isinstance(rope_type, dict):
            rotary.rope_type = {
                layer_type: "default" if changes_with_length(kind) else kind
                for layer_type, kind in rope_type.items()
            }
        elif changes_with_length(rope_type):
            rotary.rope_type = "default"


def check_layer_types(model: torch.nn.Module, name: str) -> None:
    """Refuse layers without softmax attention, by their types in the configuration.

    Raises:
        SequoiaError: the model has such layers.
    """
    types = getattr(text_config(model), "layer_types", None) or []
    if unsupported := set(types) - SUPPORTED_LAYERS:
        raise SequoiaError(
            f"{architecture_of(model, name)} has {', '.join(sorted(unsupported))} layers, "
            "which cannot score a token tree; only softmax attention can"
        )


@dataclass
class Probe:
    """Records the attention layers of a model, in a forward pass of a text's last few tokens.

    Attributes:
        before: the number of tokens that are claimed to come before.
        count: the number of tokens in the forward pass.
        layers: the recorded layers, by their index.
    """

    before: int
    count: int
    layers: dict[int, LayerShape] = field(default_factory=dict)

    def window(self, mask: Tensor | None) -> int | None:
        """The sliding window of a mask that transformers built; None if it shows all tokens before.

        Raises:
            SequoiaError: the mask is missing or of another kind.
        """
        if mask is None:
            raise SequoiaError("its layers get no mask that could be checked")
        if mask.dtype != torch.bool:
            blocked = mask <= torch.finfo(mask.dtype).min / 2
            if not bool((blocked | (mask == 0)).all()):
                raise SequoiaError("its attention adds to the scores by position")
            mask = ~blocked
        used = self.before + self.count
        if mask.shape[-2:] != (self.count, used):
            raise SequoiaError(
                "its layers mask in a way of their own, perhaps depending on the tokens"
            )
        key = torch.arange(used, device=mask.device)
        distance = torch.arange(self.before, used, device=mask.device)[:, None] - key
        seen = int(mask.reshape(-1, used)[-1].sum())
        for window in (None, seen):
            visible = (distance >= 0) & (distance < (used if window is None else window))
            if bool((mask == visible).all()):
                return window
        raise SequoiaError(
            f"at position {used - 1} its layers see other tokens than all before or a sliding "
            "window of them"
        )


_active_probe: ContextVar[Probe | None] = ContextVar("active_probe", default=None)


@contextmanager
def _recording(probe: Probe) -> Iterator[None]:
    """Record the layers of the model that runs inside this context."""
    token = _active_probe.set(probe)
    try:
        yield
    finally:
        _active_probe.reset(token)


def _probe_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    tree: Probe | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Record a layer; the output is zeros of the right shape."""
    name = type(module).__name__
    layer = getattr(module, "layer_idx", None)
    active = _active_probe.get()
    if active is None:
        raise RuntimeError("layers are probed only through sequoia_opt.engine.torch.support")
    if layer is None or not getattr(module, "is_causal", True):
        raise SequoiaError(f"{name} is not a decoder's own attention")
    if position_bias is not None:
        raise SequoiaError(f"{name} adds to the scores by position")
    active.layers[layer] = LayerShape(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        key_dim=key.shape[3],
        value_dim=value.shape[3],
        window=active.window(attention_mask),
        takes_arguments=tree is not None,
    )
    batch, heads, tokens, _dim = query.shape
    return query.new_zeros(batch, tokens, heads, value.shape[3]), None


def _probe_mask(**arguments: Any) -> Tensor | None:
    """transformers' boolean mask, also where it could leave the mask out."""
    arguments |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(**arguments)
    return mask


AttentionInterface.register(PROBE_ATTENTION, _probe_attention)
AttentionMaskInterface.register(PROBE_ATTENTION, _probe_mask)


def probe(model: torch.nn.Module, name: str, positions: int) -> list[LayerShape]:
    """The shapes of the model's attention layers, measured at the last of its positions.

    Raises:
        SequoiaError: the architecture cannot score a token tree.
    """
    library: Any = model
    architecture = f"{architecture_of(model, name)} cannot score a token tree:"
    count = min(PROBED_TOKENS, positions)
    before = positions - count
    device = next(model.parameters()).device
    recorded = Probe(before, count)
    try:
        library.set_attn_implementation(PROBE_ATTENTION)
        with torch.inference_mode(), _recording(recorded):
            model(
                input_ids=torch.zeros(1, count, dtype=torch.long, device=device),
                position_ids=torch.arange(before, positions, device=device)[None],
                past_key_values=AbsentCache(before, visible=True),
                use_cache=True,
                tree=recorded,
            )
    except SequoiaError as error:
        raise SequoiaError(f"{architecture} {error}") from None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any kind; the model's own forward pass has worked before
        if recorded.layers:
            raise SequoiaError(
                f"{architecture} it does not run with another attention function and a cache of "
                f"another kind ({reason(error)})"
            ) from None
    layers = _complete_layers(recorded, text_config(model), architecture)
    _check_library_cache(text_config(model), layers, positions, architecture)
    return layers


def _complete_layers(recorded: Probe, config: Any, architecture: str) -> list[LayerShape]:
    """The recorded layers in order, if they are all of the model's and tree attention fits them.

    Raises:
        SequoiaError: some are missing, or tree attention cannot replace their attention.
    """
    expected = getattr(config, "num_hidden_layers", len(recorded.layers))
    if not recorded.layers:
        raise SequoiaError(
            f"{architecture} its attention is written out in its own code and does not go through "
            "transformers' attention interface, so a tree's mask cannot be applied"
        )
    if sorted(recorded.layers) != list(range(expected)):
        raise SequoiaError(
            f"{architecture} only {len(recorded.layers)} of its {expected} layers run through "
            "transformers' attention interface"
        )
    layers = [recorded.layers[index] for index in range(expected)]
    if len({layer.groups for layer in layers}) != 1:
        raise SequoiaError(f"{architecture} its layers share key-value heads differently")
    if any(layer.window for layer in layers) and not all(layer.takes_arguments for layer in layers):
        raise SequoiaError(
            f"{architecture} its layers have sliding windows and do not pass keyword arguments on "
            "to their attention"
        )
    return layers


def _check_library_cache(
    config: Any, layers: list[LayerShape], positions: int, architecture: str
) -> None:
    """Refuse a window that transformers' cache has and the layers' masks do not have.

    transformers would compute one text with its cache and another one without it.
    """
    try:
        cached_layers = DynamicCache(config=config).layers
    except Exception as error:  # of several kinds, for sizes that exclude one another
        raise SequoiaError(
            f"{architecture} transformers has no cache for its config.json ({reason(error)})"
        ) from None
    for layer, cached in zip(layers, cached_layers, strict=False):
        window = getattr(cached, "sliding_window", None)
        if window is not None and window < positions and layer.window != window:
            raise SequoiaError(
                f"{architecture} config.json has a window of {window} tokens (sliding_window or "
                "attention_chunk_size) that transformers' cache applies and the layers do not; if "
                "the model has no window, take it out of config.json"
            )


def text_config(model: Any) -> Any:
    """The configuration of the part of a model that writes text."""
    return model.config.get_text_config()


def architecture_of(model: Any, name: str) -> str:
    """A model's name and its architecture, for the beginning of a message."""
    return f"{name}: architecture {getattr(text_config(model), 'model_type', 'unknown')!r}"


def reason(error: Exception) -> str:
    """The shortened message of another library's error, or its type if it has no message."""
    return one_line(error)[:160] or type(error).__name__


def activation_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of keys and values: that of the floating weights (quantised ones are not)."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(model.parameters()).dtype
