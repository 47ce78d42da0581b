"""A model's decoder layers, their weights by name, and how a layer's weights lie in one buffer.

Knows names, sizes and bytes. Knows nothing of which layers stay on the device, nor of when they
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sequoia_opt.errors import SequoiaError

ALIGNMENT = 256  # bytes, of each tensor in a buffer; the same as CUDA's own allocations


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The prefix of the names of a model's layers, and the layers.

    Raises:
        SequoiaError: the model has no list of layers.
    """
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return f"{name}.", module
    raise SequoiaError(f"architecture {config.model_type!r} has no list of layers to offload")


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and the buffers that are saved with them; tied ones under each of their names.

    Raises:
        SequoiaError: quantised weights of a kind that cannot be moved as bytes.
    """
    weights: dict[str, Tensor] = dict(module.state_dict(keep_vars=True))
    for name, tensor in weights.items():
        if type(tensor) not in (Tensor, nn.Parameter) and not _wraps_tensors(tensor):
            raise SequoiaError(
                f"{name} is a {type(tensor).__name__}, quantised weights that cannot be offloaded; "
                "load the model without --offload, or in another format"
            )
    return weights


def set_weight(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Replace a parameter or buffer.

    Returns:
        The new parameter or buffer, which can be set under other names too.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf not in owner._parameters:
        owner._buffers[leaf] = tensor
        return tensor
    if not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    owner._parameters[leaf] = tensor
    return tensor


def plain_tensors(tensor: Tensor, name: str) -> dict[str, Tensor]:
    """The plain tensors that hold a weight's bytes, by name.

    That is the weight itself, or, for a quantised weight, the tensors that it wraps, like
    "mlp.up_proj.weight.scale".
    """
    if not _wraps_tensors(tensor):
        return {name: tensor}
    plain: dict[str, Tensor] = {}
    for inner in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
        plain |= plain_tensors(getattr(tensor, inner), f"{name}.{inner}")
    return plain


def with_plain_tensors(tensor: Tensor, plain: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight of the same kind as `tensor` that holds other plain tensors.

    Args:
        plain: these tensors, by the names that `plain_tensors` gives for `name`.
    """
    if not _wraps_tensors(tensor):
        return plain[name]
    names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = {
        part: with_plain_tensors(getattr(tensor, part), plain, f"{name}.{part}") for part in names
    }
    kind: Any = type(tensor)
    wrapper: Tensor = kind.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return wrapper


def _wraps_tensors(tensor: Tensor) -> bool:
    """Whether it is a tensor subclass that names the tensors it wraps, by torch's protocol."""
    return hasattr(type(tensor), "__tensor_flatten__")


@dataclass(frozen=True)
class Span:
    """The bytes of one plain tensor in a layer's buffer.

    Attributes:
        name: in the layer, like "mlp.up_proj.weight".
        offset: of the first byte.
    """

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.offset + self.shape.numel() * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """The tensor in a layer's buffer."""
        return buffer[self.offset : self.end].view(self.dtype).view(self.shape)


class Layout:
    """How a layer's weights lie in one buffer, one after another.

    Attributes:
        names: of the layer's parameters and saved buffers.
        spans: of the plain tensors that hold their bytes.
        size: bytes of the buffer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.spans: list[Span] = []
        self.size = 0
        weights = named_weights(layer)
        self.names = list(weights)
        for weight, tensor in weights.items():
            for name, plain in plain_tensors(tensor, weight).items():
                span = Span(name, plain.dtype, plain.shape, self.size)
                self.spans.append(span)
                self.size = span.end + -span.end % ALIGNMENT

    def bind(self, layer: nn.Module, buffer: Tensor) -> None:
        """Make the layer use the weights in this buffer."""
        plain = {span.name: span.view(buffer) for span in self.spans}
        for name, tensor in named_weights(layer).items():
            set_weight(layer, name, with_plain_tensors(tensor, plain, name))

    def fill(self, buffer: Tensor, layer: nn.Module) -> None:
        """Copy the layer's weights into this buffer."""
        plain: dict[str, Tensor] = {}
        for name, tensor in named_weights(layer).items():
            plain |= plain_tensors(tensor, name)
        for span in self.spans:
            span.view(buffer).copy_(plain[span.name])
