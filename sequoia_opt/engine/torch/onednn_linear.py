"""Linear layers of a model on a CPU, for the few tokens of a step.

A forward pass of a few tokens is bound by reading the weights. oneDNN's matrix kernels read them in
blocks of a layout of their own, with which the time grows less from 1 token to 16, so a tree's
extra nodes cost less. `pack` replaces a model's linear layers one by one, so that it takes no more
memory, except for weights that an embedding shares, which exist twice then. On some CPUs compiled
graphs of a few tokens sum over the plain weights instead, see `summed_rows`. Packing rounds
nothing. Knows nothing of attention or trees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sequoia_opt.engine.cpu import is_amd, is_intel
from sequoia_opt.engine.torch.memory import free_bytes

# oneDNN chooses the layout for about this number of rows; it serves all other numbers too.
TYPICAL_ROWS = 8
# The most rows that pay, see `summed_rows`: where the weights are read from memory, and where they
# stay in the processor's cache, whose size is seldom known on rented machines.
SUMMED_ROWS, SUMMED_ROWS_CACHED = 6, 16
CACHED_BYTES = 2**26


class PackedLinear(nn.Linear):
    """A linear layer without gradients, its weights packed for oneDNN.

    Attributes:
        packed: the weights, in a layout that only oneDNN reads.
        weight: None, or the plain weights if another layer (an embedding) or sums use them too;
            for sums alone, in 16 bits where that was asked for and rounds none.
        number: by which a compiled graph finds the layer, since it cannot hold a packed tensor.
        summed: the most rows for which a compiled graph sums over the plain weights.
    """

    packed: Tensor

    def __init__(
        self,
        plain: nn.Linear,
        number: int,
        keep_weight: bool = False,
        summed: int = 0,
        narrow: bool = False,
    ) -> None:
        """Pack a plain layer, which loses its weights unless they are kept.

        Args:
            number: of this layer; the same each time that it is packed, so that graphs stay valid.
            keep_weight: for another layer that uses the weights too.
            summed: see `summed_rows`.
            narrow: see `pack`.
        """
        nn.Module.__init__(self)  # nn.Linear's would allocate plain weights
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.training = plain.training
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), TYPICAL_ROWS)
        kept = plain._parameters["weight"] if keep_weight or summed else None
        if narrow and summed and not keep_weight:
            kept = nn.Parameter(narrowed(plain.weight.detach()), requires_grad=False)
        self.register_parameter("weight", kept)
        self.register_parameter("bias", plain._parameters["bias"])
        self.number, self.summed = number, summed
        _layers[number] = self
        plain.register_parameter("weight", None)

    def unpack(self) -> nn.Linear:
        """The plain layer, to the last bit; this one loses its weights."""
        plain = _plain_of(self)
        if plain.weight is None or plain.weight.dtype != self.packed.dtype:
            plain.weight = nn.Parameter(self.packed.to_dense(), requires_grad=False)
        del self.packed
        return plain

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., in_features] to [..., out_features]."""
        output: Tensor
        if not torch.compiler.is_compiling():
            output = torch.ops.mkldnn._linear_pointwise(
                rows, self.packed, self.bias, "none", [], ""
            )
        elif _are_few(rows, self.summed):
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
        plain = self.weight
        if plain is None or plain.dtype != self.packed.dtype:
            plain = self.packed.to_dense()
        destination[prefix + "weight"] = plain  # first, as in a plain layer
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = plain if keep_vars else plain.detach()


class SummedLinear(nn.Linear):
    """A plain linear layer without gradients, where compiled graphs of a few rows sum.

    Attributes:
        summed: the most rows.
    """

    def __init__(self, plain: nn.Linear, summed: int) -> None:
        """Share a plain layer's weights."""
        nn.Module.__init__(self)  # nn.Linear's would allocate others
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.training, self.summed = plain.training, summed
        self.register_parameter("weight", plain._parameters["weight"])
        self.register_parameter("bias", plain._parameters["bias"])

    def unpack(self) -> nn.Linear:
        """A plain layer with the same weights."""
        return _plain_of(self)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., in_features] to [..., out_features]."""
        if torch.compiler.is_compiling() and _are_few(rows, self.summed):
            return _summed(rows, self.weight, self.bias)
        return super().forward(rows)


def _plain_of(layer: nn.Linear) -> nn.Linear:
    """A plain layer with the plain weights of another, None if it has none, and its bias."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.register_parameter("weight", layer._parameters["weight"])
    plain.register_parameter("bias", layer._parameters["bias"])
    plain.training = layer.training
    return plain


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


def pack(
    model: nn.Module, summed: int = 0, eager: Collection[str] = (), narrow: bool = False
) -> None:
    """Pack the linear layers of a model for which that pays, if any.

    Args:
        summed: the most rows that compiled graphs multiply by sums over plain float32 weights,
            which are kept for that; see `summed_rows`.
        eager: paths of layers that are in no graph.
        narrow: keep the plain weights of packed layers in 16 bits where that rounds none of them,
            and no other layer shares them.
    """
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    numbers: dict[str, int] = vars(model).setdefault("_packed_numbers", {})
    packed: dict[nn.Module, nn.Linear] = {}  # a layer that is used twice is packed once
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is not nn.Linear:
            continue
        rows = 0 if path in eager else summed
        if module not in packed and _packable(module):
            number = numbers.setdefault(path, next(_numbers))
            rows = rows if module.weight.dtype == torch.float32 else 0
            is_shared = uses[id(module.weight)] > 1
            packed[module] = PackedLinear(module, number, is_shared, rows, narrow)
        elif module not in packed and rows and _holds_float32(module):
            packed[module] = SummedLinear(module, rows)
        if module in packed:
            model.set_submodule(path, packed[module])


