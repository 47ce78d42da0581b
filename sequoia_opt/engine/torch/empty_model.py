"""Models made from their configuration alone: without weights, or with random ones.

Knows transformers' initialisation. Knows nothing of checkpoints or devices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sequoia_opt.engine.torch.layer_weights import decoder_layers, named_weights, set_weight


def experts_of(dtype: torch.dtype) -> dict[str, str]:
    """The option with which transformers runs a mixture's experts in this dtype.

    Its grouped kernels do not support float64; there the experts are computed one by one.
    """
    return {"experts_implementation": "eager"} if dtype == torch.float64 else {}


def empty_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """A model whose weights are on the meta device and take no memory.

    Tensors that follow from the configuration alone, like rotary frequencies, have their values.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, **experts_of(dtype))
    _initialize(model, dict(model.named_buffers()))
    return model.eval()


def random_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """A model of random weights in host memory, to measure its speed.

    Layers of the same shape share their weights, since drawing billions of numbers takes minutes.
    """
    model: Any = empty_model(config, dtype)
    first_of_shape: dict[Any, nn.Module] = {}
    twins = []
    for layer in decoder_layers(model)[1]:
        shapes = tuple((name, tensor.shape) for name, tensor in named_weights(layer).items())
        first = first_of_shape.setdefault(shapes, layer)
        if first is not layer:
            twins.append((layer, first))
    skipped = {id(tensor) for layer, _ in twins for tensor in named_weights(layer).values()}
    _initialize(model, {k: t for k, t in named_weights(model).items() if id(t) not in skipped})
    for layer, first in twins:
        for name, tensor in named_weights(first).items():
            set_weight(layer, name, tensor.detach())
    return model


def _initialize(model: Any, tensors: dict[str, Tensor]) -> None:
    """Give these weights and buffers memory and the values of a new model.

    Half-precision numbers are drawn in float32, which is faster on a CPU.
    """
    allocated = set()
    half_dtypes: dict[str, torch.dtype] = {}
    for name, tensor in tensors.items():
        if id(tensor) in allocated:
            continue
        dtype = tensor.dtype
        if dtype in (torch.bfloat16, torch.float16):
            half_dtypes[name] = dtype
            dtype = torch.float32
        set_weight(model, name, torch.empty_like(tensor, dtype=dtype, device="cpu"))
        allocated.add(id(tensor))
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model.initialize_weights()
    torch.random.set_rng_state(state)
    values = named_weights(model) | dict(model.named_buffers())
    for name, dtype in half_dtypes.items():
        set_weight(model, name, values[name].detach().to(dtype))
    model.tie_weights()
