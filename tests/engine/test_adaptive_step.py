"""Decoding with adaptive plans on small pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from exact_texts import exact_chances, follows
from growing_texts import (
    PAUSES,
    assert_penalties_change_plain_decoding_alike,
    assert_text_follows_its_seed,
    missing_of_drafts_cache,
    taking_turns,
)
from policies import random_policy
from small_models import VOCABULARY, pair_of, prompt_of
from transformers import AutoModelForCausalLM

from sequoia_opt.engine.adaptive_step import AdaptiveStep
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.growing import Drafted, GrowingDrafter
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.torch.machine import TorchMachine
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Pause, Policy
from sequoia_opt.plan.tree import TokenTree

SHAPES = [(6, 1, 1), (4, 3, 3), (2, 4, 1), (1, 5, 1)]


def plan(policy: Policy) -> TokenTree:
    return TokenTree([-1, 0], [0, 1], policy=policy)


def generous(depth: int = 4, ranks: int = 3, pause: Pause | None = None) -> Policy:
    """It offers what the draft finds likely, and drafts on while that is likely enough."""
    edges = (0.01, 0.1, 0.3, 0.6)
    row = (0.0, 0.1, 0.3, 0.5, 0.9)
    return Policy(
        Confidence(edges, ((row,) * ranks,)),
        depth,
        ranks,
        expand=((1, 0.2), (2, 0.5)),
        first=0.0,
        offer=0.05,
        sizes=(1, 2, 4, 8),
        pause=pause,
    )


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_greedy_tokens_are_those_of_plain_decoding(
    architecture: str, pause: Pause | None, make_pair: Callable[..., Any]
) -> None:
    pair = make_pair(architecture, architecture)
    expected = Decoder(pair).generate(prompt_of(13), 60, ignore_eos=True).tokens
    sizes, accepted = set(), 0
    policies = [random_policy(shape, seed, pause) for shape in SHAPES for seed in range(3)]
    for policy in [*policies, generous(pause=pause)]:
        generation = Decoder(pair, plan(policy)).generate(prompt_of(13), 60, ignore_eos=True)
        assert generation.tokens == expected
        assert generation.verified == generation.steps + sum(
            count * steps for count, steps in generation.ended.items()
        )
        for counter in (generation.sizes, generation.levels, generation.ended):
            assert counter.total() == generation.steps
        assert set(generation.sizes) <= set(policy.sizes)
        sizes |= set(generation.sizes)
        accepted = max(accepted, *generation.ended)
    assert len(sizes) > 3
    assert accepted > 1


@pytest.mark.parametrize("policy", [generous(), random_policy((3, 2, 2), 1)], ids=["", "random"])
def test_guesses_are_counted_where_the_text_reached_them(
    policy: Policy, make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted once more by the tokens of greedy steps, whose guesses differ from one another."""
    drafts: list[Drafted] = []
    grow = GrowingDrafter.draft

    def keep(*arguments: Any) -> Drafted:
        drafts.append(grow(*arguments))
        return drafts[-1]

    monkeypatch.setattr(GrowingDrafter, "draft", keep)
    stream = Decoder(make_pair(), plan(policy)).stream(prompt_of(13), 60, ignore_eos=True)
    steps = list(stream)[1:-1]  # without the prompt's token, and a last step that is cut short
    verified, accepted, predicted = 0, 0, 0.0
    for drafted, step in zip(drafts, steps, strict=False):
        growth, node = drafted.growth, 0
        offered = growth.finish(fill=True).nodes
        for token in step:
            children = [child for child in offered if growth.parents[child] == node]
            verified += len(children)
            predicted += sum(growth.values[child] / growth.values[node] for child in children)
            node = next((child for child in children if drafted.tokens[child] == token), 0)
            accepted += node > 0
    monkeypatch.undo()
    generation = Decoder(make_pair(), plan(policy)).generate(
        prompt_of(13), 1 + sum(map(len, steps)), ignore_eos=True
    )
    assert generation.steps == len(steps)
    assert sum(generation.guesses.verified) == verified > 0
    assert sum(generation.guesses.accepted) == accepted > 0
    assert sum(generation.guesses.predicted) == pytest.approx(predicted)
    assert generation.stops.total() == generation.steps
    assert set(generation.stops) <= {"depth", "threshold"}


