"""Compiled forward passes: the same tokens, few graphs, one line if there is no compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recorder import recorded

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.torch import onednn_linear
from sequoia_opt.engine.torch.onednn_linear import PackedLinear
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.forwards import fill
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

TREES = [
    AUTOREGRESSIVE,
    shapes.chain(2),
    shapes.chain(6),
    shapes.k_ary(3, 2),
    TokenTree([-1, 0, 0, 0, 1, 1, 2, 4], [0, 1, 2, 3, 1, 2, 1, 1]),
]
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)


@pytest.fixture(scope="module")
def pairs(make_model: Callable[..., Path]) -> Iterator[dict[str, Pair]]:
    """A pair loaded twice, eager and compiled, with a sliding window and packed layers.

    On every CPU up to three rows are summed, so that there is a graph of each kind.
    """
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    patch = pytest.MonkeyPatch()
    patch.setattr(onednn_linear, "worth_packing", lambda dtype: 1)
    folders = (
        make_model("gemma2", 0, num_hidden_layers=2),
        make_model("llama", 1, num_hidden_layers=1),
    )
    loaded = {name: load_pair(*folders, "cpu", "float32") for name in ("eager", "compiled")}
    patch.setattr(onednn_linear, "is_amd", lambda: True)
    patch.setattr(onednn_linear, "SUMMED_ROWS_CACHED", 3)
    loaded["compiled"].compile()
    patch.undo()
    assert any(isinstance(m, PackedLinear) for m in loaded["compiled"].target.model.modules())
    yield loaded
    torch.compiler.reset()


def test_only_steps_are_compiled(pairs: dict[str, Pair]) -> None:
    assert pairs["compiled"].compiled == ["target", "draft"]
    assert pairs["eager"].compiled == []


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_same_tokens_from_the_same_graphs(
    pairs: dict[str, Pair], tree: TokenTree, temperature: float
) -> None:
    """No tree, prompt or buffer size causes a recompilation."""
    for length, new in ((1, 20), (40, 30), (7, 240)):
        prompt = [3 + i % 50 for i in range(length)]
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled, eager = (
                Decoder(pairs[mode], tree, temperature, seed=5).generate(
                    prompt, new, ignore_eos=True
                )
                for mode in ("compiled", "eager")
            )
        assert compiled.tokens == eager.tokens


@pytest.mark.parametrize("tree", [TREES[0], TREES[-1]], ids=["plain", "tree"])
def test_recorded_steps_take_the_same_graphs(
    pairs: dict[str, Pair], tree: TokenTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read whole buckets, but never a whole buffer, which would cause a recompilation."""
    pair = pairs["compiled"]
    decoder = Decoder(pair, tree)
    recorder = recorded(decoder)
    monkeypatch.setattr(pair.machine, "graphs", True)  # decides the sizes of reserved caches
    for length, new in ((40, 30), (3, 240), (200, 56)):
        prompt = [3 + i % 50 for i in range(length)]
        for runner in (pair.target, pair.draft):
            runner._pool.idle = None
        with torch.compiler.set_stance("fail_on_recompile"):
            tokens = decoder.generate(prompt, new, ignore_eos=True).tokens
        assert tokens == Decoder(pairs["eager"], tree).generate(prompt, new, ignore_eos=True).tokens
    assert recorder.recorded >= 3
    assert decoder.recording_seconds > 0


def test_comparing_with_the_library_leaves_the_graphs_valid(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "worth_packing", lambda dtype: 1)
    pair = pairs["compiled"]
    decoder = Decoder(pair, TREES[-1])
    before = decoder.generate([5, 6, 7], 20, ignore_eos=True)
    with pair.target.native() as model:
        assert model(torch.tensor([[5, 6, 7]])).logits.shape[1] == 3
    with torch.compiler.set_stance("fail_on_recompile"):
        after = decoder.generate([5, 6, 7], 20, ignore_eos=True)
    assert after.tokens == before.tokens


def test_batches_of_any_size_use_the_same_graphs(pairs: dict[str, Pair]) -> None:
    pairs["compiled"].compile(["draft"], batch=3)
    logits = {}
    for mode, pair in pairs.items():
        runner, logits[mode] = pair.draft, []
        for batch, count in ((1, 1), (2, 1), (2, 5), (5, 1), (5, 3)):
            with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
                filled = fill(pair, 20, count, batch)
                cache = filled.caches["draft"]
                logits[mode].append(runner.pass_to_time(cache, 20, count, 20)())
                filled.release(pair)
    for compiled, eager in zip(logits["compiled"], logits["eager"], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)


def test_a_graph_with_wrong_logits_is_refused(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(dtype="float32")

    def wrong(*_: Any) -> Any:
        return lambda tokens, *_: (torch.ones(1, tokens.shape[1], 61), ())

    monkeypatch.setattr("sequoia_opt.engine.torch.compile.compiled", wrong)
    with pytest.raises(SequoiaError, match=r"other logits when compiled.*--no-compile"):
        pair.compile()
    assert pair.compiled == []


def test_a_missing_compiler_is_reported_in_one_line(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(dtype="float32")

    def broken(*_: Any) -> Any:
        def forward(*_: Any) -> Any:
            raise RuntimeError("no C++\n   compiler")

        return forward

    monkeypatch.setattr("sequoia_opt.engine.torch.compile.compiled", broken)
    with pytest.raises(SequoiaError, match=r"cannot be compiled \(no C\+\+ compiler\)"):
        pair.compile(["draft"])


def test_layers_compiled_one_by_one_share_their_code(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, each kind of layer is compiled once; here the graphs are only traced."""
    compile_by_torch, statistics = torch.compile, torch._dynamo.utils.counters["stats"]
    monkeypatch.setattr(
        torch, "compile", lambda forward, options: compile_by_torch(forward, backend="eager")
    )
    monkeypatch.setattr(Runner, "device_compiles_whole", property(lambda runner: False))
    # Layers with and without a sliding window alternate; texts are longer than the window.
    folders = make_model("gemma2", 0, num_hidden_layers=6), make_model("llama", 1)
    eager, compiled = (load_pair(*folders, "cpu", "float32") for _ in range(2))
    before = statistics["unique_graphs"]
    compiled.target.compile()
    assert 0 < statistics["unique_graphs"] - before <= 12  # without sharing, 6 x 8
    with torch.compiler.set_stance("fail_on_recompile"):
        for tree in TREES:
            generation, expected = (
                Decoder(pair, tree, 0.7, seed=5).generate(list(range(3, 40)), 40, ignore_eos=True)
                for pair in (compiled, eager)
            )
            assert generation.tokens == expected.tokens
    with compiled.target.native() as model, eager.target.native() as other:
        tokens = torch.tensor([[5, 6, 7]])
        assert torch.equal(model(tokens).logits, other(tokens).logits)
    torch.compiler.reset()
