"""Decoding with an EAGLE-3 head is lossless, in every mode of the engine that runs on a CPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_texts import exact_chances, follows
from recorder import recorded
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.torch import onednn_linear
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS

TREES = {
    "plain": shapes.chain(1),
    "chain": shapes.chain(4),
    "k-ary": shapes.k_ary(3, 2),
    "uneven": TokenTree([-1, 0, 0, 0, 1, 1, 2, 4, 7], [0, 1, 2, 3, 1, 2, 1, 1, 1]),
}
PROMPT = [2, 5, 3, 7, 4, 2, 6]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], 100 * PROMPT[:6]])
def test_greedy_tokens_are_plain_decodings(prompt: list[int], head_pair: Any) -> None:
    if len(prompt) > 500:  # more than a chunk of a prompt
        prompt = prompt[: head_pair.positions - 45]
    plain = Decoder(head_pair).generate(prompt, 40, ignore_eos=True)
    for name in ("chain", "k-ary", "uneven"):
        generation = Decoder(head_pair, TREES[name]).generate(prompt, 40, ignore_eos=True)
        assert generation.tokens == plain.tokens


def test_greedy_guesses_are_accepted(head_pair: Any) -> None:
    """So that the tests here move along paths of several tokens."""
    rates = [
        Decoder(head_pair, TREES["k-ary"]).generate([a, b, 3], 60, ignore_eos=True).tokens_per_step
        for a in range(2, 6)
        for b in range(2, 6)
    ]
    assert max(rates) > 1.3


@pytest.fixture(scope="module")
def chances(target_folder: Path) -> list[Any]:
    """Those of the four tokens after the prompt."""
    return exact_chances(target_folder, PROMPT, 4, 0.9, 0.95)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("tree", ["chain", "k-ary", "uneven"])
def test_sampled_text_is_distributed_as_the_targets(
    tree: str, verifier: str, head_pair: Any, chances: list[Any]
) -> None:
    decoder = Decoder(head_pair, TREES[tree], 0.9, top_p=0.95, seed=3, verifier=verifier)
    texts = [decoder.generate(PROMPT, 4, ignore_eos=True).tokens for _ in range(200)]
    assert follows(texts, chances)


@pytest.mark.parametrize("name", ["chain", "k-ary", "uneven"])
def test_the_heads_cache_is_that_of_the_accepted_text(name: str, head_pair: Any) -> None:
    """It equals the cache of a head that reads the text with the target's hidden states."""
    session = Decoder(head_pair, TREES[name], 0.9).session()
    generation = session.generate(PROMPT, 60, ignore_eos=True)
    text = [*PROMPT, *generation.tokens]
    head, target = head_pair.drafter.model, head_pair.target
    # The next step reads what the last one committed.
    count = len(text) - 1 - TREES[name].depth - 1
    with torch.inference_mode():
        target_cache, cache = target.reserve(len(text)), head.reserve(len(text))
        target.extend(target_cache, torch.tensor([text]), 0)
        states = head_pair.drafter.hidden.last()
        head.read(cache, torch.tensor([text[1:]]), states[:, :-1], 1)
    for ours, expected in zip(
        [*session.caches.draft.keys, *session.caches.draft.values],
        [*cache.keys, *cache.values],
        strict=True,
    ):
        torch.testing.assert_close(ours[:, :, :count], expected[:, :, :count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [None, LogitsOptions(1.3, presence_penalty=0.5)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_recorded_steps_give_the_same_tokens(
    temperature: float, options: LogitsOptions | None, head_pair: Any
) -> None:
    """Two texts take turns in one recording."""
    decoder = Decoder(head_pair, TREES["uneven"], temperature, logits_options=options)
    prompts = PROMPT, PROMPT[::-1]
    alone = [decoder.generate(prompt, 40, ignore_eos=True).tokens for prompt in prompts]
    recorder = recorded(decoder)
    decoder.reseed(0)
    streams = [decoder.stream(prompt, 40, ignore_eos=True) for prompt in prompts]
    running = [iter(stream) for stream in streams]
    while running:
        running = [steps for steps in running if next(steps, None) is not None]
    assert [stream.generation.tokens for stream in streams] == alone
    assert recorder.recorded


@pytest.mark.parametrize("verifier", ["greedy", "sequoia"])
def test_a_step_is_one_graph(verifier: str, head_pair: Any) -> None:
    """It compiles without a graph break, so that CUDA graphs can hold it: nothing is read back."""
    temperature = 0.0 if verifier == "greedy" else 0.8
    decoder = Decoder(head_pair, TREES["uneven"], temperature, verifier="sequoia")
    session = decoder.session()
    session.start(PROMPT, 30)
    for _ in range(3):
        session.advance()
    state, length = session._state, session.length
    uniforms = decoder.uniforms_for_step(decoder.random_numbers(1))
    with torch.inference_mode():
        expected, expected_state = decoder.step(session.caches, state, length, uniforms)
        compiled = torch.compile(decoder.step, fullgraph=True, backend="eager")
        emitted, after = compiled(session.caches, state, length, uniforms)
    assert emitted.tolist() == expected.tolist()
    for tensor, eager in zip(after.tensors, expected_state.tensors, strict=True):
        torch.testing.assert_close(tensor, eager)


@pytest.mark.parametrize("tree", ["plain", "chain", "k-ary"])
def test_a_conversation_is_read_on_from_where_texts_part(
    tree: str, head_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are a new session's at a temperature, where they depend on what the head says."""
    seen: list[int] = []
    extend = head_pair.target.extend

    def counting(cache: object, tokens: torch.Tensor, *others: Any) -> Any:
        seen.append(tokens.shape[1])
        return extend(cache, tokens, *others)

    monkeypatch.setattr(head_pair.target, "extend", counting)
    text = PROMPT * 3
    session = Decoder(head_pair, TREES[tree], 0.9).session()
    session.generate(text, 15, ignore_eos=True)
    for addition in ([], [3, 4, 5], [2]):
        text = [*text, *addition]
        seen.clear()
        session._numbers = session._decoder.random_numbers(5)
        new = session.generate(text, 15, ignore_eos=True)
        assert 0 < sum(seen) < len(text)
        other = Decoder(head_pair, TREES[tree], 0.9, seed=5).session()
        other._numbers = other._decoder.random_numbers(5)
        expected = other.generate(text, 15, ignore_eos=True)
        assert (new.tokens, new.steps) == (expected.tokens, expected.steps)
        text += new.tokens


@pytest.mark.parametrize("batch", [1, 2])
def test_compiled_passes_say_the_same(
    batch: int,
    head_folder: Path,
    target_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    reset_compiler: None,
) -> None:
    """The graphs are only traced."""
    compile_by_torch = torch.compile

    def tracing(forward: Any, **options: Any) -> Any:
        whole = options.get("fullgraph", False)
        return compile_by_torch(forward, backend="eager", fullgraph=whole)

    monkeypatch.setattr(torch, "compile", tracing)
    pair = load_pair(target_folder, head_folder, "cpu", "float64")
    expected = Decoder(pair, TREES["uneven"], 0.9, seed=1).generate(PROMPT, 30, ignore_eos=True)
    pair.compile(batch=batch)
    assert pair.compiled == ["target", "draft"]
    if batch == 1:
        compiled = Decoder(pair, TREES["uneven"], 0.9, seed=1)
        assert compiled.generate(PROMPT, 30, ignore_eos=True).tokens == expected.tokens


def test_compiled_sums_say_the_same(
    head_folder: Path, target_folder: Path, monkeypatch: pytest.MonkeyPatch, reset_compiler: None
) -> None:
    """As on an AMD CPU, by generated code; compiling for several texts leaves the graphs valid."""
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(onednn_linear, "is_amd", lambda: True)
    monkeypatch.setattr(onednn_linear, "SUMMED_ROWS_CACHED", 3)
    pair = load_pair(target_folder, head_folder, "cpu", "float32")
    expected = Decoder(pair, TREES["uneven"]).generate(PROMPT, 40, ignore_eos=True)
    pair.compile(["draft"])
    pair.compile(["draft"], batch=3)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = Decoder(pair, TREES["uneven"]).generate(PROMPT, 40, ignore_eos=True)
    assert (compiled.tokens, compiled.steps) == (expected.tokens, expected.steps)
    assert expected.steps < 39


def test_sums_read_a_head_of_16_bits_in_16_bits(
    head_folder: Path, target_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "is_amd", lambda: True)
    monkeypatch.setattr(onednn_linear, "worth_packing", lambda dtype: 1)
    folder = shutil.copytree(head_folder, tmp_path / "head")
    [path] = folder.glob("*.safetensors")
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(halves, path)
    model = load_pair(target_folder, folder, "cpu", "float32").drafter.model
    model._made_to_compile()
    summed = [layer for layer in model.head.modules() if getattr(layer, "summed", 0)]
    if not summed:
        pytest.skip("no kernels here")
    assert {layer.weight.dtype for layer in summed} == {torch.float16}


def test_a_head_whose_graphs_say_something_else_is_refused(
    head_folder: Path, target_folder: Path, monkeypatch: pytest.MonkeyPatch, reset_compiler: None
) -> None:
    def wrong(forward: Any, **_: Any) -> Any:
        def run(*arguments: Any) -> Any:
            logits, outputs = forward(*arguments)
            return logits + torch.arange(logits.shape[-1]), outputs

        return run

    pair = load_pair(target_folder, head_folder, "cpu", "float64")
    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(SequoiaError, match="head: gives other logits when compiled"):
        pair.compile(["draft"])


def test_a_target_of_another_architecture(
    make_model: Callable[..., Path], head_folder: Path
) -> None:
    """The target's layers may be of any kind."""
    folder = make_model("gemma2", vocab_size=8)
    pair = load_pair(folder, head_folder, "cpu", "float64")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        for _ in range(12):
            chosen = model(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, chosen], dim=1)
    generation = Decoder(pair, TREES["k-ary"]).generate(PROMPT, 12, ignore_eos=True)
    assert [*PROMPT, *generation.tokens] == tokens[0].tolist()


def test_more_guesses_than_the_head_has_tokens(head_pair: Any) -> None:
    with pytest.raises(SequoiaError, match="7 children, but the draft makes at most 6 guesses"):
        Decoder(head_pair, shapes.k_ary(7, 1))
