"""Passes over growing trees against the same paths read one by one into a fresh cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing import grow_and_compare
from offloaded_pair import offloaded
from recorder import Recorder

from sequoia_opt.engine.load import load_pair
from sequoia_opt.engine.model import reserved
from sequoia_opt.engine.torch import growing_passes
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import TokenTree


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_nodes_see_their_ancestors_alone(architecture: str, make_pair: Callable[..., Any]) -> None:
    model = make_pair(architecture, architecture).target
    with torch.inference_mode(), reserved(model, 64) as cache:
        passes = model.growing_passes(64, 16)
        for seed in range(3):
            grow_and_compare(model, passes, cache, seed, steps=4, tolerance=1e-10)


def test_a_model_whose_layers_are_streamed(make_model: Callable[..., Any]) -> None:
    model = offloaded(make_model).target
    assert model.streamed_layers == 5
    with torch.inference_mode(), reserved(model, 64) as cache:
        grow_and_compare(model, model.growing_passes(64, 16), cache, 0, steps=2, tolerance=1e-10)


@torch.inference_mode()
def test_a_tree_at_once_is_scored_as_a_tree_pass_scores_it(make_pair: Callable[..., Any]) -> None:
    model = make_pair("llama", "llama").target
    tree = TokenTree([-1, 0, 0, 1, 1, 3], [0, 1, 2, 1, 2, 1])
    text, tokens = torch.tensor([[5, 6, 7]]), torch.arange(10, 16)
    with reserved(model, 64) as cache:
        model.prefill(cache, text)
        expected = model.tree_pass(tree).score(cache, tokens, torch.tensor([3]), 3)
        passes = model.growing_passes(6, 4)
        passes.begin(cache, 3, 3)
        assert torch.equal(passes.run(tokens.tolist(), tree.parents, 6), expected)


@torch.inference_mode()
def test_graphs_take_any_number_of_nodes_and_any_context(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, reset_compiler: None
) -> None:
    """The same graphs serve all passes, as for static trees."""
    graphs: list[Any] = []

    def count(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_by_torch = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda forward, **options: compile_by_torch(forward, backend=count, fullgraph=True),
    )
    model = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32").target
    model.compile()
    compiled = len(graphs)
    with reserved(model, 64) as cache:
        passes = model.growing_passes(64, 16)
        for seed in range(3):
            grow_and_compare(model, passes, cache, seed, steps=3, tolerance=1e-4)
    assert len(graphs) == compiled


@torch.inference_mode()
def test_recorded_passes(make_pair: Callable[..., Any]) -> None:
    """One recording for each number of nodes and of rows serves all lengths up to the bound."""
    model = make_pair("mistral", "mistral").target
    model.record = recorder = Recorder()
    passes = model.growing_passes(32, 16)
    with reserved(model, 128) as cache, reserved(model, 64) as smaller:
        for _ in range(2):
            for seed in range(3):
                grow_and_compare(model, passes, cache, seed, 4, tolerance=1e-10, bound=64)
            shapes = recorder.recorded
            assert shapes < 15
        assert recorder.recorded == shapes
        grow_and_compare(model, passes, smaller, 0, 3, tolerance=1e-10, bound=64)
        assert recorder.recorded > shapes


@torch.inference_mode()
def test_of_many_recordings_those_used_last_are_kept(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing_passes, "MOST_RECORDINGS", 3)
    model = make_pair("llama", "llama").target
    model.record = recorder = Recorder()
    passes = model.growing_passes(32, 16)
    with reserved(model, 128) as cache:
        for seed in range(4):
            grow_and_compare(model, passes, cache, seed, 4, tolerance=1e-10, bound=64)
            kept = passes._recordings[cache].passes
            assert len(kept) == 3
        counts = []
        for nodes in (1, 2, 3, 1, 2, 3, 4, 2, 3, 1):
            before = recorder.recorded
            passes.begin(cache, 40, 64)
            passes.run(list(range(nodes)), [-1, 0, 0, 0][:nodes], nodes)
            counts.append(recorder.recorded - before)
        assert counts[3:] == [0, 0, 0, 1, 0, 0, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_passes_recorded_as_graphs(make_model: Callable[..., Any]) -> None:
    model = load_pair(make_model("llama", 0), make_model("llama", 1), "cuda", "float64").target
    assert model.record is not None
    passes = model.growing_passes(32, 16)
    with reserved(model, 128) as cache:
        for seed in range(3):
            grow_and_compare(model, passes, cache, seed, 4, tolerance=1e-10, bound=64)


@torch.inference_mode()
def test_more_nodes_than_were_prepared_are_refused(make_pair: Callable[..., Any]) -> None:
    model = make_pair("llama", "llama").target
    with reserved(model, 64) as cache:
        passes = model.growing_passes(2, 1)
        passes.begin(cache, 0, 0)
        with pytest.raises(SequoiaError, match="found 3 nodes in a step, prepared for 2"):
            passes.run([1, 2, 3], [-1, 0, 1], 1)
