"""The Triton kernel against the tensor version, on CUDA or in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.engine.verify import fused, residual

triton = pytest.importorskip("triton", reason="Triton is for Linux only")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter of Triton 3.6, the version that torch 2.11 installs, fails with numpy 2.4.
INTERPRETED = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu" and not INTERPRETED, reason="needs Triton 3.9 or CUDA")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from numpy, for branches not taken
@given(
    row_counts=st.lists(st.integers(1, 4), min_size=1, max_size=5).map(lambda r: sorted(r)[::-1]),
    vocabulary=st.sampled_from([6, 61, 64, 9000, 128256]),
    spread=st.sampled_from([0.3, 3.0, 30.0]),
    with_replacement=st.booleans(),
    paths=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_the_kernel_computes_the_same_as_the_tensor_version(
    row_counts: list[int],
    vocabulary: int,
    spread: float,
    with_replacement: bool,
    paths: bool,
    double: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {
        "dtype": torch.float64 if double else torch.float32,
        "generator": generator,
    }
    nodes, ranks = row_counts[0], len(row_counts)
    target, draft = (
        (spread * torch.randn(nodes, vocabulary, **options)).softmax(dim=-1) for _ in range(2)
    )
    draft[:, :3] = 0  # so that some draws are void
    draft /= draft.sum(dim=-1, keepdim=True)
    tokens = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(nodes)])
    tokens[-1, :ranks] = torch.arange(ranks)
    exist = torch.tensor([[row < count for count in row_counts] for row in range(nodes)])
    path_chance = torch.rand(nodes, 1, **options).to(DEVICE) if paths else None
    if path_chance is not None:
        path_chance[0] = seed % 2  # a path that passes for certain, or cannot pass
    target, draft = target.to(DEVICE), draft.to(DEVICE)
    drawn = torch.where(exist, tokens[:, :ranks], tokens[:, :1]).to(DEVICE)
    draws = residual.gather_draws(target, draft, drawn, exist.to(DEVICE), with_replacement)
    results = []
    for kernel in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "available", lambda _, kernel=kernel: kernel)
            results.append(residual.residual_tests(target, draft, draws, row_counts, path_chance))
    from_tensors, from_kernel = results
    if path_chance is not None:  # the scale is meaningless where the path cannot pass
        for tests in results:
            tests.scale = torch.where(path_chance > 0, tests.scale, 0)
    tolerance = 1e-9 if double else 1e-3
    for part in ("passes", "scale", "path_chance") if paths else ("passes", "scale"):
        torch.testing.assert_close(
            getattr(from_kernel, part), getattr(from_tensors, part), rtol=tolerance, atol=tolerance
        )
