"""Linear layers of a model on a CPU, their weights laid out once for the matrix kernels.

A forward of a few tokens is bound by reading the weights. oneDNN reads them from blocks of its
own layout at a cost that grows less from 1 token to 16 than from the plain layout, and a tree's
extra nodes cost less. A layer keeps its place in the model and its packed weights replace the
plain ones, layer by layer, so it takes no more memory, but for weights that an embedding shares,
which are then there twice; nothing is rounded. Knows nothing of attention or trees.
"""

from __future__ import annotations

import platform
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

# The layout is chosen for about that many rows; it serves all others too.
TYPICAL_ROWS = 8


class PackedLinear(nn.Linear):
    """A linear layer without gradients, its weights packed for oneDNN.

    Only `pack` makes one, of a plain layer, and `unpack` makes it plain again.

    Attributes:
        packed: the weights, in a layout that only oneDNN reads.
        weight: None, or the plain weights where another layer (an embedding) uses them too.
        number: what a compiled graph knows the layer by: it cannot hold a packed tensor.
    """

    packed: Tensor
    number: int

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., in_features] to [..., out_features]."""
        found: Tensor
        if torch.compiler.is_compiling():
            found = torch.ops.sequoia_opt.packed_linear(
                rows, self.bias, self.number, self.out_features
            )
        else:
            found = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return found

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """What is saved is the layer as it was, to the last bit."""
        if self.weight is None:
            destination[prefix + "weight"] = self.packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)


_layers: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
_numbers = count()


def _packed_linear(rows: Tensor, bias: Tensor | None, number: int, features: int) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(
        rows, _layers[number].packed, bias, "none", [], ""
    )
    return found


def _packed_linear_shape(rows: Tensor, bias: Tensor | None, number: int, features: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], features)


_library = torch.library.Library("sequoia_opt", "FRAGMENT")
_library.define("packed_linear(Tensor rows, Tensor? bias, int number, int features) -> Tensor")
_library.impl("packed_linear", _packed_linear, "CPU")
torch.library.register_fake("sequoia_opt::packed_linear", _packed_linear_shape, lib=_library)


def pack(model: nn.Module) -> None:
    """Pack the linear layers of a model where that pays; elsewhere nothing happens."""
    modules = list(model.modules())
    holders: dict[int, int] = {}
    for module in modules:
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for module in modules:
        if type(module) is nn.Linear and _packable(module):
            weight = module.weight
            layer: Any = module
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TYPICAL_ROWS)
            if holders[id(weight)] == 1:
                layer.weight = None
            if "number" not in vars(layer):  # packed again it is what it was: graphs stay valid
                layer.number = next(_numbers)
            layer.__class__ = PackedLinear
            _layers[layer.number] = layer


def unpack(model: nn.Module) -> None:
    """Undo `pack`."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            layer: Any = module
            if layer.weight is None:
                layer.weight = nn.Parameter(layer.packed.to_dense(), requires_grad=False)
            del layer.packed
            layer.__class__ = nn.Linear


def _packable(linear: nn.Linear) -> bool:
    """Whether oneDNN has a kernel for the layer, nothing hangs on it, and it is large enough."""
    weight = linear.weight
    own = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    # Quantised weights are tensors of their own kind, whatever dtype they name.
    if own or type(weight) is not nn.Parameter or weight.numel() < worth_packing(weight.dtype):
        return False
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def worth_packing(dtype: torch.dtype) -> int:
    """Below that many weights a call costs more than the layout saves.

    In float32 the plain layout is MKL's to multiply, Intel's own library: on others' processors
    it is the slower one throughout, on Intel's the faster one until a layer is large. There a
    model of 9 million weights in 84 layers took 2.0 ms a token with plain ones, 2.9 with packed.
    """
    return 2**20 if dtype == torch.float32 and on_intel() else 2**17


@cache
def on_intel() -> bool:
    """Whether this machine's processor is Intel's."""
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        described = platform.processor()
    return "GenuineIntel" in described
