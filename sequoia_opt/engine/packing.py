"""Linear layers of a model on a CPU, their weights laid out once for the matrix kernels.

A forward of a few tokens is bound by reading the weights. oneDNN reads them from blocks of its
own layout at a cost that hardly grows from 1 token to 16; from the plain layout it grows by
half, which is what a tree's extra nodes then cost. Packing replaces the weights, so it takes
no more memory, and nothing is rounded. Knows nothing of attention or trees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Below that many weights a call costs more than the layout saves.
WORTH_PACKING = 2**17
# The layout is chosen for about that many rows; it serves all others too.
TYPICAL_ROWS = 8


class PackedLinear(nn.Module):
    """A linear layer without gradients, its weights packed for oneDNN.

    Attributes:
        packed: the weights, in a layout that only oneDNN reads.
        shared: the plain weights, where another layer (an embedding) uses them too.
    """

    def __init__(self, linear: nn.Linear, shared: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_ROWS)
        self.shared = linear.weight if shared else None
        self.bias = linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., in_features] to [..., out_features]."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.packed, self.bias, "none", [], ""
        )
        return found

    def plain(self) -> nn.Linear:
        """The layer as it was, to the last bit."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = (
            nn.Parameter(self.packed.to_dense(), requires_grad=False)
            if self.shared is None
            else self.shared
        )
        linear.bias = self.bias
        return linear


def pack(model: nn.Module) -> None:
    """Pack the linear layers of a model where that pays; elsewhere nothing happens."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    for parent, name, module in _children(model):
        if type(module) is nn.Linear and _packable(module):
            shared = holders[id(module.weight)] > 1
            setattr(parent, name, PackedLinear(module, shared))


def unpack(model: nn.Module) -> None:
    """Undo `pack`."""
    for parent, name, module in _children(model):
        if isinstance(module, PackedLinear):
            setattr(parent, name, module.plain())


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every module below `model`, with its parent and the name it has there."""
    return [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
    ]


def _packable(linear: nn.Linear) -> bool:
    """Whether oneDNN has a kernel for the layer, nothing hangs on it, and it is large enough."""
    weight = linear.weight
    hooks = linear._forward_hooks or linear._forward_pre_hooks
    kernels = torch.backends.mkldnn.is_available()
    supported = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return (
        weight.device.type == "cpu"
        and kernels
        and supported
        and not hooks
        and weight.numel() >= WORTH_PACKING
    )
