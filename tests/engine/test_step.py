from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sequoia_opt.api import load_pair
from sequoia_opt.engine.drafters import State
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.step import Step
from sequoia_opt.engine.verify import Greedy, make_verifier
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS

TREE = TokenTree([-1, 0, 0, 0, 1, 1, 2, 4], [0, 1, 2, 3, 1, 2, 1, 1])
LENGTH = 9
META = torch.device("meta")
VERIFYING = ["greedy", *VERIFIERS]


def step_of(pair: Any, verifier: str) -> Step:
    warm = make_verifier(verifier, 0.8, 0.9) if verifier != "greedy" else Greedy()
    return Step(pair.target, pair.drafter, TREE, warm)


def filled(pair: Any) -> tuple[Caches, State]:
    """Caches into which a text, always the same, has been read; and its state."""
    tokens = torch.arange(3, 3 + LENGTH, device=pair.target.device)[None]
    caches = []
    for runner in (pair.target, pair.draft):
        caches.append(runner.reserve(64))
        runner.prefill(caches[-1], tokens)
    return Caches(*caches), State(torch.tensor([LENGTH], device=pair.target.device), tokens[0, -2:])


@pytest.mark.parametrize("verifier", VERIFYING)
def test_a_step_is_one_graph(verifier: str, make_pair: Callable[..., Any]) -> None:
    """It compiles without a break, and gives what it gives eagerly."""
    pair = make_pair(dtype="float64")
    step = step_of(pair, verifier)
    uniforms = torch.rand(step.uniform_count, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted, state = step(*filled(pair), LENGTH, uniforms)
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        found, after = compiled(*filled(pair), LENGTH, uniforms)
    assert found.tolist() == wanted.tolist()
    assert after.length.tolist() == state.length.tolist()
    assert after.recent.tolist() == state.recent.tolist()


class OnMeta(TorchDispatchMode):
    """Refuses any operation that touches a tensor elsewhere, or reads a value."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, found)):
            if isinstance(value, Tensor) and value.device != META:
                raise AssertionError(f"{func} touches the host")
        return found


@pytest.mark.parametrize("verifier", VERIFYING)
def test_a_step_never_touches_the_host(verifier: str, make_model: Callable[..., Any]) -> None:
    pair = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32")
    for runner in (pair.target, pair.draft):
        runner.model.to(META)
        runner.device = META
        runner._chunks.clear()
    step = step_of(pair, verifier)
    uniforms = torch.empty(step.uniform_count, device=META)
    with torch.inference_mode():
        caches, state = filled(pair)
        with OnMeta():
            emitted, after = step(caches, state, LENGTH, uniforms)
    assert emitted.shape == (TREE.depth + 3,)
    assert after.recent.shape == (2,)


def test_the_mode_notices_a_host_copy() -> None:
    with OnMeta(), pytest.raises(AssertionError, match="touches the host"):
        torch.tensor([1.0])
    with OnMeta(), pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        torch.empty(2, device=META).cpu()
    with OnMeta(), pytest.raises(RuntimeError, match="item"):
        torch.empty(1, device=META).item()
