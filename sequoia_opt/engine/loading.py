"""Brings one model from its folder or hub id onto the device, in each of the ways there are.

Whole, spread over several processes, with layers left in host memory or on disk, or made up from
its configuration. Knows nothing of pairs.
"""

from __future__ import annotations

import hashlib
import json
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
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.hub import cached_file

from sequoia_opt.engine.checkpoint import Checkpoint
from sequoia_opt.engine.offload import Offload, empty_model, place, random_model
from sequoia_opt.engine.runner import Runner
from sequoia_opt.engine.streaming import LayerStream
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.files import one_line

WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TOKENIZER_FILES = ("*token*", "vocab.*", "*.model")
GENERATION = "generation_config.json"
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
IGNORED_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        random_weights: made up from its configuration alone.
        offload: where layers stay that do not fit onto the device; None if all do.
        parts: processes that it is spread over.
    """

    device: torch.device
    dtype: torch.dtype
    random_weights: bool = False
    offload: Offload | None = None
    parts: int = 1

    def runner(self, source: str, config: Any) -> Runner:
        """A model, ready to run.

        Raises:
            SequoiaError: it cannot be loaded so, or not run on trees.
        """
        if self.random_weights:
            _check_dense(source, config)
        else:
            _check_weights(source)
        if self.offload is not None:
            model, stream = self._offloaded(source, config, self.offload)
            return Runner(model, source, stream)
        if self.random_weights:
            return Runner(_random_model(config, self.device, self.dtype), source)
        if self.parts > 1:
            _check_heads(source, config, self.parts)
        model = _load_model(source, self.dtype, self.parts > 1)
        return Runner(model if self.parts > 1 else model.to(self.device), source)

    def _offloaded(
        self, source: str, config: Any, offload: Offload
    ) -> tuple[torch.nn.Module, LayerStream | None]:
        """A model on the device, but for layers that do not fit, and what brings these in."""
        if offload.place == "cpu":
            made = self.random_weights
            whole = random_model(config, self.dtype) if made else _load_model(source, self.dtype)
            return whole, place(whole, self.device, offload)
        if getattr(config, "quantization_config", None):
            raise SequoiaError(
                f"{source}: quantised weights are not read from disk as they are; on a GPU use "
                "--offload cpu"
            )
        model: Any = empty_model(config, self.dtype)
        if cached_file(source, GENERATION, _raise_exceptions_for_missing_entries=False):
            model.generation_config = GenerationConfig.from_pretrained(source)
        return model, place(model, self.device, offload, Checkpoint(source))


def load_config(source: str) -> Any:
    """A model's configuration.

    Raises:
        SequoiaError: there is none, or it is not a decoder-only language model's.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise SequoiaError(f"{source}: no config.json; expected a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise SequoiaError(
                f"{source}: comes with code of its own, which is never run; only architectures "
                "that transformers knows are"
            ) from None
        raise SequoiaError(f"{source}: cannot be loaded ({one_line(error)[:200]})") from None
    kind = config.model_type
    if config.is_encoder_decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise SequoiaError(f"{source}: architecture {kind!r} is not a decoder-only language model")
    return config


def load_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """A model's tokenizer; None where its folder has none.

    Raises:
        SequoiaError: it cannot be loaded.
    """
    folder = Path(source)
    if folder.is_dir() and not any(f for p in TOKENIZER_FILES for f in folder.glob(p)):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SequoiaError(
            f"{source}: its tokenizer cannot be loaded ({one_line(error)[:200]})"
        ) from None
    return tokenizer


def fingerprint(source: str, config: Any, weights: bool = True) -> str:
    """Hash of the canonical config and of the weight files' index or header, 16 digits.

    Args:
        weights: whether there are any; else nothing of them is asked for.
    """
    canonical = {k: v for k, v in config.to_dict().items() if k not in IGNORED_CONFIG}
    digest = hashlib.sha256(json.dumps(canonical, sort_keys=True, default=str).encode())
    for name in WEIGHT_FILES if weights else ():
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            with open(path, "rb") as stream:
                start = stream.read(8)
                length = int.from_bytes(start, "little") if name == "model.safetensors" else 2**24
                digest.update(start + stream.read(min(length, 2**24)))
            break
    return digest.hexdigest()[:16]


def end_tokens(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """What ends a text, by the model's generation config, its config or the tokenizer."""
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    return frozenset()


def _check_weights(source: str) -> None:
    """Refuse a folder without weights."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise SequoiaError(f"{source}: no weights; expected model.safetensors in the folder")


def _check_heads(source: str, config: Any, parts: int) -> None:
    """Refuse to spread a model over processes that its heads cannot be shared out to."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    for name, count in (("heads", heads), ("key-value heads", shared)):
        if count % parts:
            raise SequoiaError(
                f"{source}: its {count} {name} cannot be shared out to {parts} processes; start "
                "a number that divides them"
            )


def _check_dense(source: str, config: Any) -> None:
    """Refuse to make up the weights of a model whose speed depends on what they are."""
    if getattr(config, "quantization_config", None):
        raise SequoiaError(
            f"{source}: quantised weights cannot be made up from a configuration; load them"
        )
    if (experts := _experts(config.to_dict())) > 1:
        raise SequoiaError(
            f"{source}: what a mixture of {experts} experts takes depends on its weights, which "
            "route the tokens; load them"
        )


def _experts(config: Any) -> int:
    """The most experts that a configuration, or a part of it, has."""
    if not isinstance(config, dict):
        return 0
    own = [int(np.max(config.get(name) or 0)) for name in EXPERTS]  # some have a list of them
    return max([*own, *map(_experts, config.values())])


def _load_model(source: str, dtype: torch.dtype, split: bool = False) -> torch.nn.Module:
    """A model in host memory, or a part of it on each process's device."""
    options = {"distributed_config": DistributedConfig(tp_plan="auto")} if split else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, trust_remote_code=False, **options
        )
        model: torch.nn.Module
        model, info = loaded
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise SequoiaError(
                f"{source}: weights are missing for {missing[0]} and {len(missing) - 1} others; "
                "config.json and the weights do not belong together"
            )
        return model
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise SequoiaError(f"{source}: cannot be loaded ({one_line(error)[:200]})") from None
    except UnpicklingError:
        raise SequoiaError(
            f"{source}: its weights are damaged, or hold code, which is never run; expected "
            "model.safetensors"
        ) from None
    except Exception as error:  # safetensors raises its own kind for a damaged file
        if type(error).__module__.startswith("safetensors") or "safetensor" in str(type(error)):
            raise SequoiaError(f"{source}: damaged weights ({one_line(error)[:200]})") from None
        raise


def _random_model(config: Any, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A model of that architecture, the same every time."""
    kept = torch.random.get_rng_state()
    torch.manual_seed(0)
    with device:
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    torch.random.set_rng_state(kept)
    return model


# A table of keys or a progress bar on a user's terminal is noise; what matters is raised.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
