"""Loads one model from its folder, hub id or GGUF file onto the device.

The model is whole, or spread over several processes, or leaves layers in host memory or on disk,
or has random weights made from its configuration. Knows nothing of pairs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sequoia_opt.engine.gguf_file import fingerprint as gguf_fingerprint
from sequoia_opt.engine.gguf_file import is_gguf, read_header
from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.engine.torch.empty_model import empty_model, experts_of, random_model
from sequoia_opt.engine.torch.gguf_model import config_of as gguf_config
from sequoia_opt.engine.torch.gguf_model import model_of as gguf_model
from sequoia_opt.engine.torch.gguf_tokenizer import tokenizer_of as gguf_tokenizer
from sequoia_opt.engine.torch.layer_stream import LayerStream
from sequoia_opt.engine.torch.offload import Offload, place_model
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.engine.torch.weight_files import (
    PICKLED,
    PICKLED_INDEX,
    SAFE,
    SAFE_INDEX,
    content_digest,
    model_file,
    tensor_count,
    weight_files,
)
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.files.reading import check_pointer

TOKENIZER_FILES = ("*token*", "vocab.*", "*.model")
GENERATION = "generation_config.json"
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
MOST_LAYERS = 4096  # of a model whose weights do not say how many it has
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
IGNORED_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        random_weights: make the weights up from the configuration alone.
        offload: where layers stay that do not fit the device; None if all of them fit.
        parts: number of processes that the model is spread over.
    """

    device: torch.device
    dtype: torch.dtype
    random_weights: bool = False
    offload: Offload | None = None
    parts: int = 1

    def runner(self, source: str, config: Any) -> Runner:
        """A model, ready to run.

        Raises:
            SequoiaError: the model cannot be loaded in this way, or cannot be run on trees.
        """
        try:
            return self._runner(source, config)
        except (torch.OutOfMemoryError, MemoryError):
            raise SequoiaError(
                f"{source}: does not fit into the memory of the {self.device.type}; use a smaller "
                "dtype, another device, a smaller model or --offload"
            ) from None

    def _runner(self, source: str, config: Any) -> Runner:
        """See `runner`; may run out of memory."""
        if self.random_weights:
            _check_dense(source, config)
        if self.parts > 1 and is_gguf(source):
            raise SequoiaError(
                f"{source}: a GGUF file is not spread over processes; run one process, or use a "
                "Hugging Face model folder"
            )
        if self.offload is not None:
            model, stream = self._offloaded(source, config, self.offload)
            return Runner(model, source, stream)
        if self.random_weights:
            return Runner(_random_model(config, self.device, self.dtype), source)
        if self.parts > 1:
            _check_heads(source, config, self.parts)
        model = _load_model(source, config, self.dtype, self.parts > 1)
        return Runner(model if self.parts > 1 else model.to(self.device), source)

    def _offloaded(
        self, source: str, config: Any, offload: Offload
    ) -> tuple[torch.nn.Module, LayerStream | None]:
        """A model of which only some layers are on the device, and the stream of the others."""
        if offload.place == "cpu":
            made = self.random_weights
            whole = (
                random_model(config, self.dtype)
                if made
                else _load_model(source, config, self.dtype)
            )
            return whole, place_model(whole, self.device, offload)
        if is_gguf(source):
            raise SequoiaError(
                f"{source}: layers are streamed from safetensors files only; on a GPU use "
                "--offload cpu, or use --engine llama.cpp, which maps the file into memory"
            )
        if getattr(config, "quantization_config", None):
            raise SequoiaError(
                f"{source}: quantised weights cannot be streamed from disk; on a GPU use "
                "--offload cpu"
            )
        model: Any = empty_model(config, self.dtype)
        if model_file(source, GENERATION) is not None:
            try:
                model.generation_config = GenerationConfig.from_pretrained(source)
            except (OSError, ValueError, TypeError) as error:
                raise SequoiaError(
                    f"{source}: its {GENERATION} cannot be used ({one_line(error)[:200]})"
                ) from None
        return model, place_model(model, self.device, offload, Checkpoint(source))