def test_pauses_are_counted_among_the_stops(make_pair: Callable[..., Any]) -> None:
    policy = generous(pause=Pause(1, (2, 5)))
    generation = Decoder(make_pair(), plan(policy)).generate(prompt_of(13), 60, ignore_eos=True)
    assert 0 < generation.stops["pause"] == generation.levels[0]
    assert generation.stops.total() == generation.steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("pause", [None, Pause(1, (3, 7))], ids=str)
def test_the_drafts_cache_is_that_of_the_text(
    temperature: float, pause: Pause | None, make_pair: Callable[..., Any]
) -> None:
    pair, prompt = make_pair(), prompt_of(13)
    session = Decoder(pair, plan(generous(pause=pause)), temperature).session()
    lacks = set()
    for length in range(40, 60, 3):
        generation = session.generate(prompt, length, ignore_eos=True)
        lacks.add(missing_of_drafts_cache(pair.draft, session, [*prompt, *generation.tokens]))
    assert max(lacks) > 2 if pause else lacks == {1, 2}


@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_a_conversation_goes_on_from_what_both_caches_hold(
    pause: Pause | None, make_pair: Callable[..., Any]
) -> None:
    pair = make_pair()
    plain, session = Decoder(pair), Decoder(pair, plan(generous(pause=pause))).session()
    text = prompt_of(9)
    for turn in range(6):
        expected = plain.generate(text, 11, ignore_eos=True).tokens
        assert session.generate(text, 11, ignore_eos=True).tokens == expected
        text = [*text, *expected, *prompt_of(3, seed=turn)]


def test_sessions_of_one_decoder_take_turns(make_pair: Callable[..., Any]) -> None:
    """What a text's draft lacks, and its pauses, are its own."""
    decoder = Decoder(make_pair(), plan(generous(pause=Pause(1, (2, 4)))))
    for generation, alone in taking_turns(decoder):
        assert generation.tokens == alone.tokens
        assert generation.sizes == alone.sizes


@pytest.mark.parametrize(
    "options",
    [
        LogitsOptions(1.4),
        LogitsOptions(frequency_penalty=0.7, presence_penalty=-0.3),
        LogitsOptions(1.2, {5: 3.0}, 0.5, 0.5, frozenset(range(20, 40)), frozenset([7])),
    ],
)
def test_penalties_give_the_tokens_of_plain_decoding(
    options: LogitsOptions, make_pair: Callable[..., Any]
) -> None:
    pair = make_pair()
    policies = (generous(), generous(pause=PAUSES[1]), random_policy((3, 3, 2), 4))
    assert_penalties_change_plain_decoding_alike(pair, list(map(plan, policies)), options)


def test_a_draft_whose_embedding_table_has_another_size(make_model: Callable[..., Any]) -> None:
    for vocabulary in (VOCABULARY - 11, VOCABULARY + 3):
        runners = [
            Runner(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), "m")
            for folder in (make_model("llama"), make_model("llama", 1, vocab_size=vocabulary))
        ]
        pair = pair_of(*runners)
        expected = Decoder(pair).generate(prompt_of(7), 24, ignore_eos=True).tokens
        tree = plan(generous(pause=Pause(1, (3,))))
        for temperature in (0.0, 1.0):
            tokens = Decoder(pair, tree, temperature).generate(prompt_of(7), 24).tokens
            assert len(tokens) == 24
            if temperature == 0:
                assert tokens == expected


