from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_reference import Reference
from number_texts import documents, token_ids

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.verify import make_verifier
from sequoia_opt.measure.continuations import Continuation
from sequoia_opt.measure.drafts_recording import DraftsRecorder
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Pause, Policy
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.recording import Envelope, Recording, slots_of
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree

SAMPLINGS = [
    Sampling(), Sampling(0.7, 0.9), Sampling(0.7, 1.0, "specinfer"), Sampling(0.8, 0.9, "topk")
]  # fmt: skip
OPTIONS = EstimateOptions(max_new_tokens=14, width=10, batch=2, envelope=Envelope(4, 3, 4))


def record(pair: Any, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A small recording, and what was sampled: for each document its prompt, text and ranks."""
    sampled = []
    original = DraftsRecorder.record

    def record_and_keep(self: Any, prompt: Any, text: Any, ranks: Any) -> Recording:
        sampled.append((list(prompt), text, list(ranks)))
        return original(self, prompt, text, ranks)

    monkeypatch.setattr(DraftsRecorder, "record", record_and_keep)
    (acceptance,) = estimate(pair, documents(5), "numbers", [sampling], OPTIONS)
    assert acceptance.recording is not None
    in_order = sorted(sampled, key=lambda one: len(one[0]))  # documents' prompts grow longer
    return acceptance, in_order


def draft_probabilities(model: torch.nn.Module, text: list[int], temperature: float) -> np.ndarray:
    """The draft's distribution after a text that is read alone."""
    with torch.no_grad():
        logits = model(torch.tensor([text]), use_cache=False).logits[0, -1]
    return (logits / temperature).softmax(-1).numpy()


def paths_of(recording: Recording, position: int) -> list[list[tuple[int, ...]]]:
    """The path of ranks to each slot's node, level by level."""
    levels: list[list[tuple[int, ...]]] = [[()]]
    for origins in recording.origins[position]:
        above = levels[-1]
        slots, ranks = np.divmod(origins, recording.width_of_node)
        levels.append([(*above[s], int(r) + 1) for s, r in zip(slots, ranks, strict=True)])
    return levels


def test_greedy_probabilities_are_those_of_each_path_read_alone(
    number_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses are the likeliest tokens of the path before them, at every slot of every position."""
    acceptance, sampled = record(number_pair, Sampling(), monkeypatch)
    recording = acceptance.recording
    with number_pair.draft.native() as draft:
        for document in (0, 3):
            prompt, text, _ = sampled[document]
            first = recording.starts[document]
            for position in range(recording.starts[document + 1] - first):
                root = prompt + text.tokens[: position + 1]
                rows = iter(recording.probabilities[first + position])
                for paths in paths_of(recording, first + position):
                    for path in paths:
                        tokens = list(root)
                        for rank in path:
                            chances = draft_probabilities(draft, tokens, 1.0)
                            tokens.append(int(np.argsort(-chances, kind="stable")[rank - 1]))
                        chances = np.sort(draft_probabilities(draft, tokens, 1.0))[::-1][:4]
                        np.testing.assert_array_equal(next(rows), chances.astype(np.float16))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda one: f"{one.verifier}-{one.temperature}")
def test_slots_follow_the_rule(
    number_pair: Any, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    """Each level's origins are those of the probabilities on file."""
    acceptance, _ = record(number_pair, sampling, monkeypatch)
    recording = acceptance.recording
    for position in range(len(recording.ranks)):
        products = np.ones(1)
        for number, origins in enumerate(recording.origins[position]):
            table = recording.level(number)[position]
            assert origins.tolist() == slots_of(table, products, 3)
            slots, ranks = np.divmod(origins, 4)
            products = products[slots] * table[slots, ranks]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda one: f"{one.verifier}-{one.temperature}")
def test_trees_follow_the_text_where_it_was_accepted(
    number_pair: Any, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    """At the slot whose ranks are the text's own, the draft says what it says of the text."""
    acceptance, sampled = record(number_pair, sampling, monkeypatch)
    recording = acceptance.recording
    temperature = sampling.temperature if sampling.verifier != "topk" else 1.0
    followed = 0
    with number_pair.draft.native() as draft:
        for document, (prompt, text, ranks) in enumerate(sampled):
            trace = acceptance.traces[document]
            assert ranks == trace
            first = recording.starts[document]
            kept = recording.ranks[first : recording.starts[document + 1]]
            assert kept.tolist() == [rank if rank <= 4 else 0 for rank in trace]
            assert len(text.tokens) == len(trace) + 1
            for position, guesses in enumerate(text.guesses):
                if 0 < trace[position] <= 4:
                    assert guesses[trace[position] - 1] == text.tokens[position + 1]
                levels = paths_of(recording, first + position)
                for depth, paths in enumerate(levels):
                    on_text = tuple(trace[position : position + depth])
                    if len(on_text) < depth or on_text not in paths:
                        break
                    slot = paths.index(on_text)
                    tokens = prompt + text.tokens[: position + depth + 1]
                    chances = draft_probabilities(draft, tokens, temperature or 1.0)
                    recorded = recording.level(depth)[first + position, slot]
                    np.testing.assert_allclose(recorded, np.sort(chances)[::-1][:4], 2e-3)
                    followed += depth > 0
    assert followed > 20


def test_draws_beside_the_text_are_fresh(number_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the text's path a node's guesses are those of its trial, elsewhere new draws."""
    prompt = token_ids(documents(1)[0].prompt)
    passes: list[list[int]] = []
    run = DraftsRecorder._run

    def spying_run(self: Any, tokens: np.ndarray, parents: np.ndarray) -> Any:
        passes.append(tokens.ravel().tolist())
        return run(self, tokens, parents)

    monkeypatch.setattr(DraftsRecorder, "_run", spying_run)
    # The text takes the first position's second guess, and ends behind the second position.
    text = Continuation(2, [7, 9, 5], [[8, 9], [10, 11]])
    seen = set()
    verifier = make_verifier("sequoia", 1.0)
    with DraftsRecorder(number_pair, verifier, Envelope(3, 2, 2), 30) as recorder:
        for _ in range(12):
            passes.clear()
            recording = recorder.record(prompt, text, [2, 0])
            trunk, second, third = passes
            assert trunk == [7, 9]
            origins = recording.origins
            guesses = [[8, 9], [10, 11]]
            for root in range(2):
                nodes = second[2 * root : 2 * root + 2]
                assert nodes == [guesses[root][rank] for rank in origins[root, 0]]
            beside = []
            for slot, origin in enumerate(origins[0, 1]):
                parent, rank = divmod(int(origin), 2)
                if second[parent] == 9:  # on the text's path
                    assert third[slot] == [10, 11][rank]
                else:
                    beside.append(third[slot])
            seen.add(tuple(beside))
    assert len(seen) > 6


BY_RANK = (0.05, 0.2, 0.3, 0.3), (0.02, 0.1, 0.1, 0.1), (0.01, 0.05, 0.1, 0.1)
CONFIDENCE = Confidence(
    (0.1, 0.3, 0.6), (((0.1, 0.3, 0.5, 0.8), *BY_RANK), ((0.1, 0.2, 0.5, 0.9), *BY_RANK))
)
POLICIES = {
    "chain": Policy(CONFIDENCE, 4, 1, ((1, 0.25),), 0.0, 0.1, (1, 2, 4, 5)),
    "narrow": Policy(CONFIDENCE, 3, 2, ((1, 0.2), (2, 0.3)), 0.0, 0.05, (1, 4, 8)),
    "wide": Policy(CONFIDENCE, 4, 4, ((1, 0.1), (2, 0.2), (3, 0.25)), 0.0, 0.02, (1, 2, 6, 16)),
    "pausing": Policy(
        CONFIDENCE, 2, 3, ((1, 0.3), (3, 0.4)), 0.0, 0.2, (1, 3, 6), Pause(1, (1, 3))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_replay_is_what_adaptive_decoding_does(number_pair: Any, name: str) -> None:
    """Greedy: tokens, steps and passes of each document, exactly, but for the cut at the end."""
    policy = POLICIES[name]
    options = replace(OPTIONS, max_new_tokens=30)
    prompts = documents(3)
    (acceptance,) = estimate(number_pair, prompts, "numbers", options=options)
    assert acceptance.recording is not None
    counts = PolicyReplay(acceptance.recording, CONFIDENCE).replay(policy, fill=True)
    decoder = Decoder(number_pair, TokenTree([-1], [0], policy=policy))
    decoded: list[tuple[list[int], list[list[int]]]] = []
    with number_pair.target.native() as target, number_pair.draft.native() as draft:
        reference = Reference(target, draft, policy)
        for document, prompt in enumerate(prompts):
            length = len(acceptance.traces[document])
            start, counted = 0, []
            steps = reference.steps(token_ids(prompt.prompt), length + 1)
            decoded.append((token_ids(prompt.prompt), [tokens for tokens, _, _ in steps]))
            for tokens, size, widths in steps:
                if start + policy.depth + 1 <= length:
                    counted.append((len(tokens), size, widths))
                start += len(tokens)
            sizes = np.bincount([size for _, size, _ in counted], minlength=counts.sizes.shape[1])
            levels = np.bincount([len(w) for _, _, w in counted], minlength=policy.depth + 1)
            assert counts.tokens[document] == sum(tokens for tokens, _, _ in counted)
            assert counts.sizes[document].tolist() == sizes.tolist()
            assert counts.levels[document].tolist() == levels.tolist()
            later = [width for _, _, widths in counted for width in widths[1:]]
            by_width = np.bincount(later, minlength=policy.width + 1)
            assert counts.widths[document].tolist() == by_width.tolist()
    for ids, steps_tokens in decoded:
        _, *pieces = decoder.stream(ids, 31, ignore_eos=True)
        whole = len(pieces) - 1  # the last one may be cut short
        assert pieces[:whole] == steps_tokens[:whole]


def test_several_processes_and_documents_give_one_recording(number_pair: Any) -> None:
    """The recording of all documents is that of each alone, in the documents' order."""
    prompts = documents(4)
    (together,) = estimate(number_pair, prompts, "numbers", options=OPTIONS)
    alone = [estimate(number_pair, [one], "numbers", options=OPTIONS)[0] for one in prompts]
    assert together.recording is not None
    assert together.recording.documents == 4
    for document, one in enumerate(alone):
        assert one.recording is not None
        part = together.recording.of_documents([document])
        np.testing.assert_array_equal(part.origins, one.recording.origins)
        np.testing.assert_array_equal(part.probabilities, one.recording.probabilities)
        np.testing.assert_array_equal(part.ranks, one.recording.ranks)


def test_more_positions_than_grow_together_change_nothing(
    number_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (several,) = estimate(number_pair, documents(2), "numbers", options=OPTIONS)
    monkeypatch.setattr("sequoia_opt.measure.roots_together.ROOTS", (1,))
    (single,) = estimate(number_pair, documents(2), "numbers", options=OPTIONS)
    assert several.recording is not None
    assert single.recording is not None
    assert several.recording.fingerprint == single.recording.fingerprint
