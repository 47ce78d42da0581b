"""Recorded steps, with a stand-in for CUDA graphs and, on a GPU, with real ones."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorder import recorded

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.hardware import hardware, software
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.torch import cuda_graphs
from sequoia_opt.engine.torch.cuda_graphs import BUCKET, RecordedStep
from sequoia_opt.engine.torch.layer_stream import host_memory
from sequoia_opt.engine.torch.memory import free_bytes
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import profiler
from sequoia_opt.measure.disturbance import DisturbanceMonitor
from sequoia_opt.measure.divergence import divergence
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS

TREE = TokenTree([-1, 0, 0, 0, 1, 1, 2, 4], [0, 1, 2, 3, 1, 2, 1, 1])
PROMPT = list(range(3, 40))

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def decoder_of(pair: Any, tree: TokenTree, verifier: str) -> Decoder:
    """A greedy decoder, or one that samples with a verifier."""
    if verifier == "greedy":
        return Decoder(pair, tree)
    return Decoder(pair, tree, 0.8, verifier=verifier)


@pytest.mark.parametrize("tree", [AUTOREGRESSIVE, TREE], ids=["plain", "tree"])
@pytest.mark.parametrize("verifier", ["greedy", *VERIFIERS])
def test_recorded_steps_give_the_same_tokens(
    verifier: str, tree: TokenTree, make_pair: Callable[..., Any]
) -> None:
    pair = make_pair()
    eager, replaying = (decoder_of(pair, tree, verifier) for _ in range(2))
    recorder = recorded(replaying)
    for prompt in (PROMPT, PROMPT[5:]):
        expected = eager.generate(prompt, 40, ignore_eos=True).tokens
        assert replaying.generate(prompt, 40, ignore_eos=True).tokens == expected
    assert recorder.recorded == 1


def test_a_graph_for_each_bucket_and_for_each_buffer(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(max_position_embeddings=4 * BUCKET)
    eager, replaying = (Decoder(pair, TREE) for _ in range(2))
    recorder = recorded(replaying)
    prompt = [3 + i % 50 for i in range(BUCKET - 8)]
    expected = eager.generate(prompt, 40, ignore_eos=True).tokens
    assert replaying.generate(prompt, 40, ignore_eos=True).tokens == expected
    assert recorder.recorded == 2
    replaying.generate(prompt, 40, ignore_eos=True)
    assert recorder.recorded == 2
    for runner in (pair.target, pair.draft):  # another text left larger buffers
        runner.release(runner.reserve(8 * BUCKET))
    assert replaying.generate(prompt, 40, ignore_eos=True).tokens == expected
    assert recorder.recorded == 4


@pytest.mark.parametrize("options", [None, LogitsOptions(1.3, presence_penalty=0.5)])
@pytest.mark.parametrize("tree", [AUTOREGRESSIVE, TREE], ids=["plain", "tree"])
def test_sessions_of_a_recorded_decoder_take_turns(
    tree: TokenTree, options: LogitsOptions | None, make_pair: Callable[..., Any]
) -> None:
    """A step of one text leaves the other's state alone."""
    prompts = PROMPT, PROMPT[20:4:-1]
    decoder = Decoder(make_pair(), tree, logits_options=options)
    alone = [decoder.generate(prompt, 40, ignore_eos=True).tokens for prompt in prompts]
    recorded(decoder)
    streams = [decoder.stream(prompt, 40, ignore_eos=True) for prompt in prompts]
    running = [iter(stream) for stream in streams]
    while running:
        running = [steps for steps in running if next(steps, None) is not None]
    assert [stream.generation.tokens for stream in streams] == alone


def test_a_graph_never_reads_beyond_the_buffers(make_pair: Callable[..., Any]) -> None:
    """The last bucket ends with the buffers if it does not fit into them."""
    pair = make_pair()
    decoder = Decoder(pair, TREE)
    recorded(decoder)
    expected = decoder.generate(PROMPT, 60, ignore_eos=True).tokens
    caches = []
    for runner in (pair.target, pair.draft):
        runner._pool.idle = None  # so that new caches have no more slots than requested
        caches.append(runner.reserve(len(PROMPT) + 60 + TREE.size))
    with torch.inference_mode():
        tokens = torch.tensor([PROMPT])
        for runner, cache in zip((pair.target, pair.draft), caches, strict=True):
            runner.prefill(cache, tokens)
        recent = torch.tensor([PROMPT[-1], expected[0]])
        state = cuda_graphs.State(torch.tensor([len(PROMPT)]), recent)
        decoded, numbers = expected[:1], decoder.random_numbers(0)
        while len(decoded) < 50:
            uniforms = decoder.uniforms_for_step(numbers)
            length = len(PROMPT) + len(decoded) - 1
            result, state = decoder.step(cuda_graphs.Caches(*caches), state, length, uniforms)
            *new, _, count = result.tolist()
            decoded += new[:count]
    assert decoded[:50] == expected[:50]


