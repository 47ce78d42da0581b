"""Linear layers of a model on a CPU, their weights laid out once for the matrix kernels.

A forward of a few tokens is bound by reading the weights. oneDNN reads them from blocks of its
own layout at a cost that grows less from 1 token to 16 than from the plain layout, and a tree's
extra nodes cost less. Packing replaces the weights, layer by layer, so it takes no more memory,
but for weights that an embedding shares, which are then there twice; nothing is rounded. Knows
nothing of attention or trees.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

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

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """What is saved is the layer as it was."""
        self.plain()._save_to_state_dict(destination, prefix, keep_vars)

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
    places = _places(model)
    uses = Counter(id(getattr(parent, name)) for parent, name in places)
    for parent, name in places:
        module = getattr(parent, name)
        if type(module) is nn.Linear and uses[id(module)] == 1 and _packable(module):
            setattr(parent, name, PackedLinear(module, shared=holders[id(module.weight)] > 1))


def unpack(model: nn.Module) -> None:
    """Undo `pack`."""
    for parent, name in _places(model):
        module = getattr(parent, name)
        if isinstance(module, PackedLinear):
            setattr(parent, name, module.plain())


def _places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where modules hang: each parent and the names there. Holds no layer alive."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, module in parent._modules.items()
        if module is not None
    ]


def _packable(linear: nn.Linear) -> bool:
    """Whether oneDNN has a kernel for the layer, nothing hangs on it, and it is large enough."""
    weight = linear.weight
    own = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    # Quantised weights are tensors of their own kind, whatever dtype they name.
    if own or type(weight) is not nn.Parameter or weight.numel() < WORTH_PACKING:
        return False
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
