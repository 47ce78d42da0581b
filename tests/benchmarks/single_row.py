"""How fast kernels read weights for a single token: `python tests/benchmarks/single_row.py`.

Multiplies a row with SmolLM2-135M's matrices in float32, one after the other, so that no cache
holds them, and prints the rates beside that of a plain sum over all weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

LAYERS, WIDTH, INNER, VOCABULARY, TYPICAL_ROWS = 30, 576, 1536, 49152, 8
SHAPES = [(576, WIDTH), (192, WIDTH), (192, WIDTH), (576, WIDTH)]
SHAPES += [(INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
ROUNDS = 7


def report(name: str, weights: list[Tensor], run: Callable[[], object]) -> None:
    """Print the median rate of some rounds."""
    run()
    run()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    median = statistics.median(seconds)
    print(f"{name:24} {1000 * median:6.2f} ms  {size / median / 1e9:5.1f} GB/s", flush=True)


@torch.inference_mode()
def main() -> None:
    """Print a line for each kernel."""
    weights = [torch.randn(*shape) for shape in SHAPES * LAYERS] + [torch.randn(VOCABULARY, WIDTH)]
    rows = {width: torch.randn(1, width) for width in (WIDTH, INNER)}
    pairs = [(rows[weight.shape[1]], weight) for weight in weights]
    packed = [torch.ops.mkldnn._reorder_linear_weight(w, TYPICAL_ROWS) for w in weights]
    multiply = torch.ops.mkldnn._linear_pointwise

    def packed_products() -> list[Tensor]:
        return [
            multiply(row, layer, None, "none", [], "")
            for (row, _), layer in zip(pairs, packed, strict=True)
        ]

    @torch.compile(dynamic=False)
    def sums(given: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [(weight * row[0]).sum(-1) for row, weight in given]

    report("sum over all weights", weights, lambda: [weight.sum() for weight in weights])
    report("linear", weights, lambda: [linear(row, weight) for row, weight in pairs])
    report("oneDNN, packed", weights, packed_products)
    report("sums, compiled", weights, lambda: sums(pairs))


if __name__ == "__main__":
    main()