def test_steps_are_recorded_only_on_cuda(make_model: Callable[..., Path]) -> None:
    models = make_model("llama", 0), make_model("llama", 1)
    assert not load_pair(*models, "cpu").graphs
    with pytest.raises(SequoiaError, match="graphs: steps on cpu cannot be recorded"):
        load_pair(*models, "cpu", graphs=True)


@pytest.fixture
def cuda_pair(make_model: Callable[..., Path]) -> Callable[..., Any]:
    def make(dtype: str = "float64", graphs: bool | None = None, **changes: Any) -> Any:
        models = (make_model("llama", seed, 0.05, **changes) for seed in (0, 1))
        return load_pair(*models, "cuda", dtype, graphs)

    return make


@gpu
@needs_gpu
@pytest.mark.parametrize("verifier", ["greedy", *VERIFIERS])
def test_graphs_give_the_same_tokens(verifier: str, cuda_pair: Callable[..., Any]) -> None:
    texts = {}
    for graphs in (False, True):
        decoder = decoder_of(cuda_pair(graphs=graphs), TREE, verifier)
        assert isinstance(decoder.step, RecordedStep) == graphs
        texts[graphs] = decoder.generate(PROMPT, 120, ignore_eos=True).tokens
    assert texts[True] == texts[False]


@gpu
@needs_gpu
def test_graphs_can_be_recorded_after_others_were_deleted(cuda_pair: Callable[..., Any]) -> None:
    """The graphs' memory pool is reused, with buffers of changing sizes, in the default dtype."""
    pair = cuda_pair("bfloat16")
    for length in (20, 120, 20):
        prompt = [3 + i % 50 for i in range(length)]
        decoder = Decoder(pair, TREE)
        first = decoder.generate(prompt, 30, ignore_eos=True).tokens
        for runner in (pair.target, pair.draft):
            runner._pool.idle = None
        assert decoder.generate(prompt, 30, ignore_eos=True).tokens == first
        del decoder


@gpu
@needs_gpu
def test_compiled_forward_passes_are_recorded(cuda_pair: Callable[..., Any]) -> None:
    pair = cuda_pair("float32")
    expected = Decoder(pair, TREE).generate(PROMPT, 60, ignore_eos=True).tokens
    pair.compile()
    assert Decoder(pair, TREE).generate(PROMPT, 60, ignore_eos=True).tokens == expected


