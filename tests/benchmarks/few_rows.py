"""How fast kernels read weights for a few tokens: `python tests/benchmarks/few_rows.py`.

Multiplies rows with a model's matrices in float32, one after the other, and prints the rates in
GB/s: of SmolLM2-135M, which no cache holds, and of a model as small as the bundled target.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear

from sequoia_opt.engine.torch.onednn_linear import TYPICAL_ROWS, _summed

ROWS, ROUNDS = (1, 2, 3, 4, 6, 8, 12, 16), 7
Shapes = list[tuple[int, int]]
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
Products = Callable[[dict[int, Tensor]], list[Tensor]]


def shapes_of(layers: int, width: int, key_value: int, inner: int, vocabulary: int) -> Shapes:
    """The matrices of a model, [out_features, in_features] each."""
    attention = [(width, width), (key_value, width), (key_value, width), (width, width)]
    feed_forward = [(inner, width), (inner, width), (width, inner)]
    return (attention + feed_forward) * layers + [(vocabulary, width)]


MODELS = {
    "SmolLM2-135M": shapes_of(30, 576, 192, 1536, 49152),
    "as small as the bundled target": shapes_of(12, 256, 64, 768, 4096),
}


def rate(weights: list[Tensor], run: Callable[[], object]) -> float:
    """Median of some rounds, GB/s."""
    run()
    run()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return size / statistics.median(seconds) / 1e9


@torch.inference_mode()
def main() -> None:
    """Print a table for each model."""
    torch._dynamo.config.recompile_limit = len(ROWS)
    packed_product = torch.ops.mkldnn._linear_pointwise
    for name, shapes in MODELS.items():
        table = Table("rows", "linear", "oneDNN, packed", "sums, compiled", title=name)
        weights = [torch.randn(*shape) for shape in shapes]
        packed = [torch.ops.mkldnn._reorder_linear_weight(w, TYPICAL_ROWS) for w in weights]
        kernels = (
            lambda rows, weight, layer: linear(rows, weight),
            lambda rows, weight, layer: packed_product(rows, layer, None, "none", [], ""),
            lambda rows, weight, layer: _summed(rows, weight, None),
        )
        plain, packed_kernel, sums = (products(kernel, weights, packed) for kernel in kernels)
        runs = (plain, packed_kernel, torch.compile(sums, dynamic=True))
        for count in ROWS:
            rows = {width: torch.randn(count, width) for _, width in shapes}
            rates = [f"{rate(weights, partial(run, rows)):.1f}" for run in runs]
            table.add_row(str(count), *rates)
        Console().print(table)


def products(kernel: Kernel, weights: list[Tensor], packed: list[Tensor]) -> Products:
    """What multiplies rows, by width, with all weights."""

    def run(rows: dict[int, Tensor]) -> list[Tensor]:
        return [
            kernel(rows[weight.shape[1]], weight, layer)
            for weight, layer in zip(weights, packed, strict=True)
        ]

    return run


if __name__ == "__main__":
    main()
