"""A lookup's acceptance and recording, against decoding itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lookup_pairs import plan, with_lookup
from number_texts import documents, token_ids

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.engine.drafters.lookup_index import OCCURRENCES, CorpusIndex, TextIndex
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Pause, Policy
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.recording import Envelope, slots_of
from sequoia_opt.plan.sampling import Sampling

OPTIONS = EstimateOptions(max_new_tokens=70, batch=2, envelope=Envelope(5, 3, 4))
TOPK = Sampling(0.3, 0.9, "topk")


@pytest.fixture
def pair(number_pair: Any) -> Any:
    """A pair whose text goes on as its corpus does, and repeats itself."""
    text = np.random.default_rng(3).integers(2, 40, 300).tolist()
    greedy = [
        Decoder(number_pair).generate(token_ids(one.prompt), 60, ignore_eos=True).tokens
        for one in documents(4)
    ]
    return with_lookup(number_pair, LookupDrafter(CorpusIndex([text, greedy[0], greedy[2][20:]])))


def sampled(pair: Any, sampling: Sampling, options: EstimateOptions = OPTIONS) -> Acceptance:
    (acceptance,) = estimate(pair, documents(4), "numbers", [sampling], options)
    return acceptance


@pytest.mark.parametrize("sampling", [Sampling(), TOPK], ids=lambda one: one.verifier)
def test_ranks_are_those_of_the_text_among_the_candidates(pair: Any, sampling: Sampling) -> None:
    """At temperature 0 the text is plain decoding's; above it, tokens are drawn."""
    acceptance = sampled(pair, sampling)
    accepted = 0
    for document, trace in zip(documents(4), acceptance.traces, strict=True):
        prompt = token_ids(document.prompt)
        if sampling.temperature == 0:
            text = Decoder(pair).generate(prompt, len(trace) + 1).tokens
            index = TextIndex()
            index.extend(prompt)
            for token, following, rank in zip(text, text[1:], trace, strict=False):
                index.extend([token])
                _, tokens = pair.drafter.candidates(index, index.context, OCCURRENCES)
                assert rank == (tokens.index(following) + 1 if following in tokens else 0)
        accepted += sum(rank > 0 for rank in trace)
    assert accepted > 10
    assert acceptance.verifier == ("greedy" if sampling.temperature == 0 else "topk")
    rates = np.bincount(
        [r for trace in acceptance.traces for r in trace], minlength=OCCURRENCES + 1
    )[1:]
    measured = acceptance.rates if acceptance.measured is None else acceptance.measured
    np.testing.assert_allclose(measured, rates / acceptance.positions)


def test_slots_follow_the_rule_of_growth(pair: Any) -> None:
    recording = sampled(pair, Sampling()).recording
    assert recording is not None
    gaps = 0
    for position in range(len(recording.ranks)):
        products = np.ones(1)
        for number, origins in enumerate(recording.origins[position]):
            table = recording.level(number)[position]
            assert origins.tolist() == slots_of(table, products.tolist(), 3)
            slots, ranks = np.divmod(origins, 4)
            products = products[slots] * table[slots, ranks]
            gaps += int((products == 0).sum())
            below = recording.level(number + 1)[position]
            assert (below[products == 0] == 0).all()
    assert gaps


BY_RANK = (0.05, 0.2, 0.3, 0.3), (0.02, 0.1, 0.1, 0.1), (0.01, 0.05, 0.1, 0.1)
CONFIDENCE = Confidence(
    (0.1, 0.3, 0.6), (((0.1, 0.3, 0.5, 0.8), *BY_RANK), ((0.1, 0.2, 0.5, 0.9), *BY_RANK))
)
POLICIES = {
    "chain": Policy(CONFIDENCE, 5, 1, ((1, 0.0),), 0.0, 0.1, (1, 2, 4, 6)),
    "free": Policy(CONFIDENCE, 5, 3, ((1, 0.0), (2, 0.0), (3, 0.0)), 0.0, 0.0, (1, 4, 8, 20)),
    "narrow": Policy(CONFIDENCE, 3, 2, ((1, 0.2), (2, 0.3)), 0.0, 0.05, (1, 4, 8)),
    "pausing": Policy(
        CONFIDENCE, 4, 4, ((1, 0.0), (3, 0.0)), 0.0, 0.2, (1, 3, 6), Pause(2, (1, 3))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_replay_is_what_decoding_does(pair: Any, name: str) -> None:
    """Greedy: tokens, sizes and levels of each document's steps, but for the cut at the end."""
    policy, acceptance = POLICIES[name], sampled(pair, Sampling())
    assert acceptance.recording is not None
    counts = PolicyReplay(acceptance.recording, CONFIDENCE).replay(policy, fill=True)
    decoder = Decoder(pair, plan(policy))
    for document, one in enumerate(documents(4)):
        length, start, steps = len(acceptance.traces[document]), 0, []
        with decoder.session(conversing=False) as session:
            session.start(token_ids(one.prompt), 140)
            while start + policy.depth + 1 <= length:
                tokens = session.advance()
                steps.append((len(tokens), *session.grown))
                start += len(tokens)
        sizes = np.bincount([size for _, size, _ in steps], minlength=counts.sizes.shape[1])
        levels = np.bincount([depth for *_, depth in steps], minlength=policy.depth + 1)
        assert counts.tokens[document] == sum(tokens for tokens, _, _ in steps)
        assert counts.sizes[document].tolist() == sizes.tolist()
        assert counts.levels[document].tolist() == levels.tolist()


def test_what_was_recorded_does_not_depend_on_the_batch(pair: Any) -> None:
    together, alone = (sampled(pair, Sampling(), replace(OPTIONS, batch=n)) for n in (4, 1))
    assert together.recording is not None
    assert alone.recording is not None
    assert together.recording.fingerprint == alone.recording.fingerprint
    assert sampled(pair, Sampling(), replace(OPTIONS, envelope=None)).traces == alone.traces


def test_the_file_says_the_corpus(pair: Any) -> None:
    about = {"corpus": {"name": "notes", "fingerprint": "ab"}}
    named = replace(pair, drafter=LookupDrafter(None, about))
    assert sampled(named, Sampling()).document()["corpus"] == about["corpus"]
    assert "corpus" not in sampled(pair, Sampling()).document()


@pytest.mark.parametrize(
    ("sampling", "options", "complaint"),
    [
        (Sampling(0.6), OPTIONS, "use --verifier topk"),
        (Sampling(), replace(OPTIONS, envelope=None, teacher_forced=True), "drop it"),
    ],
)
def test_what_cannot_be_sampled(
    pair: Any, sampling: Sampling, options: EstimateOptions, complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        sampled(pair, sampling, options)
