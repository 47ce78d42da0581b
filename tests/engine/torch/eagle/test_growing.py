"""Adaptive plans with an EAGLE-3 head: what it says at the nodes of growing trees, and the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_texts import exact_chances, follows
from lookup_pairs import looking_up, lookup_policy, with_lookup_first
from policies import random_policy
from recorder import Recorder
from slow_head import SlowHead, target_states

from sequoia_opt.api import load_pair
from sequoia_opt.engine import adaptive_step
from sequoia_opt.engine.adaptive_step import GrowingState
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.engine.drafters.growing import Drafted, GrowingDrafter
from sequoia_opt.engine.drafters.lookup_index import CorpusIndex
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.torch.machine import TorchMachine
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import LACKING_BEHIND_LOOKUPS, Pause, Policy
from sequoia_opt.plan.tree import TokenTree

PROMPT = [2, 5, 3, 7, 4, 2, 6]
SHAPES = [(6, 1, 1), (4, 3, 3), (2, 4, 1), (1, 5, 1)]
LONG = Pause(1, (2, LACKING_BEHIND_LOOKUPS + 5))  # so that the head lacks more than a pass takes
PAUSES = [None, Pause(1, (2, 5)), LONG]


def plan(policy: Policy) -> TokenTree:
    return TokenTree([-1, 0], [0, 1], policy=policy)


def generous(pause: Pause | None = None, depth: int = 5, ranks: int = 4) -> Policy:
    """It offers what the head finds likely, and drafts on while that is likely enough."""
    row = (0.1, 0.4, 0.6, 0.8, 0.95)
    return Policy(
        Confidence((0.05, 0.2, 0.4, 0.7), ((row,) * ranks,)),
        depth,
        ranks,
        expand=((1, 0.1), (2, 0.3), (3, 0.5)),
        first=0.0,
        offer=0.05,
        sizes=(1, 4, 8, 16, 32),
        pause=pause,
    )


def follow(pair: Any, text: Sequence[int], length: int) -> Any:
    """The cache of a head that has read a text with the target's hidden states."""
    head, target = pair.drafter.model, pair.target
    cache, target_cache = head.reserve(length), target.reserve(length)
    with torch.inference_mode():
        target.extend(target_cache, torch.tensor([text[:length]]), 0)
        states = pair.drafter.hidden.last()
        head.read(cache, torch.tensor([text[1:length]]), states[:, :-1], 1)
    target.release(target_cache)
    return cache


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]], ids=["prompt", "one token"])
@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_greedy_tokens_are_those_of_plain_decoding(
    pause: Pause | None, prompt: list[int], head_pair: Any
) -> None:
    expected = Decoder(head_pair).generate(prompt, 60, ignore_eos=True).tokens
    policies = [random_policy(shape, seed, pause) for shape in SHAPES for seed in range(2)]
    accepted = 0
    for policy in [*policies, generous(pause)]:
        generation = Decoder(head_pair, plan(policy)).generate(prompt, 60, ignore_eos=True)
        assert generation.tokens == expected
        for counter in (generation.sizes, generation.levels, generation.ended):
            assert counter.total() == generation.steps
        accepted = max(accepted, *generation.ended)
    assert accepted > 1