def load_config(source: str, weights: bool = True) -> Any:
    """A model's configuration.

    Args:
        weights: whether weights will be loaded too; then the configuration must fit them.

    Raises:
        SequoiaError: there is none, or the model is not a decoder-only language model.
    """
    if is_gguf(source):
        config = gguf_config(source)
        _check_decoder(source, config)
        return config
    file = Path(source) / "config.json"
    if Path(source).is_dir():
        if not file.is_file():
            raise SequoiaError(f"{source}: no config.json; expected a Hugging Face model folder")
        check_pointer(file)
    try:
        written, _ = PreTrainedConfig.get_config_dict(source)
        _check_layers(source, written, MOST_LAYERS)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except SequoiaError:
        raise
    except Exception as error:  # of many kinds: a model's configuration may be anything
        raise SequoiaError(f"{source}: {_why_no_config(source, error)}") from None
    _check_decoder(source, config)
    if weights and (tensors := tensor_count(source)) is not None:
        _check_layers(source, written, tensors)
    return config


def _check_decoder(source: str, config: Any) -> None:
    """Refuse a model that does not continue text."""
    kind = config.model_type
    if config.is_encoder_decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise SequoiaError(f"{source}: architecture {kind!r} is not a decoder-only language model")


def _why_no_config(source: str, error: Exception) -> str:
    """Why a configuration cannot be used, and what to do."""
    if "trust_remote_code" in str(error):
        return (
            "comes with code of its own, which is never run; use an architecture that transformers "
            "knows"
        )
    if not Path(source).is_dir():
        return f"cannot be loaded: no folder of that name, and as a hub id: {_reason(error)}"
    return f"its config.json cannot be used ({_reason(error)})"


def _check_layers(source: str, config: Any, most: int) -> None:
    """Refuse a number of layers that no model has: building them would fill the memory.

    Args:
        config: the configuration as it is written, or a part of it.
        most: the most layers that it may have; each has at least one tensor.
    """
    if not isinstance(config, dict):
        return
    for name in LAYER_COUNTS:
        count = config.get(name)
        if isinstance(count, int | float) and count > most:
            has_weights = most != MOST_LAYERS
            reason = "the number of its tensors" if has_weights else "no model has more"
            raise SequoiaError(
                f"{source}: config.json: {name}: found {count}, expected at most {most} ({reason})"
            )
    for part in config.values():
        _check_layers(source, part, most)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """A model's tokenizer; None where its folder has none.

    Raises:
        SequoiaError: the tokenizer cannot be loaded.
    """
    if is_gguf(source):
        return gguf_tokenizer(read_header(source))
    folder = Path(source)
    if folder.is_dir():
        files = [file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)]
        if not files:
            return None
        for file in files:
            if file.is_file():
                check_pointer(file)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except Exception as error:  # of many kinds, the tokenizers library's own among them
        if isinstance(error, ImportError):
            advice = "install what it needs"
        else:
            advice = "download the tokenizer's files again"
        raise SequoiaError(
            f"{source}: its tokenizer cannot be loaded ({_reason(error)}); {advice}"
        ) from None
    return tokenizer


def fingerprint(source: str, config: Any, weights: bool = True) -> str:
    """A fingerprint that tells models apart.

    Its first part is a hash of the configuration and of the weight files' index or header. Its
    second part is a hash of the files' sizes and of samples of their content.

    Args:
        weights: whether the model has weights; without them there is no second part.

    Returns:
        16 hexadecimal digits, or twice 16 with a hyphen between; see `names.same_fingerprint`.
        That of a GGUF file is the same in every engine.
    """
    if is_gguf(source):
        return gguf_fingerprint(read_header(source))
    canonical = {k: v for k, v in config.to_dict().items() if k not in IGNORED_CONFIG}
    digest = hashlib.sha256(json.dumps(canonical, sort_keys=True, default=str).encode())
    if not weights:
        return digest.hexdigest()[:16]
    for name in (SAFE_INDEX, SAFE, PICKLED_INDEX, PICKLED):
        path = model_file(source, name)
        if path is not None:
            with open(path, "rb") as stream:
                start = stream.read(8)
                length = int.from_bytes(start, "little") if name == SAFE else 2**24
                digest.update(start + stream.read(min(length, 2**24)))
            break
    return f"{digest.hexdigest()[:16]}-{content_digest(weight_files(source))}"