@gpu
@needs_gpu
def test_a_step_does_not_wait_for_the_device(cuda_pair: Callable[..., Any]) -> None:
    """The host waits only when the session reads a step's tokens back."""
    pair = cuda_pair("float32")
    decoder = Decoder(pair, TREE, 0.8)
    session = decoder.session()
    session.start(PROMPT, 60)
    session.advance()
    numbers = decoder.random_numbers(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            for step in (decoder.step, decoder.step.step):
                uniforms = decoder.uniforms_for_step(numbers)
                step(session.caches, session._state, session.length, uniforms)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@needs_gpu
def test_a_profile_of_graphs(cuda_pair: Callable[..., Any]) -> None:
    options = profiler.ProfileOptions(tokens=[1, 2, 4, 8], contexts=[16], repeats=5, warm_up=1)
    measured = profiler.profile(cuda_pair("float32"), options)
    assert measured.engine["graphs"] is True
    assert (measured.target.at([1, 8], 16) > 0).all()


@gpu
@needs_gpu
@pytest.mark.parametrize("length", [BUCKET - 30, BUCKET - 1, BUCKET])
def test_texts_that_cross_a_bucket(length: int, cuda_pair: Callable[..., Any]) -> None:
    """Each bucket of context lengths has a graph; the text is that of eager steps."""
    prompt = [3 + i % 50 for i in range(length)]
    texts = []
    for graphs in (False, True):
        pair = cuda_pair(graphs=graphs, max_position_embeddings=4 * BUCKET)
        texts.append(Decoder(pair, TREE).generate(prompt, 60, ignore_eos=True).tokens)
    assert texts[0] == texts[1]


@gpu
@needs_gpu
def test_each_replay_uses_new_random_numbers(cuda_pair: Callable[..., Any]) -> None:
    """They come from outside of the graph: a recorded generator would repeat its numbers."""
    pair = cuda_pair("float32")
    decoder = Decoder(pair, AUTOREGRESSIVE, 5.0)  # nearly uniform
    tokens = decoder.generate(PROMPT, 100, ignore_eos=True).tokens
    assert len(set(tokens)) > 20
    assert decoder.generate(PROMPT, 100, ignore_eos=True).tokens != tokens


@gpu
@needs_gpu
def test_deleted_graphs_release_their_memory(cuda_pair: Callable[..., Any]) -> None:
    pair = cuda_pair("float32")
    reserved = []
    for _ in range(8):
        decoder = Decoder(pair, TREE)
        decoder.generate(PROMPT, 20, ignore_eos=True)
        del decoder
        gc.collect()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[2]


@gpu
@needs_gpu
def test_memory_that_is_only_cached_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_this_process(_: object) -> tuple[int, int]:  # other processes may use the GPU too
        return 2**40 - torch.cuda.memory_reserved(), 2**40

    monkeypatch.setattr(torch.cuda, "mem_get_info", of_this_process)
    device, size = torch.device("cuda"), 2**28
    torch.cuda.empty_cache()
    before = free_bytes(device)
    tensor = torch.empty(size, dtype=torch.uint8, device=device)
    assert before is not None
    assert before - (free_bytes(device) or 0) >= size
    del tensor  # torch keeps its memory for the next tensor
    assert before - (free_bytes(device) or 0) < size


@gpu
@needs_gpu
def test_recording_tolerates_other_work_in_the_process() -> None:
    """Pinned memory that is garbage-collected meanwhile, and a thread that waits for copies."""
    device = torch.device("cuda")
    source, stop = torch.zeros(2**20, device=device), threading.Event()
    copying, host = torch.cuda.Stream(), torch.zeros(2**20).pin_memory()

    def copy_repeatedly() -> None:
        with torch.cuda.stream(copying):
            while not stop.is_set():
                copied = torch.cuda.Event()
                torch.empty(2**20, device=device).copy_(host, non_blocking=True)
                copied.record()
                copied.synchronize()

    class Owner:
        def __init__(self) -> None:
            self.memory, self.itself = host_memory(2**20, device), self

    def work() -> None:
        cycles = [[] for _ in range(2000)]  # enough to start a garbage collection
        for cycle in cycles:
            cycle.append(cycle)
        source.add_(1)

    thread = threading.Thread(target=copy_repeatedly)
    thread.start()
    try:
        for _ in range(5):
            Owner()
            before = float(source[0])
            replay = cuda_graphs.record(work, device)
            replay()
            assert float(source[0]) == before + cuda_graphs.WARM_UPS + 1
    finally:
        stop.set()
        thread.join()


@gpu
@needs_gpu
def test_greedy_texts_in_bfloat16_diverge_only_at_near_ties(cuda_pair: Callable[..., Any]) -> None:
    pair = cuda_pair("bfloat16")
    for start in range(8):
        prompt = [3 + (start + i) % 50 for i in range(20)]
        plain, tree = (
            Decoder(pair, shape).generate(prompt, 60, ignore_eos=True).tokens
            for shape in (AUTOREGRESSIVE, TREE)
        )
        divergent = divergence(pair, prompt, plain, tree)
        if divergent is not None:
            with torch.inference_mode():
                cache = pair.target.reserve(len(prompt))
                logits = pair.target.prefill(cache, torch.tensor([prompt], device="cuda"))
            assert divergent.gap <= 2**-4 * float(logits.abs().max())


@gpu
@needs_gpu
def test_a_profile_of_compiled_graphs_for_several_sequences(cuda_pair: Callable[..., Any]) -> None:
    pair = cuda_pair("bfloat16")
    pair.compile()
    pair.compile(batch=3)
    options = profiler.ProfileOptions(
        tokens=[1, 2, 8], contexts=[16], batches=[1, 3], verifiers=[], repeats=5
    )
    measured = profiler.profile(pair, options)
    assert measured.batches() == [1, 3]
    assert set(measured.engine["compile_gain"]) == {"target", "draft"}
    assert set(measured.overhead) == {"greedy"}


@gpu
@needs_gpu
def test_the_driver_and_the_clock_are_known() -> None:
    device = torch.device("cuda")
    assert re.fullmatch(r"\d+\.\d+[.\d]*", software(device)["driver"])
    assert hardware(device)["slug"].startswith("nvidia")
    monitor = DisturbanceMonitor(device)
    assert monitor._start.clock_mhz > 0
    assert isinstance(monitor.notes(), list)


@gpu
@needs_gpu
def test_pinned_memory_as_large_as_weights() -> None:
    """Its size is not a power of two, and it is copied while the device computes."""
    device, size = torch.device("cuda"), 3 * 10**9 + 12345
    memory = host_memory(size, device)
    assert memory.is_pinned()
    memory.fill_(7)
    copying = torch.cuda.Stream()
    busy = torch.randn(4096, 4096, device=device)
    with torch.cuda.stream(copying):
        copy = memory.to(device, non_blocking=True)
    for _ in range(20):
        busy = busy @ busy
        busy /= busy.norm()
    torch.cuda.current_stream().wait_stream(copying)
    assert bool((copy == 7).all())


def test_garbage_collection_is_off_while_recording() -> None:
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with cuda_graphs._no_garbage_collection():
                assert not gc.isenabled()
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
