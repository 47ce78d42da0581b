"""Recorded steps: with a stand-in for the graphs everywhere, with real ones where there is CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorder import recorded

from sequoia_opt.engine import cuda
from sequoia_opt.engine.cuda import BUCKET, RecordedStep
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.models import load_pair
from sequoia_opt.engine.verify import VERIFIERS
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import profiler
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

TREE = TokenTree([-1, 0, 0, 0, 1, 1, 2, 4], [0, 1, 2, 3, 1, 2, 1, 1])
PROMPT = list(range(3, 40))

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("tree", [AUTOREGRESSIVE, TREE], ids=["plain", "tree"])
@pytest.mark.parametrize("verifier", ["greedy", *VERIFIERS])
def test_recorded_steps_give_the_same_tokens(
    verifier: str, tree: TokenTree, make_pair: Callable[..., Any]
) -> None:
    warmth = (0.0, "sequoia") if verifier == "greedy" else (0.8, verifier)
    pair = make_pair()
    wanted, found = (Decoder(pair, tree, warmth[0], verifier=warmth[1]) for _ in range(2))
    recorder = recorded(found)
    for prompt in (PROMPT, PROMPT[5:]):
        expected = wanted.generate(prompt, 40, ignore_eos=True).tokens
        assert found.generate(prompt, 40, ignore_eos=True).tokens == expected
    assert recorder.recorded == 1


def test_a_graph_for_each_bucket_and_for_each_buffer(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(max_position_embeddings=4 * BUCKET)
    wanted, found = (Decoder(pair, TREE) for _ in range(2))
    recorder = recorded(found)
    prompt = [3 + i % 50 for i in range(BUCKET - 8)]
    expected = wanted.generate(prompt, 40, ignore_eos=True).tokens
    assert found.generate(prompt, 40, ignore_eos=True).tokens == expected
    assert recorder.recorded == 2
    found.generate(prompt, 40, ignore_eos=True)
    assert recorder.recorded == 2
    for runner in (pair.target, pair.draft):  # another user had larger ones
        runner.reserve(runner.cache.capacity + 1)
    assert found.generate(prompt, 40, ignore_eos=True).tokens == expected
    assert recorder.recorded == 4


def test_a_graph_reads_no_more_than_there_is(make_pair: Callable[..., Any]) -> None:
    """Where the last bucket does not fit into the buffers, it ends with them."""
    pair = make_pair()
    decoder = Decoder(pair, TREE)
    recorded(decoder)
    pair.target.cache = pair.draft.cache = None
    expected = decoder.generate(PROMPT, 60, ignore_eos=True).tokens
    for runner in (pair.target, pair.draft):
        runner.cache = None
        runner.reserve(len(PROMPT) + 60 + TREE.size)
    state = None
    with torch.inference_mode():
        tokens = torch.tensor([PROMPT])
        pair.target.prefill(tokens)
        pair.draft.prefill(tokens)
        state = cuda.State(torch.tensor([len(PROMPT)]), torch.tensor([PROMPT[-1], expected[0]]))
        found, length = expected[:1], len(PROMPT)
        pair.user = None
        while len(found) < 50:
            new, state = decoder.advance(state, length)
            found += new
            length += len(new)
    assert found[:50] == expected[:50]


def test_steps_are_recorded_on_cuda_alone(make_model: Callable[..., Path]) -> None:
    models = make_model("llama", 0), make_model("llama", 1)
    assert not load_pair(*models, "cpu").graphs
    with pytest.raises(SequoiaError, match="graphs: steps on cpu cannot be recorded"):
        load_pair(*models, "cpu", graphs=True)


@pytest.fixture
def cuda_pair(make_model: Callable[..., Path]) -> Callable[..., Any]:
    def make(dtype: str = "float64", **options: Any) -> Any:
        models = make_model("llama", 0, 0.05), make_model("llama", 1, 0.05)
        return load_pair(*models, "cuda", dtype, **options)

    return make


@gpu
@needs_gpu
@pytest.mark.parametrize("verifier", ["greedy", *VERIFIERS])
def test_graphs_give_the_same_tokens(verifier: str, cuda_pair: Callable[..., Any]) -> None:
    warmth = (0.0, "sequoia") if verifier == "greedy" else (0.8, verifier)
    found = {}
    for graphs in (False, True):
        pair = cuda_pair(graphs=graphs)
        decoder = Decoder(pair, TREE, warmth[0], verifier=warmth[1])
        assert isinstance(decoder._step, RecordedStep) == graphs
        found[graphs] = decoder.generate(PROMPT, 120, ignore_eos=True).tokens
    assert found[True] == found[False]


@gpu
@needs_gpu
def test_graphs_come_and_go(cuda_pair: Callable[..., Any]) -> None:
    """A pool whose graphs have gone, buffers that grow, the default dtype."""
    pair = cuda_pair("bfloat16")
    for length in (20, 120, 20):
        prompt = [3 + i % 50 for i in range(length)]
        decoder = Decoder(pair, TREE)
        first = decoder.generate(prompt, 30, ignore_eos=True).tokens
        pair.target.cache = pair.draft.cache = None
        assert decoder.generate(prompt, 30, ignore_eos=True).tokens == first
        del decoder


@gpu
@needs_gpu
def test_compiled_forwards_are_recorded(cuda_pair: Callable[..., Any]) -> None:
    pair = cuda_pair("float32")
    expected = Decoder(pair, TREE).generate(PROMPT, 60, ignore_eos=True).tokens
    pair.compile()
    assert Decoder(pair, TREE).generate(PROMPT, 60, ignore_eos=True).tokens == expected


@gpu
@needs_gpu
def test_a_step_waits_for_its_read_back_alone(cuda_pair: Callable[..., Any]) -> None:
    """Nothing else in a step synchronises the host with the device."""
    pair = cuda_pair("float32")
    decoder = Decoder(pair, TREE, 0.8)
    _, state = decoder.start(PROMPT, 60)
    new, state = decoder.advance(state, len(PROMPT))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            for step in (decoder._step, decoder._step.step):
                step(state, len(PROMPT) + len(new), decoder.uniforms(decoder._step))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@needs_gpu
def test_a_profile_of_graphs(cuda_pair: Callable[..., Any]) -> None:
    options = profiler.Options(tokens=[1, 2, 4, 8], contexts=[16], repeats=5, warm_up=1)
    measured = profiler.profile(cuda_pair("float32"), options)
    assert measured.engine["graphs"] is True
    assert (measured.target.at([1, 8], 16) > 0).all()
