from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from offloaded_pair import ARCHITECTURES, CPU, deep, offloaded, sizes
from policies import random_policy
from safetensors.torch import load_file, save_file
from small_models import small_config

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.engine.torch.empty_model import empty_model
from sequoia_opt.engine.torch.layer_stream import BUFFERS, HostStore, LayerStream
from sequoia_opt.engine.torch.offload import (
    FREE_SHARE,
    LARGEST_CHUNK,
    LEAST_CHUNK,
    Offload,
    choose_streamed,
    place_model,
    prompt_chunk,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.policy import Pause
from sequoia_opt.plan.tree import TokenTree


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
    grown = TokenTree([-1], [0], policy=random_policy((3, 2, 2), 1, Pause(1, (3,))))
    for tree, prompt in product((shapes.k_ary(2, 3), grown), ([5, 6, 7], list(range(2, 40)))):
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
        Decoder(loaded).generate([4, 5], 16, ignore_eos=True).tokens for loaded in (pair, resident)
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
    assert not pair.target._causal._tables


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
def test_options_of_offloading(
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
    grown = TokenTree([-1], [0], policy=random_policy((3, 2, 2), 1, Pause(1, (3,))))
    for tree, prompt in product((shapes.k_ary(2, 3), grown), ([5, 6, 7], list(range(2, 40)))):
        expected = Decoder(resident, tree).generate(prompt, 24, ignore_eos=True)
        generation = Decoder(pair, tree).generate(prompt, 24, ignore_eos=True)
        assert generation.tokens == expected.tokens
