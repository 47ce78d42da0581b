from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from number_texts import documents, token_ids

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.estimator import EstimateOptions, check_sampled, estimate
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.records import Document
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.recording import Envelope
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.verifiers import VERIFIERS


def test_replay_is_what_decoding_does(number_pair: Any) -> None:
    """Greedy: tokens and steps of each document, exactly, but for the cut at the end."""
    prompts = documents(3)
    options = EstimateOptions(max_new_tokens=60, width=12)
    (acceptance,) = estimate(number_pair, prompts, "numbers", options=options)
    for tree in (shapes.chain(4), shapes.k_ary(3, 2), shapes.k_sequences(4, 3)):
        (tokens,), (steps,) = acceptance.replay([tree])
        decoder = Decoder(number_pair, tree)
        for document, trace in zip(prompts, acceptance.traces, strict=True):
            stream = decoder.stream(token_ids(document.prompt), 61, ignore_eos=True)
            pieces = list(stream)
            node, lengths, length = 0, [], 0
            for rank in trace:
                length += 1
                children = tree.children[node]
                node = children[rank - 1] if 0 < rank <= len(children) else 0
                if node == 0:
                    lengths.append(length)
                    length = 0
            assert [len(piece) for piece in pieces[1 : 1 + len(lengths)]] == lengths
        assert (tokens >= steps).all()


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_sampled_probabilities_agree_with_sampled_ranks(
    number_pair: Any, teacher_forced: bool
) -> None:
    options = EstimateOptions(max_new_tokens=80, width=8, teacher_forced=teacher_forced)
    texts = documents(12, text_length=80)
    (acceptance,) = estimate(number_pair, texts, "numbers", [Sampling(0.8, 0.95)], options)
    counts = np.bincount([rank for trace in acceptance.traces for rank in trace], minlength=9)[1:]
    measured = acceptance.rates if acceptance.measured is None else acceptance.measured
    deviation = np.sqrt(measured * (1 - measured) / acceptance.positions)
    assert (np.abs(counts / acceptance.positions - measured) < 4 * deviation + 0.01).all()
    assert acceptance.low is not None
    assert acceptance.high is not None
    assert (acceptance.low <= measured).all()
    assert (measured <= acceptance.high).all()
    assert acceptance.verifier == "sequoia"


