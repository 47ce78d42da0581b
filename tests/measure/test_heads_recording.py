"""What a head says behind each root, recorded, against a slow head and against decoding itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_texts import documents
from safetensors.torch import load_file
from slow_head import SlowHead, target_states

from sequoia_opt.engine.adaptive_step import GrowingState
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.measure.drafts_recording import DraftsRecorder
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Pause, Policy
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.recording import Envelope, Recording, slots_of
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree

OPTIONS = EstimateOptions(max_new_tokens=30, width=5, batch=2, envelope=Envelope(4, 3, 4))
SAMPLINGS = [
    Sampling(),
    Sampling(0.9, 0.95, "topk"),
    Sampling(0.9),
    Sampling(0.9, 1.0, "specinfer"),
]


def sampled(
    head_pair: Any, sampling: Sampling, monkeypatch: pytest.MonkeyPatch, count: int = 4
) -> tuple[Acceptance, list[tuple[list[int], list[int]]]]:
    """A small recording, and each document's prompt and new tokens."""
    texts = []
    original = DraftsRecorder.record

    def record_and_keep(self: Any, prompt: Any, text: Any, ranks: Any) -> Recording:
        texts.append((list(prompt), list(text.tokens)))
        return original(self, prompt, text, ranks)

    monkeypatch.setattr(DraftsRecorder, "record", record_and_keep)
    (acceptance,) = estimate(head_pair, documents(count), "tokens", [sampling], OPTIONS)
    return acceptance, sorted(texts, key=lambda one: len(one[0]))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda one: f"{one.verifier}-{one.temperature}")
