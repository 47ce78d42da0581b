from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import VOCABULARY
from transformers import AutoModelForCausalLM

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import Document
from sequoia_opt.measure.estimator import Options, estimate
from sequoia_opt.measure.journal import Journal
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Sampling


class Numbers:
    """Stands in for a tokenizer: a text is its token ids."""

    bos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, tokens))


@pytest.fixture
def pair(make_pair: Callable[..., Any]) -> Any:
    pair = make_pair()
    kept, pair.tokenizer = pair.tokenizer, Numbers()
    yield pair
    pair.tokenizer = kept


def documents(count: int, length: int = 6, text: int = 0) -> list[Document]:
    generator = np.random.default_rng(0)

    def words(n: int) -> str:
        return " ".join(map(str, generator.integers(2, VOCABULARY, n)))

    return [Document(words(length + 3 * i), words(text)) for i in range(count)]


def ids(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def test_greedy_ranks_are_the_full_forwards_own(pair: Any, make_model: Callable[..., Any]) -> None:
    """Along the target's continuation, the rank of its token among the draft's."""
    given = documents(4)
    options = Options(max_new_tokens=20, width=10, batch=3)
    (found,) = estimate(pair, given, "numbers", options=options)
    target = AutoModelForCausalLM.from_pretrained(make_model("llama"), dtype=torch.float64)
    with torch.no_grad(), pair.draft.native() as draft:
        for document, trace in zip(given, found.traces, strict=True):
            prompt = torch.tensor([ids(document.prompt)])
            text = target.generate(
                prompt, max_new_tokens=21, do_sample=False, pad_token_id=0,
                attention_mask=torch.ones_like(prompt),
            )  # fmt: skip
            order = draft(text[:, :-1], use_cache=False).logits[0].argsort(-1, descending=True)
            # Not the first token: decoding has it of the prompt's own forward.
            ranks = [
                (order[place - 1] == text[0, place]).nonzero().item() + 1
                for place in range(prompt.shape[1] + 1, text.shape[1])
            ]
            assert trace == [rank if rank <= 10 else 0 for rank in ranks]
    counted = np.bincount([r for t in found.traces for r in t], minlength=11)[1:]
    measured = found.rates if found.measured is None else found.measured
    assert measured == pytest.approx(counted / found.positions)
    assert found.positions == sum(map(len, found.traces))
    assert found.verifier == "greedy"


def test_replay_is_what_decoding_does(pair: Any) -> None:
    """Greedy: tokens and steps of each document, exactly, but for the cut at the end."""
    given = documents(3)
    options = Options(max_new_tokens=60, width=12)
    (found,) = estimate(pair, given, "numbers", options=options)
    for tree in (shapes.chain(4), shapes.k_ary(3, 2), shapes.k_sequences(4, 3)):
        (tokens,), (steps,) = found.replay([tree])
        decoder = Decoder(pair, tree)
        for i, document in enumerate(given):
            stream = decoder.stream(ids(document.prompt), 61, ignore_eos=True)
            pieces = list(stream)
            trace = found.traces[i]
            node, lengths, length = 0, [], 0
            for rank in trace:
                length += 1
                node = tree.child_table.get((node, rank), 0)
                if node == 0:
                    lengths.append(length)
                    length = 0
            assert [len(piece) for piece in pieces[1 : 1 + len(lengths)]] == lengths
        assert (tokens >= steps).all()


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_sampled_chances_agree_with_sampled_ranks(pair: Any, teacher_forced: bool) -> None:
    given = documents(12, text=80)
    options = Options(max_new_tokens=80, width=8, teacher_forced=teacher_forced)
    (found,) = estimate(pair, given, "numbers", [Sampling(0.8, 0.95)], options)
    counted = np.bincount([r for t in found.traces for r in t], minlength=9)[1:]
    measured = found.rates if found.measured is None else found.measured
    spread = np.sqrt(measured * (1 - measured) / found.positions)
    assert (np.abs(counted / found.positions - measured) < 4 * spread + 0.01).all()
    assert found.low is not None
    assert found.high is not None
    assert (found.low <= measured).all()
    assert (measured <= found.high).all()
    assert found.verifier == "sequoia"


def test_teacher_forced_ranks_follow_the_text(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each position's rank of the target's choice, and chunks do not matter."""
    given = documents(3, text=50)
    options = Options(max_new_tokens=50, width=6, teacher_forced=True)
    (whole,) = estimate(pair, given, "numbers", options=options)
    monkeypatch.setattr("sequoia_opt.measure.estimator.LOGITS_BUDGET", 7 * 3 * VOCABULARY)
    (pieces,) = estimate(pair, given, "numbers", options=options)
    assert whole.traces == pieces.traces
    assert [len(trace) for trace in whole.traces] == [50] * 3
    tokens = torch.tensor([ids(given[1].prompt) + ids(given[1].text)])
    with (
        torch.no_grad(),
        pair.target.native() as target,
        pair.draft.native() as draft,
    ):
        best = target(tokens, use_cache=False).logits[0].argmax(-1)
        order = draft(tokens, use_cache=False).logits[0].argsort(-1, descending=True)
    start = len(ids(given[1].prompt)) - 1
    ranks = [(order[i] == best[i]).nonzero().item() + 1 for i in range(start, start + 50)]
    assert whole.traces[1] == [rank if rank <= 6 else 0 for rank in ranks]


def test_progress_ends_at_its_total(pair: Any) -> None:
    seen: list[tuple[int, int]] = []
    estimate(
        pair, documents(5), "numbers", options=Options(max_new_tokens=8, batch=2),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (40, 40)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("given", "options", "complaint"),
    [
        ([Document("5 6", "")], Options(teacher_forced=True), "no texts to be teacher-forced on"),
        ([], Options(), "no prompts"),
        ([Document("5", "")], Options(width=0), "width: found 0"),
        ([Document("5", "")], Options(max_new_tokens=0), "max-new-tokens: found 0"),
        ([Document("5", "")], Options(max_new_tokens=300), "only 256 positions"),
        ([Document("5", "")], Options(depths=0), "depths: found 0"),
    ],
)
def test_refuses_what_cannot_be_sampled(
    pair: Any, given: list[Document], options: Options, complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        estimate(pair, given, "numbers", options=options)


@pytest.mark.parametrize(
    ("sampling", "complaint"),
    [
        (Sampling(-1), "temperature: found -1"),
        (Sampling(0.5, 0), "top-p: found 0"),
        (Sampling(0.5, 1, "best"), "verifier: found 'best'"),
        (Sampling(0.5, 1, "traversal"), "no acceptance by rank"),
    ],
)
def test_refuses_a_way_to_sample(pair: Any, sampling: Sampling, complaint: str) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        estimate(pair, [Document("5", "")], "numbers", [Sampling(), sampling])


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_ways_to_sample_do_not_disturb_one_another(
    pair: Any, monkeypatch: pytest.MonkeyPatch, teacher_forced: bool
) -> None:
    """What one finds is what it finds alone; teacher-forced, each text is read once for all."""
    given = documents(5, text=30)
    options = Options(max_new_tokens=30, width=6, batch=2, teacher_forced=teacher_forced)
    ways = [Sampling(), Sampling(0.7), Sampling(0.7, 0.9, "specinfer"), Sampling(1.2, 1, "topk")]
    alone = [estimate(pair, given, "numbers", [way], options)[0] for way in ways]
    forwards = 0
    extend = Runner.extend

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal forwards
        forwards += 1
        return extend(*arguments, **named)

    monkeypatch.setattr(Runner, "extend", counted)
    together = estimate(pair, given, "numbers", ways, options)
    if teacher_forced:
        assert forwards == 2 * 3  # both models, three batches
    assert [found.document() for found in together] == [found.document() for found in alone]
    names = [found.verifier for found in together]
    assert names == ["greedy", "sequoia", "specinfer", "topk"]
    assert len({str(found.traces) for found in together}) == 4


def test_rates_by_depth_are_those_after_as_many_accepted(pair: Any) -> None:
    """Counted again from the traces; greedy, where a chance is 0 or 1."""
    given = documents(10, text=90)
    options = Options(max_new_tokens=90, width=5, depths=4, teacher_forced=True)
    (found,) = estimate(pair, given, "numbers", options=options)
    assert found.by_depth is not None
    assert len(found.by_depth) == 4
    for depth, rates in enumerate(found.by_depth):
        ranks = [
            rank
            for trace in found.traces
            for place, rank in enumerate(trace)
            if place >= depth and all(trace[place - depth : place])
        ]
        counted = np.bincount(ranks, minlength=6)[1:] / len(ranks)
        # Those of the isotonic fit keep their sum.
        assert rates.sum() == pytest.approx(counted.sum(), abs=0.02)
        assert np.abs(rates - counted).max() < 0.1
    assert (found.by_depth[0] == found.rates).all()
    assert found.document()["by_depth"][0] == found.document()["acceptance"]


def test_no_depth_without_positions_enough(pair: Any) -> None:
    options = Options(max_new_tokens=8, width=5, depths=64, teacher_forced=True)
    (found,) = estimate(pair, documents(20, text=9), "numbers", options=options)
    assert found.by_depth is not None
    assert 1 <= len(found.by_depth) <= 8


class KilledError(Exception):
    pass


class KilledAfter(Journal):
    """Keeps so many parts, and then the process is gone."""

    def __init__(self, count: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.count = count

    def keep(self, name: str, value: Any) -> None:
        if self.count == 0:
            raise KilledError
        super().keep(name, value)
        self.count -= 1


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_taken_up_it_finds_what_an_uninterrupted_run_does(
    pair: Any, tmp_path: Path, teacher_forced: bool
) -> None:
    given = documents(7, text=20)
    options = Options(max_new_tokens=12, width=8, batch=2, depths=2, teacher_forced=teacher_forced)
    ways = [Sampling(0.0), Sampling(0.7, 0.9, "specinfer")]
    whole = estimate(pair, given, "numbers", ways, options)
    path = tmp_path / "journal"
    for count in (0, 1, 1, 0, 1):
        with pytest.raises(KilledError):
            estimate(
                pair, given, "numbers", ways, options, journal=KilledAfter(count, path, {}, True)
            )
    found = estimate(pair, given, "numbers", ways, options, journal=Journal(path, {}, True))
    assert [each.document() for each in found] == [each.document() for each in whole]


def test_when_the_time_is_up_documents_are_left_out(pair: Any) -> None:
    given = documents(9)
    options = Options(max_new_tokens=10, width=8, batch=2)
    said: list[str] = []
    journal = Journal(max_seconds=0.0)
    (found,) = estimate(pair, given, "numbers", options=options, note=said.append, journal=journal)
    assert said == ["1 of 5 batches of documents; the time was up"]
    assert 1 <= len(found.traces) <= 2
    (whole,) = estimate(pair, given, "numbers", options=options)
    assert all(trace in whole.traces for trace in found.traces)
