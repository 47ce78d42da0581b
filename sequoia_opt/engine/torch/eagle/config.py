"""The config.json of an EAGLE-3 head, in two formats: SpecForge's and that of vLLM's speculators.

SpecForge's is a LlamaConfig with `draft_vocab_size`; EAGLE's own published heads have it too. The
other one has `speculators_model_type` and keeps the decoder layer's settings in a part of its own.
Knows fields. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config

from sequoia_opt.engine.gguf_file import is_gguf
from sequoia_opt.errors import SequoiaError, one_line

EAGLE3 = "eagle3"
LAYER_CONFIGS: dict[str, type[PreTrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}


@dataclass(frozen=True)
class HeadConfig:
    """What a head's config.json says.

    Attributes:
        source: hub id or folder.
        document: the file as it is written.
        layer: the configuration of the head's decoder layers; its vocabulary is the target's.
        draft_vocabulary: tokens that the head can propose.
        hidden_layers: the target's hidden states that it reads, by index (0 for the embeddings, i
            for the output of the i-th layer); None for the usual three.
        norm_before_residual: the first layer's residual is the feature after its norm.
        norm_before_fc: the hidden states are normed together before they are projected.
        fc_norm: the hidden states are normed one by one before they are projected.
        feeds_back_normed: what a later pass reads as feature is the output after the norm that
            comes before the logits (EAGLE-3.1).
        first_layer: the prefix of the names of the first layer's weights.
    """

    source: str
    document: dict[str, Any]
    layer: Any
    draft_vocabulary: int
    hidden_layers: tuple[int, ...] | None
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    feeds_back_normed: bool
    first_layer: str

    @property
    def vocabulary(self) -> int:
        """Tokens of the target that the head was made for."""
        return int(self.layer.vocab_size)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a fingerprint."""
        return self.document

    def layers_of(self, target_layers: int) -> tuple[int, ...]:
        """The hidden states that the head reads of a target with so many layers.

        Raises:
            SequoiaError: the target does not have them.
        """
        layers = self.hidden_layers or (2, target_layers // 2, target_layers - 3)
        outside = [layer for layer in layers if not 0 <= layer <= target_layers]
        if outside or len(set(layers)) < len(layers):
            raise SequoiaError(
                f"{self.source}: reads the target's hidden states {', '.join(map(str, layers))}, "
                f"but the target has {target_layers} layers; use the target that the head was "
                "trained for"
            )
        return layers


def head_config(source: str) -> HeadConfig | None:
    """The configuration of an EAGLE-3 head; None if the source is something else.

    Raises:
        SequoiaError: it is a head that cannot be run.
    """
    document = _written_config(source)
    return None if document is None else head_config_of(source, document)


def head_config_of(source: str, document: dict[str, Any]) -> HeadConfig | None:
    """The configuration of an EAGLE-3 head whose config.json holds this; None for another model.

    Raises:
        SequoiaError: it is a head that cannot be run.
    """
    if "speculators_model_type" in document:
        return _of_speculators(source, document)
    architectures = document.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if "draft_vocab_size" in document or any(EAGLE3 in str(name).lower() for name in names):
        return _of_specforge(source, document)
    return None


def _written_config(source: str) -> dict[str, Any] | None:
    """A config.json as it is written; None where there is none that can be read."""
    if is_gguf(source) or (Path(source).is_dir() and not (Path(source) / "config.json").is_file()):
        return None
    try:
        document, _ = PreTrainedConfig.get_config_dict(source)
    except Exception:  # of many kinds; loading it as a model says what is wrong
        return None
    return document if isinstance(document, dict) else None


def _of_speculators(source: str, document: dict[str, Any]) -> HeadConfig:
    """The configuration of a head in speculators' format."""
    kind = document["speculators_model_type"]
    if kind != EAGLE3:
        raise SequoiaError(
            f"{source}: config.json: speculators_model_type: found {kind!r}, expected {EAGLE3!r}; "
            "other kinds of heads are not run here"
        )
    part = document.get("transformer_layer_config")
    if not isinstance(part, dict):
        raise SequoiaError(
            f"{source}: config.json: transformer_layer_config: found {part!r}, expected a table"
        )
    layer = _layer_config(source, {"model_type": "qwen3", **part})
    return HeadConfig(
        source=source,
        document=document,
        layer=layer,
        draft_vocabulary=_count(source, document, "draft_vocab_size", 32000),
        hidden_layers=_layer_ids(source, document.get("eagle_aux_hidden_state_layer_ids")),
        norm_before_residual=bool(document.get("norm_before_residual", False)),
        norm_before_fc=bool(document.get("norm_before_fc", False)),
        fc_norm=bool(document.get("fc_norm", False)),
        feeds_back_normed=bool(document.get("norm_output", False)),
        first_layer="layers.0.",
    )


def _of_specforge(source: str, document: dict[str, Any]) -> HeadConfig:
    """The configuration of a head in SpecForge's format.

    Some trainers write their own fields into a part, `eagle_config`. `norm_output` is meant as
    SGLang, vLLM and, since September 2026, SpecForge read it.
    """
    layer = _layer_config(source, {"model_type": "llama", **document, "num_hidden_layers": 1})
    part = document.get("eagle_config")
    part = part if isinstance(part, dict) else {}
    fields = {**document, **part}
    ids = "eagle_aux_hidden_state_layer_ids"
    numbers = _layer_ids(source, part.get(ids))
    if numbers is not None:  # there a layer's number, from 0, stands for its output
        numbers = tuple(number + 1 for number in numbers)
    return HeadConfig(
        source=source,
        document=document,
        layer=layer,
        draft_vocabulary=_count(source, document, "draft_vocab_size", int(layer.vocab_size)),
        hidden_layers=numbers or _layer_ids(source, document.get(ids)),
        norm_before_residual=bool(fields.get("norm_before_residual", False)),
        norm_before_fc=bool(fields.get("norm_before_fc", False)),
        fc_norm=bool(fields.get("fc_norm", False)),
        feeds_back_normed=bool(fields.get("norm_output", False)),
        first_layer="midlayer.",
    )


def _layer_config(source: str, fields: dict[str, Any]) -> Any:
    """The configuration of a head's decoder layers."""
    kind = fields["model_type"]
    if kind not in LAYER_CONFIGS:
        raise SequoiaError(
            f"{source}: config.json: model_type: found {kind!r}, expected one of "
            f"{', '.join(LAYER_CONFIGS)}; heads with other layers are not run here"
        )
    try:
        config: Any = LAYER_CONFIGS[kind].from_dict(fields)
    except Exception as error:  # of many kinds: a field may be anything
        raise SequoiaError(
            f"{source}: its config.json cannot be used ({one_line(error)[:200]})"
        ) from None
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        raise SequoiaError(f"{source}: a head with a sliding window is not run here")
    return config


def _count(source: str, document: dict[str, Any], field: str, default: int) -> int:
    """A field that is a number of tokens."""
    count = document.get(field)
    if count is None:
        return default
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise SequoiaError(
            f"{source}: config.json: {field}: found {count!r}, expected a whole number of at "
            "least 1"
        )
    return count


def _layer_ids(source: str, ids: Any) -> tuple[int, ...] | None:
    """Numbers of the target's layers; None where none are given."""
    if not ids:
        return None
    if not isinstance(ids, Sequence) or not all(type(number) is int for number in ids):
        raise SequoiaError(
            f"{source}: config.json: eagle_aux_hidden_state_layer_ids: found {ids!r}, expected a "
            "list of layers' numbers"
        )
    return tuple(ids)