def test_trees_say_what_a_slow_head_says_behind_each_root(
    sampling: Sampling,
    head_pair: Any,
    head_folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the nodes on the text's own path; and the text's rank there is among the guesses."""
    acceptance, texts = sampled(head_pair, sampling, monkeypatch)
    recording = acceptance.recording
    assert recording is not None
    assert recording.is_of_head
    assert recording.path_ranks is not None
    target, head = (load_file(folder / "model.safetensors") for folder in head_folders)
    slow = SlowHead(head | {"embed_tokens.weight": target["model.embed_tokens.weight"]})
    ids = head_pair.drafter.model.token_ids.tolist()
    scale = sampling.temperature if sampling.verifier in ("sequoia", "specinfer") else 0
    below = 0
    for document, (prompt, tokens) in enumerate(texts):
        text, first = [*prompt, *tokens], recording.starts[document]
        states = target_states(head_folders[0], text, (2, 1, 0))
        for position in range(0, recording.starts[document + 1] - first, 2):
            length, slot = len(prompt) + position + 1, 0
            path = text[length : length + recording.levels - 1]
            logits = slow.path_logits(text[:length], states[: length - 1], path)
            for level in range(min(recording.levels, len(text) - length)):
                chances, order = (logits[level] / (scale or 1.0)).softmax(-1).sort(descending=True)
                recorded = recording.level(level)[first + position, slot]
                np.testing.assert_allclose(recorded, chances[:4], atol=2e-3)
                rank = int(recording.path_ranks[first + position, level])
                if not scale:
                    guesses = [ids[index] for index in order[:4].tolist()]
                    following = text[length + level]
                    assert rank == (guesses.index(following) + 1 if following in guesses else 0)
                origin = slot * recording.width_of_node + rank - 1
                slots = recording.origins[first + position, level : level + 1].ravel().tolist()
                if not rank or origin not in slots:
                    break
                slot = slots.index(origin)
                below += 1
    assert below > 10


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda one: f"{one.verifier}-{one.temperature}")
def test_slots_follow_the_rule(
    sampling: Sampling, head_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = sampled(head_pair, sampling, monkeypatch)[0].recording
    assert recording is not None
    for position in range(len(recording.ranks)):
        products = np.ones(1)
        for number, origins in enumerate(recording.origins[position]):
            table = recording.level(number)[position]
            assert origins.tolist() == slots_of(table, products.tolist(), 3)
            slots, ranks = np.divmod(origins, 4)
            products = products[slots] * table[slots, ranks]


BY_RANK = (0.1, 0.3, 0.4, 0.4), (0.05, 0.2, 0.3, 0.3), (0.02, 0.1, 0.2, 0.2)
CONFIDENCE = Confidence(
    (0.1, 0.3, 0.6), (((0.2, 0.4, 0.6, 0.9), *BY_RANK), ((0.2, 0.4, 0.7, 0.9), *BY_RANK))
)
POLICIES = {
    "chain": Policy(CONFIDENCE, 4, 1, ((1, 0.25),), 0.0, 0.1, (1, 2, 4, 5)),
    "narrow": Policy(CONFIDENCE, 3, 2, ((1, 0.2), (2, 0.3)), 0.0, 0.05, (1, 4, 8)),
    "wide": Policy(CONFIDENCE, 4, 4, ((1, 0.1), (2, 0.2), (3, 0.25)), 0.0, 0.02, (1, 2, 6, 16)),
    "pausing": Policy(
        CONFIDENCE, 3, 3, ((1, 0.1), (3, 0.3)), 0.0, 0.1, (1, 3, 6, 12), Pause(1, (1, 3))
    ),
}


def plan(policy: Policy) -> TokenTree:
    return TokenTree([-1], [0], policy=policy)


@pytest.mark.parametrize("name", POLICIES)
def test_replay_is_what_adaptive_decoding_does(name: str, head_pair: Any) -> None:
    """Greedy: tokens, sizes, passes and what a first pass reads, of each document's steps."""
    policy = POLICIES[name]
    (acceptance,) = estimate(head_pair, documents(4), "tokens", [Sampling()], OPTIONS)
    assert acceptance.recording is not None
    counts = PolicyReplay(acceptance.recording, CONFIDENCE).replay(policy, fill=True)
    decoder, most = Decoder(head_pair, plan(policy)), 0
    for document, one in enumerate(documents(4)):
        length, start = len(acceptance.traces[document]), 0
        sizes, levels, first = (np.zeros_like(of[document]) for of in
                                (counts.sizes, counts.levels, counts.first))  # fmt: skip
        widths, tokens = np.zeros_like(counts.widths[document]), 0
        with decoder.session(conversing=False) as session:
            session.start(one.tokens, 60)
            while start + policy.depth + 1 <= length:
                state = session._state
                assert isinstance(state, GrowingState)
                behind = len(state.lacking) - 1
                new = session.advance()
                assert session.grown_step is not None
                drafted = session.grown_step.growth.widths
                tokens, start = tokens + len(new), start + len(new)
                sizes[session.grown[0]] += 1
                levels[len(drafted)] += 1
                for width in drafted[1:]:
                    widths[width] += 1
                if drafted:
                    first[behind] += 1
                most = max(most, len(new))
        assert counts.tokens[document] == tokens
        assert counts.sizes[document].tolist() == sizes.tolist()
        assert counts.levels[document].tolist() == levels.tolist()
        assert counts.widths[document].tolist() == widths.tolist()
        assert counts.first[document].tolist() == first.tolist()
    assert most > 1


@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=lambda one: one.verifier)
def test_replay_of_sampled_text_yields_as_much_as_decoding(
    sampling: Sampling, head_pair: Any
) -> None:
    """Tokens per step, within four standard errors; the first step of many texts."""
    policy, prompt = POLICIES["wide"], documents(3)[2]
    options = replace(OPTIONS, max_new_tokens=5, batch=50)
    (acceptance,) = estimate(head_pair, [prompt] * 250, "tokens", [sampling], options)
    assert acceptance.recording is not None
    fill = sampling.verifier == "topk"
    steps = PolicyReplay(acceptance.recording, CONFIDENCE).steps(policy, fill)
    replayed = 1 + steps.accepted[acceptance.recording.starts[:-1]]
    decoder = Decoder(
        head_pair,
        plan(policy),
        sampling.temperature,
        top_p=sampling.top_p,
        verifier=sampling.verifier,
        seed=1,
    )
    decoded = []
    for _ in range(400):
        with decoder.session(conversing=False) as session:
            session.start(prompt.tokens, 9)
            decoded.append(len(session.advance()))
    error = np.sqrt(np.var(replayed) / len(replayed) + np.var(decoded) / len(decoded))
    assert np.mean(decoded) > 1.3
    assert abs(np.mean(replayed) - np.mean(decoded)) < 4 * error


def test_what_was_recorded_does_not_depend_on_how_many_grow_together(
    head_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = sampled(head_pair, Sampling(), monkeypatch)[0].recording
    monkeypatch.setattr("sequoia_opt.measure.roots_together.ROOTS", (1,))
    single = sampled(head_pair, Sampling(), monkeypatch)[0].recording
    assert several is not None
    assert single is not None
    assert several.fingerprint == single.fingerprint
