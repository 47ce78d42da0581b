from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import small_config

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.engine.torch.empty_model import empty_model, random_model
from sequoia_opt.engine.torch.layer_stream import (
    BUFFERS,
    HostStore,
    LayerBuffer,
    LayerStream,
    host_memory,
)
from sequoia_opt.engine.torch.layer_weights import Layout, decoder_layers, named_weights
from sequoia_opt.engine.torch.offload import (
    FREE_SHARE,
    LARGEST_CHUNK,
    LEAST_CHUNK,
    Offload,
    cache_bytes,
    choose_streamed,
    place_model,
    prompt_chunk,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

CPU = torch.device("cpu")
LAYERS = {"num_hidden_layers": 7}
ARCHITECTURES = ["llama", "qwen3", "gpt_neox", "mistral", "gemma2", "phi3", "gpt2", "opt"]


def deep(make_model: Callable[..., Path], architecture: str = "llama", **changes: Any) -> Path:
    """A model of seven layers."""
    gpt2_layers = {"n_layer": 7} if architecture == "gpt2" else {}
    return make_model(architecture, 0, **LAYERS, **gpt2_layers, **changes)


def sizes(folder: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the weights outside the layers with the KV cache, and of one layer."""
    from transformers import AutoConfig

    model = empty_model(AutoConfig.from_pretrained(folder), dtype)
    layers = decoder_layers(model)[1]
    inside = {id(t) for layer in layers for t in named_weights(layer).values()}
    outside = {id(t): t.nbytes for t in named_weights(model).values() if id(t) not in inside}
    return sum(outside.values()) + cache_bytes(model), Layout(layers[0]).size


@pytest.mark.parametrize("staying", [0, 1, 2, 4, 5, 7])
def test_greedy_tokens_are_the_resident_models(
    make_model: Callable[..., Path], staying: int
) -> None:
    target, draft = deep(make_model), make_model("llama", 1)
    fixed, layer = sizes(target, torch.float64)
    resident = load_pair(target, draft, "cpu", "float64")
    budget = fixed + max(staying, 1) * layer - (staying == 0)
    pair = load_pair(target, draft, "cpu", "float64", offload="disk", memory_budget=budget)
    assert pair.target.parameters == resident.target.parameters
    stream = pair.target.stream
    if staying == 7:
        assert stream is None
    else:
        assert stream is not None
        assert len(stream.streamed) == 7 - staying
    tree = shapes.k_ary(2, 3)
    for prompt in ([5, 6, 7], list(range(2, 40))):
        expected = Decoder(resident, tree).generate(prompt, 24, ignore_eos=True)
        generation = Decoder(pair, tree).generate(prompt, 24, ignore_eos=True)
        assert generation.tokens == expected.tokens
        assert generation.steps == expected.steps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_logits_are_the_resident_models(
    make_model: Callable[..., Path], architecture: str, where: str
) -> None:
    """From disk and, as for a GPU, from host memory, with one or two resident layers."""
    check_logits(deep(make_model, architecture), where)


def check_logits(folder: Path, where: str) -> None:
    """Check a model's logits with one or two of its seven layers in memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    resident: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    fixed, layer = sizes(folder, torch.float64)
    offload = Offload(where, fixed + layer)
    model: Any
    if where == "disk":
        model = empty_model(AutoConfig.from_pretrained(folder), torch.float64)
        stream = place_model(model, CPU, offload, Checkpoint(str(folder)))
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        stream = place_model(model, CPU, offload)
        assert isinstance(stream, LayerStream)
        assert isinstance(stream.store, HostStore)
    assert stream is not None
    assert 5 <= len(stream.streamed) <= 7
    assert model.num_parameters() == resident.num_parameters()
    tokens = torch.arange(2, 42)[None]
    with torch.inference_mode():
        for part in (tokens, tokens[:, :3], tokens.flip(1)):
            expected = resident(input_ids=part, use_cache=False).logits
            logits = model(input_ids=part, use_cache=False).logits
            assert torch.equal(logits, expected)


@pytest.mark.parametrize("held", ["embeddings", "head", "the same twice", "two that differ"])
@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_tied_weights_are_those_in_the_files(
    make_model: Callable[..., Path], tmp_path: Path, where: str, held: str
) -> None:
    """The files may have either name. Where they have both with different values, the weights are
    not tied, whatever the configuration says, as in transformers."""
    folder = tmp_path / "tied"
    shutil.copytree(deep(make_model, tie_word_embeddings=True), folder)
    state = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in state
    table = state["model.embed_tokens.weight"]
    if held != "embeddings":
        state["lm_head.weight"] = table.flip(0) if held == "two that differ" else table.clone()
    if held == "head":
        del state["model.embed_tokens.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    check_logits(folder, where)


def test_a_head_of_another_shape_is_refused(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(deep(make_model, tie_word_embeddings=True), tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = torch.zeros(60, 32)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SequoiaError, match=r"no lm_head\.weight of the right shape"):
        offloaded(make_model, tmp_path)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 200))
def test_as_few_layers_as_possible_are_streamed(sizes: list[int], room: int) -> None:
    chosen = choose_streamed(sizes, room)
    assert sorted(set(chosen)) == chosen
    assert sum(size for i, size in enumerate(sizes) if i not in chosen) <= room
    if sum(sizes) <= room:
        assert not chosen


def test_streamed_layers_are_spread() -> None:
    assert choose_streamed([10] * 12, 89) == [0, 3, 6, 9]
    assert choose_streamed([10] * 4, 0) == [0, 1, 2, 3]


def offloaded(make_model: Callable[..., Path], folder: Path | None = None) -> Any:
    """A pair whose target has two of its seven layers in memory."""
    folder = folder or deep(make_model)
    fixed, layer = sizes(folder, torch.float64)
    draft = make_model("llama", 1)
    budget = fixed + 2 * layer
    return load_pair(folder, draft, "cpu", "float64", offload="disk", memory_budget=budget)


def test_each_forward_reads_each_streamed_layer_once(make_model: Callable[..., Path]) -> None:
    pair = offloaded(make_model)
    stream = pair.target.stream
    decoder = Decoder(pair, shapes.chain(3))
    decoder.generate([4, 5, 6], 8, ignore_eos=True)
    stream._worker.submit(int).result()  # wait until the last layers are loaded
    before = stream.store.read_bytes
    generation = decoder.generate([4, 5, 6], 8, ignore_eos=True)
    stream._worker.submit(int).result()
    passes = generation.steps + 1  # one for the prompt
    # The files are float32 and the buffers float64; padding is not in the files.
    read = stream.store.read_bytes - before
    assert read % passes == 0
    assert 0.9 < 2 * read / passes / stream.moved_bytes <= 1


def test_the_first_layers_of_the_next_pass_are_loaded_early(
    make_model: Callable[..., Path],
) -> None:
    """After a forward pass, the buffers hold the first two layers of the next one."""
    pair = offloaded(make_model)
    stream = pair.target.stream
    Decoder(pair, shapes.chain(3)).generate([4, 5, 6], 4, ignore_eos=True)
    assert [buffer.holds for buffer in stream.buffers] == stream.streamed[:2]


def test_decoding_works_after_an_interrupted_forward_pass(make_model: Callable[..., Path]) -> None:
    pair = offloaded(make_model)
    decoder = Decoder(pair, shapes.chain(3))
    expected = decoder.generate([4, 5, 6], 12, ignore_eos=True).tokens
    layers = decoder_layers(pair.target.model)[1]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for last in (0, 3, 6):
        hook = layers[last].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder.generate([4, 5, 6], 12, ignore_eos=True)
        hook.remove()
        assert decoder.generate([4, 5, 6], 12, ignore_eos=True).tokens == expected


def test_a_file_that_changes_ends_decoding(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for file in deep(make_model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pair = offloaded(make_model, tmp_path)
    with path.open("r+b") as stream:
        stream.write(path.read_bytes())
    decoder = Decoder(pair, shapes.chain(3))
    for _ in range(2):
        with pytest.raises(SequoiaError, match="has changed since it was opened; load it again"):
            decoder.generate([4, 5, 6], 40, ignore_eos=True)


def test_weights_under_other_names_are_refused(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    for file in deep(make_model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.1.attention.q"] = state.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(SequoiaError, match=r"no model.layers.1.self_attn.q_proj.weight"):
        offloaded(make_model, tmp_path)


def test_names_without_the_base_models_prefix_are_found(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """As in the first checkpoints of GPT-2."""
    for file in deep(make_model, "gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in whole.items()}
    assert bare.keys() != whole.keys()
    save_file(bare, tmp_path / "model.safetensors")
    draft = make_model("llama", 1)
    fixed, layer = sizes(tmp_path, torch.float64)
    pair = load_pair(tmp_path, draft, "cpu", "float64", offload="disk", memory_budget=fixed + layer)
    resident = load_pair(deep(make_model, "gpt2"), draft, "cpu", "float64")
    tokens, expected = (
        Decoder(each).generate([4, 5], 16, ignore_eos=True).tokens for each in (pair, resident)
    )
    assert tokens == expected


def test_the_default_budget_is_reported(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it the same layers stay on the device later, however much memory is free then."""
    folders = deep(make_model), make_model("llama", 1)
    fixed, layer = sizes(folders[0], torch.float64)
    free = math.ceil((fixed + 3 * layer + BUFFERS * layer + 1) / FREE_SHARE)
    monkeypatch.setattr("sequoia_opt.engine.torch.offload.free_bytes", lambda device: free)
    load = {"device": "cpu", "dtype": "float64", "offload": "disk"}
    pair = load_pair(*folders, **load)
    assert pair.target.stream is not None
    assert pair.memory_budget is not None
    assert fixed + 3 * layer <= pair.memory_budget <= fixed + 3 * layer + 2
    monkeypatch.undo()
    again = load_pair(*folders, **load, memory_budget=pair.memory_budget)
    assert again.target.stream is not None
    assert again.target.stream.streamed == pair.target.stream.streamed
    assert load_pair(*folders, **load).memory_budget is None  # the whole model fits


@pytest.mark.parametrize(
    ("room", "tokens"), [(0, LEAST_CHUNK), (200 * 2**20, 764), (2**30, LARGEST_CHUNK)]
)
def test_a_prompts_chunk_is_as_large_as_the_memory_allows(room: int, tokens: int) -> None:
    """A 34B model: 6 x 8192 and 4 x 22016 numbers of two bytes for each token, 274 kB."""
    config = small_config("llama", hidden_size=8192, intermediate_size=22016)
    chunk, size = prompt_chunk(SimpleNamespace(config=config, dtype=torch.bfloat16), room)
    assert chunk == tokens
    assert size == (chunk * 2 * (6 * 8192 + 4 * 22016) if room else 0)
    assert size <= room


@pytest.mark.parametrize("chunk", [7, 256])
def test_chunks_of_a_prompt_do_not_change_the_tokens(
    make_model: Callable[..., Path], chunk: int
) -> None:
    pair = offloaded(make_model, deep(make_model))
    assert pair.target.stream is not None
    tokens, lengths = [i % 61 for i in range(60)], []
    expected = Decoder(pair).generate(tokens, 8, ignore_eos=True).tokens
    pair.target.stream.chunk = chunk
    pair.target.model.register_forward_pre_hook(
        lambda _, __, options: lengths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    assert Decoder(pair).generate(tokens, 8, ignore_eos=True).tokens == expected
    assert max(lengths) == min(chunk, 60)


@pytest.mark.parametrize("steps", [1, 2], ids=["read", "resident"])
def test_steps_leave_a_processor_free_for_the_reader(
    make_model: Callable[..., Path], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts, which compute for longer than the reading takes, do not; nor does the draft."""
    monkeypatch.setattr("sequoia_opt.engine.cpu.processors", lambda: [0, 1])
    torch.set_num_threads(2)
    try:
        pair = offloaded(make_model)
        if steps == 2:
            pair = load_pair(deep(make_model), make_model("llama", 1), "cpu", "float64")
        seen: dict[str, list[tuple[int, int]]] = {}
        for runner in (pair.target, pair.draft):
            noted = seen.setdefault(runner.name, [])
            runner.model.register_forward_pre_hook(
                lambda _, __, options, noted=noted: noted.append(
                    (options["input_ids"].shape[1], torch.get_num_threads())
                ),
                with_kwargs=True,
            )
        Decoder(pair, shapes.chain(3)).generate([4, 5, 6, 7, 8], 12, ignore_eos=True)
    finally:
        torch.set_num_threads(1)
    assert set(seen[pair.target.name]) == {(5, 2), (3, steps)}
    assert {threads for _, threads in seen[pair.draft.name]} == {2}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_long_prompt_takes_little_memory(make_model: Callable[..., Path]) -> None:
    """In chunks its masks are small, though eight heads share each key; none are kept."""
    shape = {"num_attention_heads": 8, "num_key_value_heads": 1, "max_position_embeddings": 2304}
    folder, draft = deep(make_model, **shape), make_model("llama", 1)
    fixed, layer = sizes(folder, torch.float32)
    pair = load_pair(folder, draft, "cpu", "float32", offload="disk", memory_budget=fixed + layer)
    lengths: list[int] = []
    pair.target.model.register_forward_pre_hook(
        lambda _, __, options: lengths.append(options["input_ids"].shape[1]), with_kwargs=True
    )

    def bytes_of(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    before = bytes_of("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")
    Decoder(pair).generate([i % 61 for i in range(2000)], 2, ignore_eos=True)
    assert bytes_of("VmHWM:") - before < 100e6
    assert max(lengths) == LEAST_CHUNK
    assert not pair.target._chunks


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"offload": "tape"}, "found 'tape', expected one of none, cpu, disk"),
        ({"offload": "cpu"}, "--offload disk reads the weights as they are used"),
        ({"memory_budget": 10**9}, "nothing is offloaded; add --offload"),
        ({"offload": "disk", "memory_budget": 100}, "found 1e-07 GB, expected at least"),
        ({"offload": "disk", "random_weights": True}, "random weights are not on disk"),
        ({"offload": "disk", "memory_budget": 10**15}, None),
        ({"offload": "disk"}, None),
    ],
)
def test_what_cannot_be_offloaded_is_refused(
    make_model: Callable[..., Path], options: dict[str, Any], complaint: str | None
) -> None:
    folders = deep(make_model), make_model("llama", 1)
    if complaint is None:
        assert load_pair(*folders, device="cpu", **options).target.stream is None
    else:
        with pytest.raises(SequoiaError, match=complaint):
            load_pair(*folders, device="cpu", **options)


def test_an_offloaded_target_is_not_compiled(make_model: Callable[..., Path]) -> None:
    with pytest.raises(SequoiaError, match="compile the draft alone"):
        offloaded(make_model).compile()


def test_an_empty_model_has_the_tensors_of_its_configuration() -> None:
    """Rotary frequencies, embedding scales and causal masks are those of an ordinary model."""
    from transformers import AutoModelForCausalLM

    for architecture in ARCHITECTURES:
        config = small_config(architecture)
        expected = AutoModelForCausalLM.from_config(config)
        model = empty_model(config, torch.float32)
        buffers = dict(model.named_buffers())
        for name, buffer in expected.named_buffers():
            assert torch.equal(buffers[name], buffer)
        assert all(parameter.is_meta for parameter in model.parameters())


def test_random_layers_share_their_weights() -> None:
    config = small_config("llama", **LAYERS, tie_word_embeddings=True)
    model = random_model(config, torch.bfloat16)
    _, layers = decoder_layers(model)
    first, last = (named_weights(layers[i]) for i in (0, 6))
    assert all(tensor.data_ptr() == last[name].data_ptr() for name, tensor in first.items())
    assert 0.01 < float(first["mlp.up_proj.weight"].std()) < 0.03
    assert torch.equal(first["input_layernorm.weight"], torch.ones(32, dtype=torch.bfloat16))
    again = random_model(config, torch.bfloat16)
    assert all(
        torch.equal(tensor, named_weights(again)[name])
        for name, tensor in named_weights(model).items()
    )
    stream = place_model(model, CPU, Offload("cpu", 140_000))
    assert stream is not None
    logits = model(input_ids=torch.arange(9)[None], use_cache=False).logits
    assert bool(logits.isfinite().all())
    assert float(logits.std()) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_on_a_gpu_tokens_are_the_resident_models(
    make_model: Callable[..., Path], where: str
) -> None:
    target, draft = deep(make_model), make_model("llama", 1)
    fixed, layer = sizes(target, torch.float64)
    resident = load_pair(target, draft, "cuda", "float64", graphs=False)
    pair = load_pair(
        target, draft, "cuda", "float64", offload=where, memory_budget=fixed + 2 * layer
    )
    assert not pair.graphs
    assert pair.target.stream is not None
    assert len(pair.target.stream.streamed) == 5
    tree = shapes.k_ary(2, 3)
    for prompt in ([5, 6, 7], list(range(2, 40))):
        expected = Decoder(resident, tree).generate(prompt, 24, ignore_eos=True)
        generation = Decoder(pair, tree).generate(prompt, 24, ignore_eos=True)
        assert generation.tokens == expected.tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_host_memory_is_pinned_and_released() -> None:
    device = torch.device("cuda")
    memory = host_memory(3_000_000, device)
    assert memory.is_pinned()
    del memory
    again = [host_memory(3_000_000, device) for _ in range(3)]
    assert all(memory.is_pinned() for memory in again)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_memory_with_a_copy_under_way_is_not_reused() -> None:
    """A model may be deleted while the first layers of its next forward pass are loading."""
    device, size = torch.device("cuda"), 2**29
    store = HostStore(device)
    store.add(0, size).fill_(1)
    buffer = LayerBuffer([0], size, store, device, torch.cuda.Stream(device))
    with ThreadPoolExecutor(1) as worker:
        buffer.start_loading(0, worker)
    del buffer, store
    fresh = torch.zeros(size, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    assert not fresh.any()


def test_pinned_memory_is_released_after_its_device_has_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    codes = {"register": 0}

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        calls.append(f"on {device}")
        yield

    def register(*_: object) -> int:
        calls.append("register")
        return codes["register"]

    def launch(*_: object, **__: object) -> None:
        calls.append("launch")
        raise RuntimeError("the error of the failed call")

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=lambda _: calls.append("unregister")
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch, "ones", launch)
    device = torch.device("cuda:1")
    memory = host_memory(1000, device)
    assert calls == ["on cuda:1", "register"]
    calls.clear()
    del memory
    assert calls == ["on cuda:1", "wait", "unregister"]
    codes["register"] = 2
    calls.clear()
    with pytest.raises(SequoiaError, match=r"could not be pinned \(CUDA error 2\)"):
        host_memory(1000, device)
    assert calls == ["on cuda:1", "register", "launch"]  # the launch cleared the error