@pytest.mark.parametrize("verifier", ["greedy", "topk", "specinfer"])
@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_every_node_says_what_a_slow_head_says(
    pause: Pause | None,
    verifier: str,
    head_pair: Any,
    target_folder: Path,
    slow: SlowHead,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was committed is read with the target's hidden states, guesses with the head's own."""
    steps: list[tuple[int, Drafted]] = []
    grow = GrowingDrafter.draft

    def keep(self: Any, cache: Any, lacking: Any, held: int, *others: Any) -> Drafted:
        drafted = grow(self, cache, lacking, held, *others)
        steps.append((held + len(lacking), drafted))
        return drafted

    monkeypatch.setattr(GrowingDrafter, "draft", keep)
    temperature = 0.0 if verifier == "greedy" else 0.9
    used = verifier if temperature else "sequoia"
    decoder = Decoder(head_pair, plan(generous(pause)), temperature, seed=3, verifier=used)
    generation = decoder.generate(PROMPT, 50, ignore_eos=True)
    whole = [*PROMPT, *generation.tokens]
    states = target_states(target_folder, whole, (2, 1, 0))  # 2, n // 2 and n - 3 of 3 layers
    scale = 0.9 if verifier == "specinfer" else 1.0
    below = 0
    for length, drafted in steps:
        if length > len(whole):
            continue  # the last step goes on past the text
        growth = drafted.growth
        paths: dict[int, list[int]] = {0: []}
        for node in range(1, len(growth.parents)):
            paths[node] = [*paths[growth.parents[node]], drafted.tokens[node]]
        products = {0: 1.0}
        for node in dict.fromkeys(growth.parents[1:]):
            logits = slow.path_logits(whole[:length], states[: length - 1], paths[node])[-1]
            chances = (logits / scale).softmax(-1).sort(descending=True).values
            children = [child for child in range(1, len(paths)) if growth.parents[child] == node]
            for rank, child in enumerate(children):
                products[child] = products[node] * float(chances[rank])
                assert growth._products[child] == pytest.approx(products[child], abs=1e-4)
            below += node > 0
    assert below > 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_the_heads_cache_is_that_of_the_text(
    temperature: float, pause: Pause | None, head_pair: Any
) -> None:
    """It equals the cache of a head that reads the text with the target's hidden states."""
    session = Decoder(head_pair, plan(generous(pause)), temperature).session()
    lacks = set()
    for length in range(20, 70, 4):
        generation = session.generate(PROMPT, length, ignore_eos=True)
        text = [*PROMPT, *generation.tokens]
        state = session._state
        assert isinstance(state, GrowingState)
        assert state.before is not None
        assert len(state.before) == len(state.lacking)
        lacks.add(len(state.lacking))
        held = min(state.held, len(text))
        cache = follow(head_pair, text, held)
        for ours, expected in zip(
            [*session.caches.draft.keys, *session.caches.draft.values],
            [*cache.keys, *cache.values],
            strict=True,
        ):
            ours, expected = (tensor[:, :, : held - 1] for tensor in (ours, expected))
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        head_pair.drafter.release(cache)
    assert max(lacks) > 1


@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_a_conversation_is_read_on_from_where_texts_part(
    pause: Pause | None, head_pair: Any
) -> None:
    """At a temperature, where the tokens depend on what the head says."""
    text = PROMPT * 3
    session = Decoder(head_pair, plan(generous(pause)), 0.9).session()
    session.generate(text, 15, ignore_eos=True)
    for addition in ([], [3, 4, 5], [2]):
        text = [*text, *addition]
        session._numbers = Decoder(head_pair, seed=5).random_numbers(5)
        new = session.generate(text, 15, ignore_eos=True)
        other = Decoder(head_pair, plan(generous(pause)), 0.9, seed=5).session()
        expected = other.generate(text, 15, ignore_eos=True)
        assert (new.tokens, new.steps) == (expected.tokens, expected.steps)
        text += new.tokens


def test_sessions_of_one_decoder_take_turns(head_pair: Any) -> None:
    """The hidden states that a text's head has not read yet are its own."""
    decoder = Decoder(head_pair, plan(generous(Pause(1, (2, 4)))))
    prompts = [PROMPT, PROMPT[::-1], PROMPT[2:]]
    alone = [decoder.generate(prompt, 40, ignore_eos=True) for prompt in prompts]
    streams = [decoder.stream(prompt, 40, ignore_eos=True) for prompt in prompts]
    iterators = [iter(stream) for stream in streams]
    while iterators:
        iterators = [iterator for iterator in iterators if next(iterator, None) is not None]
    for stream, expected in zip(streams, alone, strict=True):
        assert stream.generation.tokens == expected.tokens
        assert stream.generation.sizes == expected.sizes


def test_penalties_give_the_tokens_of_plain_decoding(head_pair: Any) -> None:
    options = LogitsOptions(1.3, {5: 2.0}, 0.5, 0.5)
    expected = Decoder(head_pair, logits_options=options).generate(PROMPT, 40, ignore_eos=True)
    decoder = Decoder(head_pair, plan(generous(PAUSES[1])), logits_options=options)
    assert decoder.generate(PROMPT, 40, ignore_eos=True).tokens == expected.tokens


@pytest.fixture(scope="module")
def chances(target_folder: Path) -> list[Any]:
    """Those of the three tokens after the prompt."""
    return exact_chances(target_folder, PROMPT, 4, 0.9, 0.95)


@pytest.mark.parametrize("verifier", ["topk", "sequoia", "specinfer"])
def test_sampled_text_is_distributed_as_the_targets(
    verifier: str, head_pair: Any, chances: list[Any]
) -> None:
    policy = generous(Pause(2, (1,)), depth=3)
    decoder = Decoder(head_pair, plan(policy), 0.9, top_p=0.95, seed=3, verifier=verifier)
    generations = [decoder.generate(PROMPT, 4, ignore_eos=True) for _ in range(200)]
    assert any(count > 1 for generation in generations for count in generation.ended)
    assert follows([generation.tokens for generation in generations], chances)


@torch.inference_mode()
def test_recorded_target_passes_keep_their_hidden_states(
    head_folder: Path, target_folder: Path
) -> None:
    """Each replay's own, not those of the pass that was recorded last."""
    target: Any = load_pair(target_folder, head_folder, "cpu", "float64").target
    eager, record = target.growing_passes(16, 8), Recorder()
    target.record = record
    recorded = target.growing_passes(16, 8)
    caches = [target.reserve(64), target.reserve(64)]
    random = np.random.default_rng(0)
    for length, size in enumerate([1, 4, 8, 1, 8, 4, 1, 4], start=5):
        tokens = random.integers(0, 8, size).tolist()
        parents = [-1, *(int(random.integers(0, node)) for node in range(1, size))]
        states = []
        for passes, cache in zip((eager, recorded), caches, strict=True):
            passes.begin(cache, length, 32)
            passes.run(tokens, parents, size)
            states.append(target.kept.last().clone())
            passes.accept([0])
        assert states[0].shape == (1, size, 3 * 32)
        assert torch.equal(*states)
    assert record.recorded == 3


def test_recorded_target_passes_serve_all_lengths_of_a_bucket(
    head_folder: Path, target_folder: Path
) -> None:
    """One recording for each size of a tree; steps decode as without any."""
    pair = load_pair(target_folder, head_folder, "cpu", "float64")
    tree = plan(generous(Pause(1, (2, 5))))
    expected = Decoder(pair, tree, 0.9, seed=1).generate(PROMPT, 60, ignore_eos=True)
    machine = TorchMachine(torch.device("cpu"), graphs=True)
    target: Any = pair.target
    machine.recorder = target.record = recorder = Recorder()
    decoder = Decoder(replace(pair, machine=machine), tree, 0.9, seed=1)
    generation = decoder.generate(PROMPT, 60, ignore_eos=True)
    assert generation.tokens == expected.tokens
    assert generation.sizes == expected.sizes
    assert recorder.recorded == len(generation.sizes) > 1
    assert 0 < decoder.recording_seconds == recorder.seconds


def test_compiled_passes_say_the_same(
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
    tree = plan(generous())
    expected = Decoder(pair, tree, 0.9, seed=1).generate(PROMPT, 30, ignore_eos=True)
    pair.compile()
    generation = Decoder(pair, tree, 0.9, seed=1).generate(PROMPT, 30, ignore_eos=True)
    assert generation.tokens == expected.tokens


def test_the_last_positions_can_be_used(head_pair: Any) -> None:
    prompt = (PROMPT * 60)[: head_pair.positions - 24]
    expected = Decoder(head_pair).generate(prompt, 24, ignore_eos=True).tokens
    decoder = Decoder(head_pair, plan(random_policy((6, 2, 2), 1)))
    assert decoder.generate(prompt, 24, ignore_eos=True).tokens == expected


@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_a_lookup_before_a_head(pause: Pause | None, head_pair: Any) -> None:
    """During the lookup's steps the head falls behind, and reads it all later."""
    expected = Decoder(head_pair).generate(PROMPT, 80, ignore_eos=True).tokens
    parts = [expected[start : start + 7] for start in range(0, 80, 15)]
    pair = with_lookup_first(head_pair, LookupDrafter(CorpusIndex([PROMPT, *parts])))
    policy = looking_up(generous(pause), lookup_policy(6), 0.5)
    session = Decoder(pair, plan(policy)).session()
    generation = session.generate(PROMPT, 80, ignore_eos=True)
    assert generation.tokens == expected
    assert 0 < generation.looked_up < generation.steps
    state: Any = session._state
    held = min(state.held, len(PROMPT) + 80)
    cache = follow(pair, [*PROMPT, *expected], held)
    torch.testing.assert_close(
        session.caches.draft.keys[0][:, :, : held - 1], cache.keys[0][:, :, : held - 1]
    )


@pytest.mark.parametrize(
    ("policy", "arguments", "complaint"),
    [
        (generous(), {"temperature": 1.0, "verifier": "traversal"}, "use --verifier sequoia or"),
        (generous(ranks=7), {}, "at most 6 guesses"),
        (generous(depth=256), {}, "only 256 positions"),
    ],
)
def test_what_an_adaptive_plan_cannot_run_with(
    policy: Policy, arguments: dict[str, Any], complaint: str, head_pair: Any
) -> None:
    with pytest.raises(SequoiaError, match=complaint) as refusal:
        Decoder(head_pair, plan(policy), **arguments)
    assert "\n" not in str(refusal.value)


def test_a_head_does_not_fall_behind_without_end(
    head_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states are kept for so many tokens that a lookup has guessed, and then read."""
    expected = Decoder(head_pair).generate(PROMPT, 120, ignore_eos=True).tokens
    pair = with_lookup_first(head_pair, LookupDrafter(CorpusIndex([[*PROMPT, *expected]])))
    policy = looking_up(generous(None), lookup_policy(6), 0.0)
    lacking = {}
    for most in (20, 1000):
        monkeypatch.setattr(adaptive_step, "MOST_LACKING", most)
        session = Decoder(pair, plan(policy)).session()
        generation = session.generate(PROMPT, 120, ignore_eos=True)
        assert generation.tokens == expected
        state: Any = session._state
        assert len(state.before) == len(state.lacking)
        lacking[most] = len(state.lacking)
    assert lacking[20] <= 20 + 7 < 100 < lacking[1000]