def end_tokens(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """The end-of-text tokens, from the model's generation config, its config or the tokenizer."""
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        tokens = getattr(holder, "eos_token_id", None)
        if tokens is not None:
            return frozenset(tokens if isinstance(tokens, list) else [tokens])
    return frozenset()


def _check_heads(source: str, config: Any, parts: int) -> None:
    """Refuse to spread a model over more processes than its heads can be divided among."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    for name, count in (("heads", heads), ("key-value heads", shared)):
        if count % parts:
            raise SequoiaError(
                f"{source}: its {count} {name} cannot be divided among {parts} processes; start "
                "a number that divides them"
            )


def _check_dense(source: str, config: Any) -> None:
    """Refuse to make up the weights of a model whose speed depends on their values."""
    if getattr(config, "quantization_config", None):
        raise SequoiaError(
            f"{source}: quantised weights cannot be made up from a configuration; load the model"
        )
    if (experts := _experts(config.to_dict())) > 1:
        raise SequoiaError(
            f"{source}: the speed of a mixture of {experts} experts depends on its weights, which "
            "route the tokens; load the model with its weights"
        )


def _experts(config: Any) -> int:
    """The largest number of experts in a configuration, or in a part of it."""
    if not isinstance(config, dict):
        return 0
    counts = [int(np.max(config.get(name) or 0)) for name in EXPERTS]  # some are lists, by layer
    return max([*counts, *map(_experts, config.values())])


def _load_model(
    source: str, config: Any, dtype: torch.dtype, split: bool = False
) -> torch.nn.Module:
    """A model in host memory; if `split`, a part of it on each process's device."""
    if is_gguf(source):
        return gguf_model(source, config, dtype, **experts_of(dtype))
    options: dict[str, Any] = {"distributed_config": DistributedConfig(tp_plan="auto")}
    weight_files(source)  # raises errors that the user can act on
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            **experts_of(dtype),
            **(options if split else {}),
        )
    except (SequoiaError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of many kinds: safetensors' own, quantisers', pickle's
        raise SequoiaError(f"{source}: {_why_not_loaded(source, error)}") from None
    model: torch.nn.Module
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise SequoiaError(
            f"{source}: weights are missing for {missing[0]} and {len(missing) - 1} others; "
            "config.json and the weights do not belong together"
        )
    return model


def _why_not_loaded(source: str, error: Exception) -> str:
    """Why weights cannot be loaded, and what to do."""
    reason = _reason(error)
    if isinstance(error, UnpicklingError) or "weights_only" in str(error):
        return "its weights are damaged, or hold code, which is never run; expected " + SAFE
    if type(error).__module__.startswith("safetensors") or "safetensor" in str(type(error)):
        return f"damaged weights ({reason}); download the file again"
    if isinstance(error, ImportError):
        return f"cannot be loaded, since a package is missing ({reason})"
    if "size mismatch" in str(error) or "ignore_mismatched_sizes" in str(error):
        return f"config.json and the weights do not belong together ({reason})"
    quantised = PreTrainedConfig.get_config_dict(source)[0].get("quantization_config")
    if isinstance(quantised, dict):
        method = quantised.get("quant_method", "an unnamed method")
        return f"its weights, quantised by {method}, cannot be loaded on this machine ({reason})"
    return f"cannot be loaded ({reason})"


def _reason(error: Exception) -> str:
    """Another library's message, shortened; with the exception's name where it is unusual."""
    if isinstance(error, OSError | ValueError | RuntimeError | ImportError):
        return one_line(error)[:200]
    return f"{type(error).__name__}: {one_line(error)[:200]}"


def _random_model(config: Any, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A model of that architecture with random weights, the same every time."""
    random_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    with device:
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False, **experts_of(dtype)
        )
    torch.random.set_rng_state(random_state)
    return model


# A table of keys or a progress bar on the user's terminal is noise; errors are raised.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