@pytest.mark.parametrize("verifier", ["topk", "sequoia", "specinfer"])
def test_sampled_text_is_distributed_as_the_targets(
    verifier: str, make_pair: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    prompt, policy = prompt_of(6), generous(3, 2, Pause(2, (1,)))
    decoder = Decoder(make_pair(), plan(policy), 0.7, top_p=0.95, seed=3, verifier=verifier)
    generations = [decoder.generate(prompt, 3, ignore_eos=True) for _ in range(150)]
    assert any(count for generation in generations for count in generation.ended)
    chances = exact_chances(make_model("llama"), prompt, 3, 0.7, 0.95)
    assert follows([generation.tokens for generation in generations], chances)


@pytest.mark.parametrize("verifier", ["topk", "sequoia", "specinfer"])
def test_the_same_seed_gives_the_same_text(verifier: str, make_pair: Callable[..., Any]) -> None:
    def decoder_of(seed: int) -> Decoder:
        return Decoder(make_pair(), plan(generous()), 1.0, seed=seed, verifier=verifier)

    assert_text_follows_its_seed(decoder_of, 20)


class _First(World):
    """The first of two processes; it remembers what it told the other one."""

    told: list[torch.Tensor] = []  # noqa: RUF012

    def agree(self, tensor: torch.Tensor) -> torch.Tensor:
        self.told.append(tensor.clone())
        return tensor


class _Second(World):
    """The second one, which is told the first one's numbers."""

    told: list[torch.Tensor] = []  # noqa: RUF012

    def agree(self, tensor: torch.Tensor) -> torch.Tensor:
        first = self.told.pop(0)
        assert first.shape == tensor.shape
        return first


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_processes_decide_as_the_first_one_does(
    temperature: float, make_pair: Callable[..., Any]
) -> None:
    """Though the second one's models say something else."""
    pair, other = make_pair(), make_pair("qwen3", "qwen3")
    tree = plan(generous(pause=Pause(1, (2,))))
    first, second = _First(0, 2), _Second(1, 2)
    second.told.clear()
    one = Decoder(replace(pair, world=first), tree, temperature, seed=1)
    expected = one.generate(prompt_of(5), 20, ignore_eos=True)
    second.told += first.told
    two = Decoder(replace(other, world=second), tree, temperature, seed=2)
    generation = two.generate(prompt_of(5), 20, ignore_eos=True)
    assert generation.tokens == expected.tokens
    assert generation.sizes == expected.sizes
    assert second.told == []
    first.told.clear()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_last_positions_can_be_used(architecture: str, make_pair: Callable[..., Any]) -> None:
    pair = make_pair(architecture, architecture)
    length = pair.target.positions - 24
    expected = Decoder(pair).generate(prompt_of(length), 24, ignore_eos=True).tokens
    decoder = Decoder(pair, plan(random_policy((6, 2, 2), 1)))
    assert decoder.generate(prompt_of(length), 24, ignore_eos=True).tokens == expected


def test_an_adaptive_step_is_not_recorded(make_pair: Callable[..., Any]) -> None:
    step = Decoder(make_pair(), plan(generous())).step
    assert isinstance(step, AdaptiveStep)
    assert TorchMachine(torch.device("cpu"), graphs=True).prepared(step) is step


@pytest.mark.parametrize(
    ("policy", "arguments", "complaint"),
    [
        (generous(), {"temperature": 1.0, "verifier": "traversal"}, "use --verifier sequoia or"),
        (generous(), {"rates": torch.zeros(5, 3).numpy()}, "cannot be simulated"),
        (generous(ranks=VOCABULARY + 1), {}, f"at most {VOCABULARY} guesses"),
        (generous(depth=256), {}, "only 256 positions"),
    ],
)
def test_what_an_adaptive_plan_cannot_run_with(
    policy: Policy, arguments: dict[str, Any], complaint: str, make_pair: Callable[..., Any]
) -> None:
    with pytest.raises(SequoiaError, match=complaint) as refusal:
        Decoder(make_pair(), plan(policy), **arguments)
    assert "\n" not in str(refusal.value)