def test_progress_ends_at_its_total(number_pair: Any) -> None:
    calls: list[tuple[int, int]] = []
    estimate(
        number_pair, documents(5), "numbers", options=EstimateOptions(max_new_tokens=8, batch=2),
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls[-1] == (40, 40)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (EstimateOptions(width=0), "width: found 0"),
        (EstimateOptions(max_new_tokens=0), "max-new-tokens: found 0"),
        (EstimateOptions(depths=0), "depths: found 0"),
    ],
)
def test_options_out_of_range_are_refused(
    number_pair: Any, options: EstimateOptions, complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        estimate(number_pair, [Document("5", "")], "numbers", options=options)


@pytest.mark.parametrize(
    ("sampling", "complaint"),
    [
        ((-1,), "temperature: found -1"),
        ((0.5, 0), "top-p: found 0"),
        ((0.5, 1, "best"), "verifier: found 'best'"),
        ((0.5, 1, "traversal"), "no acceptance by rank; estimate with sequoia"),
    ],
)
def test_samplings_that_cannot_be_estimated_are_refused(
    number_pair: Any, sampling: tuple[Any, ...], complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        estimate(number_pair, [Document("5", "")], "numbers", [Sampling(), Sampling(*sampling)])


@pytest.mark.parametrize("spec", VERIFIERS.values(), ids=list(VERIFIERS))
def test_a_verifier_can_be_estimated_if_it_has_rates(spec: Any) -> None:
    sampling = Sampling(0.5, 1.0, spec.name)
    if spec.has_rates:
        check_sampled(sampling)
    else:
        with pytest.raises(SequoiaError, match=f"{spec.name} .* estimate with {spec.planned_as}"):
            check_sampled(sampling)


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_samplings_do_not_affect_one_another(
    number_pair: Any, monkeypatch: pytest.MonkeyPatch, teacher_forced: bool
) -> None:
    """Each gives what it gives alone; teacher-forced, each text is read once for all."""
    texts = documents(5, text_length=30)
    options = EstimateOptions(max_new_tokens=30, width=6, batch=2, teacher_forced=teacher_forced)
    samplings = [
        Sampling(), Sampling(0.7), Sampling(0.7, 0.9, "specinfer"), Sampling(1.2, 1, "topk")
    ]  # fmt: skip
    alone = [
        estimate(number_pair, texts, "numbers", [sampling], options)[0] for sampling in samplings
    ]
    forward_passes = 0
    extend = Runner.extend

    def counting_extend(*arguments: Any, **options: Any) -> Any:
        nonlocal forward_passes
        forward_passes += 1
        return extend(*arguments, **options)

    monkeypatch.setattr(Runner, "extend", counting_extend)
    together = estimate(number_pair, texts, "numbers", samplings, options)
    if teacher_forced:
        assert forward_passes == 2 * 3  # both models, three batches
    assert [one.document() for one in together] == [one.document() for one in alone]
    verifiers = [acceptance.verifier for acceptance in together]
    assert verifiers == ["greedy", "sequoia", "specinfer", "topk"]
    assert len({str(acceptance.traces) for acceptance in together}) == 4


class KilledError(Exception):
    pass


class KilledAfter(Journal):
    """Records some parts; then the process is killed."""

    def __init__(self, parts: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parts = parts

    def record(self, name: str, value: Any) -> None:
        if self.parts == 0:
            raise KilledError
        super().record(name, value)
        self.parts -= 1


def killed_and_resumed(
    parts: Sequence[int], path: Path, pair: Any, texts: Any, samplings: Any, options: Any
) -> tuple[list[Acceptance], list[tuple[int, int]]]:
    """Runs that are each killed after so many parts, then one to the end: what it gives, and its
    progress."""
    for count in parts:
        with pytest.raises(KilledError):
            estimate(
                pair, texts, "numbers", samplings, options,
                journal=KilledAfter(count, path, {}, True),
            )  # fmt: skip
    calls: list[tuple[int, int]] = []
    resumed = estimate(
        pair, texts, "numbers", samplings, options,
        progress=lambda done, total: calls.append((done, total)),
        journal=Journal(path, {}, True),
    )  # fmt: skip
    return resumed, calls


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_a_resumed_run_gives_what_an_uninterrupted_one_does(
    number_pair: Any, tmp_path: Path, teacher_forced: bool
) -> None:
    texts = documents(7, text_length=20)
    options = EstimateOptions(
        max_new_tokens=12, width=8, batch=2, depths=2, teacher_forced=teacher_forced
    )
    samplings = [Sampling(0.0), Sampling(0.7, 0.9, "specinfer")]
    uninterrupted = estimate(number_pair, texts, "numbers", samplings, options)
    path = tmp_path / "journal"
    resumed, calls = killed_and_resumed(
        (0, 1, 1, 0, 1), path, number_pair, texts, samplings, options
    )
    assert [one.document() for one in resumed] == [one.document() for one in uninterrupted]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("envelope", [Envelope(3, 2, 2), Envelope(2, 4, 16)])
def test_a_resumed_run_has_the_recordings_of_an_uninterrupted_one(
    number_pair: Any, tmp_path: Path, envelope: Envelope
) -> None:
    """At most as many ranks as are sampled."""
    texts = documents(5)
    options = EstimateOptions(max_new_tokens=6, width=8, batch=2, envelope=envelope)
    samplings = [Sampling(0.0), Sampling(0.7)]
    uninterrupted = estimate(number_pair, texts, "numbers", samplings, options)
    path = tmp_path / "journal"
    resumed, calls = killed_and_resumed((1, 2), path, number_pair, texts, samplings, options)
    for one, other in zip(resumed, uninterrupted, strict=True):
        assert one.document() == other.document()
        assert one.recording is not None
        assert other.recording is not None
        assert one.recording.fingerprint == other.recording.fingerprint
        assert one.recording.about == other.recording.about
        assert one.recording.width_of_node == min(envelope.ranks, 8)
        assert one.confidence is not None
        assert one.confidence.fingerprint == one.recording.fingerprint
    assert calls[-1] == (120, 120)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_recording_changes_no_rates(number_pair: Any) -> None:
    """What is sampled depends on the seed alone."""
    samplings = [Sampling(0.7), Sampling(0.7, 1.0, "specinfer")]
    options = EstimateOptions(max_new_tokens=10, width=8, batch=2)
    plain = estimate(number_pair, documents(4), "numbers", samplings, options)
    recorded = estimate(
        number_pair,
        documents(4),
        "numbers",
        samplings,
        replace(options, envelope=Envelope(2, 2, 2)),
    )
    for one, other in zip(plain, recorded, strict=True):
        assert one.recording is None
        assert one.confidence is None
        assert other.traces == one.traces
        assert other.rates.tolist() == one.rates.tolist()


def test_what_cannot_be_recorded_is_refused(
    number_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EstimateOptions(max_new_tokens=4, envelope=Envelope())
    with pytest.raises(SequoiaError, match="envelope: drafts are recorded along the target's own"):
        estimate(number_pair, documents(1), "n", options=replace(options, teacher_forced=True))
    monkeypatch.setattr(number_pair.drafter, "model", None)
    with pytest.raises(SequoiaError, match=r"has no model .* estimate with --no-envelope"):
        estimate(number_pair, documents(1), "numbers", options=options)


def test_documents_are_left_out_when_the_time_is_up(number_pair: Any) -> None:
    prompts = documents(9)
    options = EstimateOptions(max_new_tokens=10, width=8, batch=2)
    notes: list[str] = []
    journal = Journal(max_seconds=0.0)
    (short,) = estimate(
        number_pair, prompts, "numbers", options=options, note=notes.append, journal=journal
    )
    assert notes == ["sampled 1 of 5 batches of documents: the time limit was reached"]
    assert 1 <= len(short.traces) <= 2
    (whole,) = estimate(number_pair, prompts, "numbers", options=options)
    assert all(trace in whole.traces for trace in short.traces)
