"""Loads a GGUF file's model through transformers, its weights unpacked into an ordinary dtype.

Checks that transformers has understood all that the file says of the model: what it does not
know, it leaves out without a word. Knows the metadata's keys. Knows nothing of trees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sequoia_opt.engine.gguf_file import GgufHeader, check_model, read_header
from sequoia_opt.engine.gguf_layout import opened
from sequoia_opt.engine.torch.gguf_reading import quickly_read
from sequoia_opt.engine.torch.gguf_tokenizer import end_tokens_of
from sequoia_opt.errors import SequoiaError, one_line

INSTEAD = "use --engine llama.cpp"
ROPE_FACTORS = "rope_freqs.weight"  # a tensor that divides the rotary embedding's frequencies
LLAMA3_ROPE = {  # of all models that have such factors
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ALWAYS_TIED = ("falcon", "bloom")  # in transformers, whose files repeat the embedding as output
GEMMA_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the models with 27 billion weights
# What an architecture's metadata may say although transformers does not read it: keys that change
# no value, and keys whose value must be what the configuration has anyway.
HARMLESS = {
    "tensor_data_layout", "vocab_size", "rope.scaling.finetuned",
    "rope.scaling.original_context_length",  # a scaling has a type, or tensors
}  # fmt: skip
IMPLIED: dict[str, Callable[[Any], Any]] = {
    "attention.key_length": lambda config: _head_size(config),
    "attention.value_length": lambda config: _head_size(config),
    "rope.dimension_count": lambda config: _rotated(config),
    "rope.freq_base": lambda config: config.rope_parameters["rope_theta"],
    "rope.freq_base_swa": lambda config: config.rope_parameters["sliding_attention"]["rope_theta"],
    "rope.scaling.type": lambda config: "none",
    "attention.sliding_window": lambda config: config.sliding_window or 0,
    "attention.causal": lambda config: True,
    "attn_logit_softcapping": lambda config: config.attn_logit_softcapping,
    "final_logit_softcapping": lambda config: config.final_logit_softcapping,
    "attention.layer_norm_epsilon": lambda config: config.norm_eps,
    "expert_shared_feed_forward_length": lambda config: config.shared_expert_intermediate_size,
    "expert_feed_forward_length": lambda config: config.moe_intermediate_size,
    "use_parallel_residual": lambda config: config.use_parallel_residual,
}


def config_of(path: str) -> Any:
    """The configuration in transformers of a GGUF file's model.

    Raises:
        SequoiaError: the file cannot be read, or transformers does not know all of the model.
    """
    header = read_header(path)
    check_model(header)
    if header.layers > len(header.tensors):
        raise SequoiaError(
            f"{path}: {header.architecture}.block_count: found {header.layers}, expected at most "
            f"{len(header.tensors)} (the number of its tensors); download the file again"
        )
    if header.splits > 1:
        raise SequoiaError(
            f"{path}: transformers reads no model that is split into {header.splits} files; join "
            f"them with llama-gguf-split --merge, or {INSTEAD}"
        )
    try:
        with quickly_read(header):
            folder, name = _place(header)
            config = AutoConfig.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    except Exception as error:  # of many kinds: metadata may say anything
        raise SequoiaError(
            f"{path}: transformers cannot read the architecture {header.architecture!r} from a "
            f"GGUF file ({one_line(error)[:120]}); {INSTEAD}"
        ) from None
    _check_understood(header, config)
    _scale_rope(header, config)
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = _attention_scale(header, config)
    config.eos_token_id = end_tokens_of(header) or config.eos_token_id
    return config


def model_of(path: str, config: Any, dtype: torch.dtype, **options: Any) -> torch.nn.Module:
    """A GGUF file's model in host memory.

    Args:
        config: as `config_of` gives it.
        options: of transformers' `from_pretrained`.

    Raises:
        SequoiaError: the weights cannot be read, or do not belong to the configuration.
    """
    header = read_header(path)
    folder, name = _place(header)
    try:
        with quickly_read(header):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of many kinds: number types, shapes, names
        raise SequoiaError(
            f"{path}: transformers cannot load its weights ({type(error).__name__}: "
            f"{one_line(error)[:160]}); {INSTEAD}"
        ) from None
    model: torch.nn.Module
    model, info = loaded
    _check_complete(header, model, info)
    return model


def _place(header: GgufHeader) -> tuple[str, str]:
    """Folder and name of a file, as transformers wants them."""
    path = Path(header.path).absolute()
    return str(path.parent), path.name


def _check_understood(header: GgufHeader, config: Any) -> None:
    """Refuse a model of which transformers leaves out something that changes its output.

    Raises:
        SequoiaError: the metadata has a key that transformers does not read.
    """
    mappings: Any = GGUF_TO_TRANSFORMERS_MAPPING["config"]
    read = mappings.get(config.model_type.removesuffix("_text")) or mappings.get(
        header.architecture
    )
    if read is None:  # an architecture that transformers reads in another way, by code of its own
        return
    prefix = f"{header.architecture}."
    for key in header.fields:
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and read.get(name) is None and name not in HARMLESS:
            found = header.value(key, header.array(key))
            if not _is_implied(name, found, config):
                raise SequoiaError(
                    f"{header.path}: {key}: found {str(found)[:60]}, which transformers does not "
                    f"read from a GGUF file; {INSTEAD}"
                )


def _is_implied(name: str, found: Any, config: Any) -> bool:
    """Whether the configuration has a value anyway."""
    try:
        expected = IMPLIED[name](config)
        is_close = isinstance(found, float) and math.isclose(found, expected, rel_tol=1e-6)
    except (AttributeError, KeyError, TypeError):
        return False
    return is_close or bool(found == expected)


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rotated(config: Any) -> int:
    """How many numbers of a head the rotary embedding turns."""
    share = (config.rope_parameters or {}).get("partial_rotary_factor") or 1.0
    return int(_head_size(config) * share)


def _attention_scale(header: GgufHeader, config: Any) -> int:
    """What Gemma's attention divides by, squared, which the file does not say.

    llama.cpp knows it by the number of layers: the largest models take the width per head.
    """
    if header.layers == GEMMA_LARGEST.get(header.architecture):
        return config.hidden_size // config.num_attention_heads
    return _head_size(config)


def _scale_rope(header: GgufHeader, config: Any) -> None:
    """Set the scaling of the rotary embedding that a tensor of factors stands for.

    Raises:
        SequoiaError: it stands for a scaling that is not known here.
    """
    tensors = {tensor.name: tensor for tensor in header.tensors if tensor.name.startswith("rope_")}
    if not tensors:
        return
    usual, factors = dict(config.rope_parameters), tensors.get(ROPE_FACTORS)
    if factors is not None and len(tensors) == 1 and factors.type == 0:
        with opened(header.path) as content:
            end = factors.start + (factors.size or 0)
            divisors = torch.frombuffer(
                bytearray(content[factors.start : end]), dtype=torch.float32
            )
        exponents = torch.arange(0, 2 * len(divisors), 2) / (2 * len(divisors))
        frequencies = usual["rope_theta"] ** -exponents / divisors
        config.rope_parameters = usual | LLAMA3_ROPE | {"factor": float(divisors.max())}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        if scaled.shape == frequencies.shape and torch.allclose(scaled, frequencies, rtol=1e-4):
            return
    raise SequoiaError(
        f"{header.path}: {min(tensors)}: holds a scaling of the rotary embedding that transformers "
        f"does not read from a GGUF file; {INSTEAD}"
    )


def _check_complete(header: GgufHeader, model: torch.nn.Module, info: dict[str, Any]) -> None:
    """Refuse a model with weights that the file lacks, or without some that it has.

    Raises:
        SequoiaError: weights are missing or left over.
    """
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise SequoiaError(
            f"{header.path}: transformers finds no weights for {missing[0]} and "
            f"{len(missing) - 1} others; {INSTEAD}"
        )
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in header.tensors}
    in_file = header.parameters - sizes.get(ROPE_FACTORS, 0)
    if header.architecture in ALWAYS_TIED:
        in_file -= sizes.get("output.weight", 0)
    loaded = sum(parameter.numel() for parameter in model.parameters())
    if loaded != in_file:
        raise SequoiaError(
            f"{header.path}: transformers reads {loaded} of its {in_file} weights; {INSTEAD}"
        )
