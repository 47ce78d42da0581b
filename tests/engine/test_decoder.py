from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_texts import exact_chances, follows
from small_models import VOCABULARY, pair_of, prompt_of
from transformers import AutoModelForCausalLM

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.attention import KVCache
from sequoia_opt.engine.torch.compile import compiled
from sequoia_opt.engine.torch.runner import PREFILL_CHUNK, Runner
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS

ARCHITECTURES = ["llama", "qwen3", "gpt_neox", "mistral", "gemma2", "phi3", "gpt2", "opt"]
TREES = {
    "plain": shapes.chain(1),
    "chain": shapes.chain(4),
    "k-ary": shapes.k_ary(3, 2),
    "sequences": shapes.k_sequences(3, 4),
    "uneven": TokenTree([-1, 0, 0, 0, 1, 1, 2, 4, 7], [0, 1, 2, 3, 1, 2, 1, 1, 1]),
}


def greedy_by_transformers(folder: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of transformers: a forward pass over the whole text for each, uncached."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            next_token = model(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, next_token], dim=1)
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_of_every_tree_are_those_of_transformers(
    architecture: str, make_pair: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    pair = make_pair(architecture, architecture)
    prompt = prompt_of(13)
    expected = greedy_by_transformers(make_model(architecture), prompt, 40)
    most_tokens_per_step = 0.0
    for tree in TREES.values():
        generation = Decoder(pair, tree).generate(prompt, 40, ignore_eos=True)
        assert generation.tokens == expected
        most_tokens_per_step = max(most_tokens_per_step, generation.tokens_per_step)
    assert most_tokens_per_step > 1.1  # some guesses were accepted, so paths were moved


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", ["k-ary", "sequences", "uneven"])
def test_the_drafts_cache_is_that_of_the_accepted_text(
    tree: str, temperature: float, architecture: str, make_pair: Callable[..., Any]
) -> None:
    """It equals the cache of a prefill of the text.

    The text itself cannot show a wrong slot, position or mask of the draft, since it follows the
    target whatever the draft guesses.
    """
    pair, prompt = make_pair(architecture, architecture), prompt_of(13)
    session = Decoder(pair, TREES[tree], temperature).session()
    generation = session.generate(prompt, 60, ignore_eos=True)
    assert generation.tokens_per_step > 1
    # The next step reads the last token, and the one before it if that was a leaf of the tree.
    text = [*prompt, *generation.tokens][:-2]

    def stored(cache: KVCache) -> list[torch.Tensor]:
        return [tensor[:, :, : len(text)] for tensor in (*cache.keys, *cache.values)]

    prefilled = pair.draft.reserve(len(text))
    with torch.inference_mode():
        pair.draft.prefill(prefilled, torch.tensor([text]))
    torch.testing.assert_close(stored(session.caches.draft), stored(prefilled), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("target", "draft"), [("qwen3", "gpt_neox"), ("gpt2", "mistral")])
def test_target_and_draft_of_different_architectures(
    target: str, draft: str, make_pair: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    pair = make_pair(target, draft)
    expected = greedy_by_transformers(make_model(target), prompt_of(9), 24)
    for tree in TREES.values():
        assert Decoder(pair, tree).generate(prompt_of(9), 24, ignore_eos=True).tokens == expected


def test_a_draft_whose_embedding_table_has_another_size(
    make_model: Callable[..., Any], tmp_path: Any
) -> None:
    """Models with the same tokenizer pad their tables differently; tokens stay the target's."""

    for vocabulary in (VOCABULARY - 11, VOCABULARY + 3):
        runners = [
            Runner(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), "m")
            for folder in (make_model("llama"), make_model("llama", 1, vocab_size=vocabulary))
        ]
        pair = pair_of(*runners)
        plain = Decoder(pair).generate(prompt_of(7), 24, ignore_eos=True).tokens
        for temperature in (0.0, 1.0):
            tokens = Decoder(pair, TREES["k-ary"], temperature).generate(prompt_of(7), 24).tokens
            assert len(tokens) == 24
            if temperature == 0:
                assert tokens == plain


@pytest.mark.parametrize("length", [1, 2, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 7])
def test_prompts_of_any_length(length: int, make_pair: Callable[..., Any]) -> None:
    pair = make_pair(max_position_embeddings=1024)
    prompt = prompt_of(length)
    with torch.inference_mode():
        cache = pair.target.reserve(2048)
        expected = pair.target.prefill(cache, torch.tensor([prompt]))
        for start in range(0, length, 100):
            logits = pair.target.extend(cache, torch.tensor([prompt[start : start + 100]]), start)
    assert torch.allclose(expected[0], logits[0, -1], atol=1e-10)
    plain, tree = (
        Decoder(pair, t).generate(prompt, 16, ignore_eos=True).tokens
        for t in (TREES["plain"], TREES["uneven"])
    )
    assert plain == tree


@pytest.fixture(scope="module")
def chances(make_model: Callable[..., Any]) -> list[Any]:
    """Those of the three tokens after a prompt of six."""
    return exact_chances(make_model("llama"), prompt_of(6), 3, 0.7, 0.95)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("tree", ["plain", "chain", "k-ary", "uneven"])
def test_sampled_text_is_distributed_as_the_targets(
    tree: str, verifier: str, make_pair: Callable[..., Any], chances: list[Any]
) -> None:
    decoder = Decoder(make_pair(), TREES[tree], 0.7, top_p=0.95, seed=3, verifier=verifier)
    texts = [decoder.generate(prompt_of(6), 3, ignore_eos=True).tokens for _ in range(250)]
    assert follows(texts, chances)


def test_the_same_seed_gives_the_same_text(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    texts = [
        Decoder(pair, TREES["k-ary"], 1.0, seed=seed).generate(prompt_of(5), 20).tokens
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_caches_may_be_larger_than_needed(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    before = Decoder(pair, TREES["k-ary"]).generate(prompt_of(5), 20, ignore_eos=True).tokens
    for runner in (pair.target, pair.draft):
        runner.release(runner.reserve(5000))
    after = Decoder(pair, TREES["k-ary"]).generate(prompt_of(5), 20, ignore_eos=True).tokens
    assert before == after


def test_the_end_token_ends_the_text(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    endless = Decoder(pair, TREES["chain"]).generate(prompt_of(13), 40, ignore_eos=True).tokens
    end = endless[25]
    end_tokens, pair.end_tokens = pair.end_tokens, frozenset([end])
    try:
        generation = Decoder(pair, TREES["sequences"]).generate(prompt_of(13), 40)
    finally:
        pair.end_tokens = end_tokens
    assert generation.tokens == endless[: endless.index(end) + 1]
    assert generation.stopped == "end"


def test_a_stream_yields_the_generated_tokens(make_pair: Callable[..., Any]) -> None:
    decoder = Decoder(make_pair(), TREES["uneven"])
    stream = decoder.stream(torch.tensor([prompt_of(9)]), 21, ignore_eos=True)
    pieces = list(stream)
    assert [token for piece in pieces for token in piece] == stream.generation.tokens
    assert len(stream.generation.tokens) == 21
    assert len(pieces) == stream.generation.steps + 1
    assert stream.generation.verified >= 20
    assert stream.generation.tokens_per_step == stream.generation.verified / stream.generation.steps
    assert stream.generation.seconds > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"temperature": -0.1}, "temperature: found -0.1"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"top_p": 0.0}, "top-p: found 0"),
        ({"top_p": 1.1}, "top-p: found 1.1"),
        ({"verifier": "magic"}, "verifier: found 'magic'"),
        ({"tree": shapes.k_ary(VOCABULARY + 1, 1)}, "62 children"),
    ],
)
def test_options_out_of_range(
    arguments: dict[str, Any], complaint: str, make_pair: Callable[..., Any]
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        Decoder(make_pair(), **arguments)


@pytest.mark.parametrize(
    ("prompt", "count", "complaint"),
    [
        ([], 5, "prompt is empty"),
        ([1], 0, "max-new-tokens: found 0"),
        ([VOCABULARY], 5, "token ids outside"),
        ([-1], 5, "token ids outside"),
        ([1] * 250, 20, "do not fit the 256 positions"),
    ],
)
def test_prompts_that_do_not_fit(
    prompt: list[int], count: int, complaint: str, make_pair: Callable[..., Any]
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        Decoder(make_pair()).generate(prompt, count)


@pytest.mark.parametrize(
    ("architecture", "graphs"), [("llama", False), ("gpt2", False), ("gpt2", True)]
)
def test_the_last_positions_can_be_used(
    architecture: str,
    graphs: bool,
    make_pair: Callable[..., Any],
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Near the end, nodes beyond the model's last position must not disturb the others."""
    pair = make_pair(architecture, architecture)
    if graphs:  # the path of compiled forward passes, without compiling
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        for runner in (pair.target, pair.draft):
            forward = compiled(runner.model, runner.positions - 1, runner.graph_sizes)
            monkeypatch.setattr(runner, "_graphs", {(): forward})
            monkeypatch.setattr(runner, "compiled", True)
    prompt = prompt_of(256 - 12)
    expected = greedy_by_transformers(make_model(architecture), prompt, 12)
    for tree in TREES.values():
        assert Decoder(pair, tree).generate(prompt, 12, ignore_eos=True).tokens == expected


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_no_temperature_is_too_low(verifier: str, make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    greedy = Decoder(pair, TREES["k-ary"]).generate(prompt_of(5), 16, ignore_eos=True).tokens
    for temperature in (1e-4, 1e-44):
        decoder = Decoder(pair, TREES["k-ary"], temperature, verifier=verifier)
        assert decoder.generate(prompt_of(5), 16, ignore_eos=True).tokens == greedy


def test_kernels_may_return_another_layout(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's memory-efficient attention returns [batch, tokens, heads, dim], transposed."""
    pair = make_pair()
    expected = Decoder(pair, TREES["k-ary"]).generate(prompt_of(5), 8, ignore_eos=True).tokens
    attention = torch.nn.functional.scaled_dot_product_attention

    def transposed(*arguments: Any, **options: Any) -> torch.Tensor:
        return attention(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", transposed)
    tokens = Decoder(pair, TREES["k-ary"]).generate(prompt_of(5), 8, ignore_eos=True).tokens
    assert tokens == expected


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_last_nodes_of_steps_account_for_all_tokens(
    make_pair: Callable[..., Any], temperature: float
) -> None:
    tree = shapes.k_ary(2, 3)
    generation = Decoder(make_pair(), tree, temperature).generate([5, 6, 7], 40, ignore_eos=True)
    assert sum(generation.ended.values()) == generation.steps
    tokens = sum((int(tree.depths[node]) + 1) * count for node, count in generation.ended.items())
    assert tokens == generation.verified
    assert len(generation.ended) > 1


def test_a_reseeded_decoder_repeats_its_text(make_pair: Callable[..., Any]) -> None:
    decoder = Decoder(make_pair(), shapes.chain(3), 0.9, seed=4)
    first, second = (decoder.generate([5, 6, 7], 20, ignore_eos=True).tokens for _ in range(2))
    decoder.reseed(4)
    assert decoder.generate([5, 6, 7], 20, ignore_eos=True).tokens == first != second


@pytest.mark.parametrize("stop", ["日本語日本語", "🙂🙂🙂", "。。。。。。"])
def test_stop_strings_of_multi_byte_characters_end_the_text(stop: str) -> None:
    """Each of their characters takes two to four tokens."""
    pair = load_pair()
    tokens = [
        token for part in ("x = 1", stop, "y") for token in pair.encode(part, beginning=False)
    ]
    stream = Decoder(pair).stream([1], 128, ignore_eos=True, stop=[stop])
    for start in range(0, len(tokens), 3):
        _, is_over = stream._take(tokens[start : start + 3])
        if is_over:
            break
    assert stream.generation.stopped == "stop"
    assert pair.decode(stream.generation.tokens) == f"x = 1{stop}"
    assert stream.text() == "x = 1"
