"""Linear layers of a model on a CPU whose weights are packed for oneDNN's matrix kernels.

A forward pass of a few tokens is bound by reading the weights. oneDNN reads them in blocks of a
layout of its own, with which the time grows less from 1 token to 16, so a tree's extra nodes cost
less. `pack` replaces a model's linear layers one by one, so that it takes no more memory, except
for weights that an embedding shares, which exist twice then. Packing rounds nothing. Knows nothing
of attention or trees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sequoia_opt.engine.cpu import is_amd, is_intel
from sequoia_opt.engine.torch.memory import free_bytes

# oneDNN chooses the layout for about this number of rows; it serves all other numbers too.
TYPICAL_ROWS = 8
LARGER_THAN_CACHES = 2**27  # bytes of weights that each forward pass reads from memory


class PackedLinear(nn.Linear):
    """A linear layer without gradients, its weights packed for oneDNN.

    Attributes:
        packed: the weights, in a layout that only oneDNN reads.
        weight: None, or the plain weights if another layer (an embedding) or `sums` uses them too.
        number: by which a compiled graph finds the layer, since it cannot hold a packed tensor.
        sums: whether the compiled graph of a single row sums over the plain weights.
    """

    packed: Tensor

    def __init__(self, plain: nn.Linear, number: int, keep_weight: bool, sums: bool) -> None:
        """Pack a plain layer, which loses its weights unless they are kept.

        Args:
            number: of this layer; the same each time that it is packed, so that graphs stay valid.
            keep_weight: for another layer that uses the weights too.
            sums: see `sums_pay`.
        """
        nn.Module.__init__(self)  # nn.Linear's would allocate plain weights
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.training = plain.training
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), TYPICAL_ROWS)
        kept = plain._parameters["weight"] if keep_weight or sums else None
        self.register_parameter("weight", kept)
        self.register_parameter("bias", plain._parameters["bias"])
        self.number, self.sums = number, sums
        _layers[number] = self
        plain.register_parameter("weight", None)

    def unpack(self) -> nn.Linear:
        """The plain layer, to the last bit; this one loses its weights."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.register_parameter("weight", self._parameters["weight"])
        plain.register_parameter("bias", self._parameters["bias"])
        if plain.weight is None:
            plain.weight = nn.Parameter(self.packed.to_dense(), requires_grad=False)
        plain.training = self.training
        del self.packed
        return plain

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., in_features] to [..., out_features]."""
        output: Tensor
        if not torch.compiler.is_compiling():
            output = torch.ops.mkldnn._linear_pointwise(
                rows, self.packed, self.bias, "none", [], ""
            )
        elif self.sums and rows.shape[:-1].numel() == 1:
            output = _summed(rows, self.weight, self.bias)
        else:
            output = torch.ops.sequoia_opt.packed_linear(
                rows, self.bias, self.number, self.out_features
            )
        return output

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the plain weights, to the last bit."""
        if self.weight is None:
            destination[prefix + "weight"] = self.packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)


_layers: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
_numbers = count()


def _packed_linear(rows: Tensor, bias: Tensor | None, number: int, features: int) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(
        rows, _layers[number].packed, bias, "none", [], ""
    )
    return output


def _packed_linear_shape(rows: Tensor, bias: Tensor | None, number: int, features: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], features)


_library = torch.library.Library("sequoia_opt", "FRAGMENT")
_library.define("packed_linear(Tensor rows, Tensor? bias, int number, int features) -> Tensor")
_library.impl("packed_linear", _packed_linear, "CPU")
torch.library.register_fake("sequoia_opt::packed_linear", _packed_linear_shape, lib=_library)


def pack(model: nn.Module, with_sums: bool = False) -> None:
    """Pack the linear layers of a model for which that pays, if any.

    Args:
        with_sums: also keep plain float32 weights for graphs of a single row, see `sums_pay`.
    """
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    numbers: dict[str, int] = vars(model).setdefault("_packed_numbers", {})
    packed: dict[nn.Module, PackedLinear] = {}  # a layer that is used twice is packed once
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is not nn.Linear:
            continue
        if module not in packed and _packable(module):
            number = numbers.setdefault(path, next(_numbers))
            sums = with_sums and module.weight.dtype == torch.float32
            packed[module] = PackedLinear(module, number, uses[id(module.weight)] > 1, sums)
        if module in packed:
            model.set_submodule(path, packed[module])


def unpack(model: nn.Module) -> None:
    """Undo `pack`."""
    plain: dict[nn.Module, nn.Linear] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, PackedLinear):
            if module not in plain:
                plain[module] = module.unpack()
            model.set_submodule(path, plain[module])


def sums_pay(model: nn.Module) -> bool:
    """Whether compiled graphs should multiply a single row by sums over plain weights.

    Code that torch generates for a sum over each row of the weights reads them as fast as memory
    gives them. On two AMD EPYC cores (Zen 4, SmolLM2-135M's layers in float32) it reads 26 GB/s,
    oneDNN's kernel 16, MKL's 11, and a plain sum over all weights 27. From 3 rows on oneDNN's is as
    fast or faster, and so it is where the weights stay in a cache. The plain weights take as much
    memory again, so it does not pay where less than twice that is free. The rates are those of
    `tests/benchmarks/single_row.py`.

    Args:
        model: packed.
    """
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    layers = [layer for layer in layers if layer.packed.dtype == torch.float32]
    if not is_amd() or _bytes(layers) < LARGER_THAN_CACHES:
        return False
    free = free_bytes(torch.device("cpu"))
    return free is None or free >= 2 * _bytes([layer for layer in layers if layer.weight is None])


def _bytes(layers: Sequence[PackedLinear]) -> int:
    """What the layers' weights take, once."""
    return sum(layer.packed.numel() * layer.packed.element_size() for layer in layers)


def _summed(row: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A single row [..., in_features] to [..., out_features], as sums over products.

    The row becomes a buffer of its own: else the generated code would compute what it comes from
    again for each output.
    """
    buffer = row.reshape(-1).as_strided([row.shape[-1]], [1])
    output = (weight * buffer).sum(-1)
    if bias is not None:
        output = output + bias
    return output.view(*row.shape[:-1], len(weight))


def _packable(linear: nn.Linear) -> bool:
    """Whether oneDNN has a kernel for the layer, it is large enough, and nobody has changed its
    forward method."""
    weight = linear.weight
    changed = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    # Quantised weights are tensors of a class of their own, whatever dtype they name.
    if changed or type(weight) is not nn.Parameter:
        return False
    if weight.numel() < worth_packing(weight.dtype):
        return False
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def worth_packing(dtype: torch.dtype) -> int:
    """The smallest number of weights for which the layout saves more than the call costs.

    In float32 MKL multiplies the plain layout. It is Intel's own library: on other CPUs it is
    always slower than oneDNN, on Intel's it is faster except for large layers. There a model of 9
    million weights in 84 layers took 2.0 ms for a token with plain layers and 2.9 ms with packed
    ones.
    """
    return 2**20 if dtype == torch.float32 and is_intel() else 2**17
