"""The residual tests as one Triton kernel, for CUDA.

In tensor operations they take a dozen launches for each rank. Here each node has one Triton
program, which goes through the node's draws and sums over the vocabulary after each. The formulas
are explained in residual.py.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch installs Triton with its CUDA builds only
    triton = None

LARGEST_BLOCK = 8192  # tokens of the vocabulary that a Triton program reads at once


def available(tensor: Tensor) -> bool:
    """Whether the kernel can run on the tensor's device."""
    return triton is not None and tensor.is_cuda and _works(tensor.device)


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton can compile a kernel here: it needs a C compiler, which may be missing."""
    one = torch.ones(1, 1, device=device)
    try:
        residual_tests(one, one, one.expand(4, 1, 1), None)
    except Exception as error:  # from Triton, the compiler or the driver
        reason = " ".join(str(error).partition("\n")[0].split())[:200]
        warnings.warn(
            f"Triton does not work here ({reason}); verification runs as separate kernels",
            stacklevel=2,
        )
        return False
    return True


def residual_tests(
    target: Tensor, draft: Tensor, draws: Tensor, path_chance: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of residual.AcceptanceTests, as `residual.tests_by_rank` computes them.

    Args:
        target, draft: [nodes, vocabulary], P and Q.
        draws: [4, nodes, ranks], see residual.Draws.
        path_chance: [nodes, 1], chance that the path to each node passes, where whole paths are
            tested.
    """
    nodes, vocabulary = target.shape
    passes = target.new_zeros(draws.shape[1:])
    scale, after = target.new_empty(nodes, 1), target.new_empty(nodes, 1)
    device = torch.cuda.device(target.device) if target.is_cuda else nullcontext()
    with device:
        _walk_draws[(nodes,)](
            target.contiguous(),
            draft.contiguous(),
            draws.contiguous(),
            target if path_chance is None else path_chance.contiguous(),
            passes,
            scale,
            after,
            vocabulary,
            draws.shape[2],
            LARGEST=torch.finfo(target.dtype).max,
            TINY=torch.finfo(target.dtype).tiny,
            PATHS=path_chance is not None,
            BLOCK=min(LARGEST_BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=8,
        )
    return passes, scale, after


if triton is not None:

    @triton.jit
    def _mass_left(target, draft, scale, vocabulary, BLOCK: tl.constexpr):
        """S = Σ max(P - c Q, 0) of one node."""
        sums = tl.zeros((BLOCK,), dtype=target.dtype.element_ty)
        for start in range(0, vocabulary, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            inside = tokens < vocabulary
            p = tl.load(target + tokens, mask=inside, other=0.0)
            q = tl.load(draft + tokens, mask=inside, other=0.0)
            sums += tl.maximum(p - scale * q, 0.0)
        return tl.sum(sums, axis=0)

    @triton.jit
    def _walk_draws(
        target,
        draft,
        draws,
        path_chance,
        passes,
        scales,
        after,
        vocabulary,
        ranks,
        LARGEST: tl.constexpr,
        TINY: tl.constexpr,
        PATHS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Test one node's draws, each given that the draws before it failed."""
        node = tl.program_id(0)
        row = node.to(tl.int64) * vocabulary
        target += row
        draft += row
        part = tl.num_programs(0) * ranks  # elements between the parts of the table
        target_chances, draft_chances = draws, draws + part
        undrawn, gain = draws + 2 * part, draws + 3 * part
        scale = tl.zeros((), dtype=target.dtype.element_ty)
        mass = scale + 1.0
        deficit = scale
        if PATHS:
            deficit = 1.0 / tl.load(path_chance + node) - 1.0
        first = node * ranks
        end = first + ranks
        for draw in range(first, end):
            chance = tl.load(draft_chances + draw)
            if chance > 0:
                total = mass + deficit
                rest = tl.maximum(tl.load(target_chances + draw) - scale * chance, 0.0)
                ratio = rest * tl.load(gain + draw) / tl.maximum(total, TINY)
                tl.store(passes + draw, tl.minimum(ratio, 1.0))
                scale = tl.minimum(scale + total / tl.load(undrawn + draw), LARGEST)
                if PATHS or draw + 1 < end:  # otherwise the sum is not needed
                    mass = _mass_left(target, draft, scale, vocabulary, BLOCK)
        tl.store(scales + node, scale)
        tl.store(after + node, mass / tl.maximum(mass + deficit, TINY))