def unpack(model: nn.Module) -> None:
    """Undo `pack`."""
    plain: dict[nn.Module, nn.Linear] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, PackedLinear | SummedLinear):
            if module not in plain:
                plain[module] = module.unpack()
            model.set_submodule(path, plain[module])


def pack_for_graphs(model: nn.Module, eager: Collection[str] = (), narrow: bool = False) -> int:
    """Pack a model again, as its compiled graphs need it; see `summed_rows`.

    Args:
        eager, narrow: see `pack`.

    Returns:
        The most rows that they multiply by sums.
    """
    rows = summed_rows(model, eager)
    if rows:
        unpack(model)
        pack(model, rows, eager, narrow)
    return rows


def narrowed(weight: Tensor) -> Tensor:
    """Weights in 16 bits if that rounds none of them; else as they are.

    Many files have them in 16 bits. Sums over these multiply the same numbers, and read half as
    much memory.
    """
    for dtype in (torch.float16, torch.bfloat16):
        narrow = weight.to(dtype)
        if torch.equal(narrow.to(weight.dtype), weight):
            return narrow
    return weight


def summed_rows(model: nn.Module, eager: Collection[str] = ()) -> int:
    """The most rows that compiled graphs should multiply by sums over plain weights; 0 for none.

    Code that torch generates for a sum over each row of the weights reads them as fast as memory
    gives them, and reads them once for several rows. On two AMD EPYC cores (Zen 4, in GB/s of
    SmolLM2-135M's layers in float32) it reads 25 for one row, 24 for two, 25 for three, 23 for
    four, 19 for six and 15 for eight; oneDNN's kernel 19, 18, 22, 24, 24 and 20, MKL's 12, 7, 6, 8,
    9 and 10. In whole forward passes it is faster up to six rows, and where the weights stay in a
    cache up to sixteen, since there the other kernels' calls take most of the time. The plain
    weights take up to as much memory again, so it does not pay where less than twice that is free.
    `tests/benchmarks/few_rows.py` prints such rates.

    Args:
        model: packed.
        eager: see `pack_for_graphs`.
    """
    layers = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path not in eager and _holds_float32(module)
    ]
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    free = free_bytes(torch.device("cpu"))
    added = _bytes([layer for layer in packed if layer.weight is None])
    if not layers or not is_amd() or (free is not None and free < 2 * added):
        return 0
    return SUMMED_ROWS if _bytes(layers) > CACHED_BYTES else SUMMED_ROWS_CACHED


def graph_sizes(summed: int) -> Sequence[int]:
    """Numbers of rows that together compile all graphs of a model; the last of each kind serves
    any larger number.

    Args:
        summed: see `summed_rows`.
    """
    return (1, 2, summed + 1) if summed else (1, 2)


def _bytes(layers: Sequence[nn.Linear]) -> int:
    """What the layers' float32 weights take, once."""
    return sum(layer.in_features * layer.out_features * 4 for layer in layers)


def _are_few(rows: Tensor, most: int) -> bool:
    """Whether rows [1, tokens, features] are of one text, and not more than that."""
    return most > 0 and rows.dim() == 3 and rows.shape[0] == 1 and rows.shape[1] <= most


def _summed(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows [..., in_features] to [..., out_features], as sums over products.

    The rows become a buffer of their own: else the generated code would compute what they come
    from again for each output. Its outer loop is over the outputs, so that each weight is read from
    memory once.
    """
    count, width = rows.shape[:-1].numel(), rows.shape[-1]
    buffer = rows.reshape(-1).as_strided([count, width], [width, 1])
    output = (weight[:, None] * buffer).sum(-1).t()
    if bias is not None:
        output = output + bias
    return output.reshape(*rows.shape[:-1], len(weight))


def _holds_float32(linear: nn.Linear) -> bool:
    """Whether the layer, plain or packed, has float32 weights that compiled graphs can sum over."""
    if isinstance(linear, PackedLinear):
        return linear.packed.dtype == torch.float32
    return _is_plain(linear) and linear.weight.dtype == torch.float32


def _is_plain(linear: nn.Linear) -> bool:
    """Whether the layer has weights on the CPU that nobody has changed, nor its forward method."""
    weight = linear.weight
    changed = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    # Quantised weights are tensors of a class of their own, whatever dtype they name.
    return not changed and type(weight) is nn.Parameter and weight.device.type == "cpu"


def _packable(linear: nn.Linear) -> bool:
    """Whether oneDNN has a kernel for the layer, and it is large enough."""
    weight = linear.weight
    if not _is_plain(linear) or weight.numel() < worth_packing(weight.dtype):
        return False
    if not torch.backends.mkldnn.is_available():
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
