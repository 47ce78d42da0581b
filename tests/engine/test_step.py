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
from sequoia_opt.engine.torch.causal_masks import CausalMasks
from sequoia_opt.engine.verify import Greedy, make_verifier
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS

TREE = TokenTree([-1, 0, 0, 0, 1, 1, 2, 4], [0, 1, 2, 3, 1, 2, 1, 1])
# The verifier's order has the younger of two siblings first, which has more children.
YOUNGER_FIRST = TokenTree([-1, 0, 0, 1, 2, 2], [0, 1, 2, 1, 1, 2])
LENGTH = 9
META = torch.device("meta")
ALL_VERIFIERS = ["greedy", *VERIFIERS]


def step_of(pair: Any, verifier: str) -> Step:
    chosen = Greedy() if verifier == "greedy" else make_verifier(verifier, 0.8, 0.9)
    return Step(pair.target, pair.drafter, TREE, chosen)


def prefilled(pair: Any) -> tuple[Caches, State]:
    """New caches after a prefill of a fixed text, and the state of that text."""
    tokens = torch.arange(3, 3 + LENGTH, device=pair.target.device)[None]
    caches = []
    for runner in (pair.target, pair.draft):
        caches.append(runner.reserve(64))
        runner.prefill(caches[-1], tokens)
    return Caches(*caches), State(torch.tensor([LENGTH], device=pair.target.device), tokens[0, -2:])


@pytest.mark.parametrize("tree", [YOUNGER_FIRST, shapes.chain(4)], ids=["uneven", "chain"])
def test_the_drafts_logits_stand_in_the_verifiers_order(
    tree: TokenTree, make_pair: Callable[..., Any]
) -> None:
    """Each row has the draft's logits after the path to that internal node."""
    pair = make_pair(dtype="float64")
    step = Step(pair.target, pair.drafter, tree, make_verifier("sequoia", 0.8))
    assert step.drafter is not None
    uniforms = torch.rand(step.uniform_count, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        caches, state = prefilled(pair)
        # The root is the last token of the text, which the cache holds one token too early.
        state.length -= 1
        tokens, logits = step.drafter.draft(caches.draft, state, LENGTH, uniforms)
        for row, node in enumerate(step.index.internal):
            path = tokens[torch.from_numpy(tree.ancestor_mask[node])]
            text = torch.cat([torch.arange(3, 2 + LENGTH), path])[None]
            alone = pair.draft.prefill(pair.draft.reserve(64), text)
            torch.testing.assert_close(logits[row], alone[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("verifier", ALL_VERIFIERS)
def test_a_step_is_one_graph(verifier: str, make_pair: Callable[..., Any]) -> None:
    """It compiles without a graph break and returns the eager step's results."""
    pair = make_pair(dtype="float64")
    step = step_of(pair, verifier)
    uniforms = torch.rand(step.uniform_count, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, expected_state = step(*prefilled(pair), LENGTH, uniforms)
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        emitted, state = compiled(*prefilled(pair), LENGTH, uniforms)
    assert emitted.tolist() == expected.tolist()
    assert state.length.tolist() == expected_state.length.tolist()
    assert state.recent.tolist() == expected_state.recent.tolist()


class OnlyMeta(TorchDispatchMode):
    """Refuses an operation that takes or returns a tensor on another device, or reads a value."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.device != META:
                raise AssertionError(f"{func} touches the host")
        return result


@pytest.mark.parametrize("verifier", ALL_VERIFIERS)
def test_a_step_never_touches_the_host(verifier: str, make_model: Callable[..., Any]) -> None:
    pair = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32")
    for runner in (pair.target, pair.draft):
        runner.model.to(META)
        runner.device = runner._pool._device = META
        runner._causal = CausalMasks(runner.layers, runner.dtype, META)
    step = step_of(pair, verifier)
    uniforms = torch.empty(step.uniform_count, device=META)
    with torch.inference_mode():
        caches, state = prefilled(pair)
        with OnlyMeta():
            emitted, after = step(caches, state, LENGTH, uniforms)
    assert emitted.shape == (TREE.depth + 3,)
    assert after.recent.shape == (2,)


def test_the_mode_notices_a_host_copy() -> None:
    with OnlyMeta(), pytest.raises(AssertionError, match="touches the host"):
        torch.tensor([1.0])
    with OnlyMeta(), pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        torch.empty(2, device=META).cpu()
    with OnlyMeta(), pytest.raises(RuntimeError, match="item"):
        torch.empty(1, device=META).item()
