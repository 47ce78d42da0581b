"""Where two greedy texts part, and whether that is rounding or a fault."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from checking import PROMPTS, baseline, findings, run, server
from stand_in_server import LETTERS, target_logits, tokens_of

from sequoia_opt.measure.check.dialects import Candidate, Reading
from sequoia_opt.measure.check.greedy import Cause, GreedyTexts, _cause, _logprobs, check_greedy
from sequoia_opt.measure.check.reference import Reference
from sequoia_opt.measure.check.server import Completion, Server
from sequoia_opt.measure.progress import no_progress_bar


class Says(Reference):
    """A reference that says a given text."""

    def __init__(self, tested: Server, text: str, has_ids: bool = True) -> None:
        super().__init__(tested)
        self.text, self.has_ids = text, has_ids

    def complete(self, *_: Any, **__: Any) -> Completion:
        return completion(self.text, self.has_ids)


def completion(text: str, has_ids: bool = True) -> Completion:
    return Completion(Reading(text, tuple(tokens_of(text)) if has_ids else (), len(text)), 0.1)


def best(before: str, rank: int = 0) -> str:
    """The letter of a rank after a text."""
    return LETTERS[int(target_logits(tuple(tokens_of(before[-2:]))).argsort()[::-1][rank])]


def parting(ours: str, theirs: str, near_tie: float = 0.5, **options: Any) -> dict[str, Any]:
    tested = server(**options)
    texts = GreedyTexts(["abc"], [completion(ours)])
    finding = check_greedy(tested, Says(tested, theirs), texts, 2, near_tie, no_progress_bar)
    return finding.document()


def test_the_gap_is_that_of_the_models_log_probabilities() -> None:
    first = best("abc")
    likely, unlikely = best("abc" + first), best("abc" + first, 5)
    found = parting(first + unlikely, first + likely)
    logits = target_logits(tuple(tokens_of("c" + first)))
    expected = logits[tokens_of(likely)[0]] - logits[tokens_of(unlikely)[0]]
    [place] = found["partings"]
    assert place["logprobs"]["gap"] == pytest.approx(expected)
    shares = logits - np.log(np.exp(logits).sum())
    assert place["logprobs"]["chosen"] == pytest.approx(shares[tokens_of(unlikely)[0]])
    assert place["reference_logprobs"]["gap"] == pytest.approx(expected)
    assert (place["prompt"], place["place"]) == (1, 1)
    assert (place["chosen"], place["expected"]) == (repr(unlikely), repr(likely))
    assert (found["status"], place["cause"]) == ("failed", "fault")
    assert f"the text of prompt 1 diverges at token 2 with {unlikely!r}" in found["sentence"]


def test_a_small_gap_is_a_near_tie() -> None:
    text, other = best("abc", 1), best("abc", 0)
    gap = parting(text, other)["partings"][0]["logprobs"]["gap"]
    assert parting(text, other, near_tie=gap + 0.01)["status"] == "ok"
    assert parting(text, other, near_tie=gap - 0.01)["status"] == "failed"


def test_rounding_parts_texts_at_near_ties_only() -> None:
    report = run(server(rounding=0.05), baseline(rounding=0.05), checks=("greedy",))
    numbers = findings(report)["greedy"].numbers
    assert numbers["near_ties"] > 0  # the stand-in has ties
    assert numbers["equal"] + numbers["near_ties"] == len(PROMPTS)
    assert all(abs(p["logprobs"]["gap"]) < 0.5 for p in numbers["partings"])


def test_a_token_that_is_not_among_the_likeliest_is_at_least_so_far() -> None:
    candidates = {1: Candidate(-0.1), 2: Candidate(-4.0)}
    assert _logprobs(candidates, 9, 1) == (-4.0, -0.1)
    assert _logprobs(candidates, 8, 9) is None
    assert _logprobs({}, 1, 2) is None


def test_without_log_probabilities_a_parting_is_not_judged() -> None:
    found = parting(best("abc", 1), best("abc"), has_logprobs=False)
    assert found["status"] == "could not be checked"
    assert "no log-probabilities" in found["sentence"]


def test_without_a_prompts_tokens_a_later_parting_is_not_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Server, "tokenize", lambda self, text: None)
    first = best("abc")
    found = parting(first + best("abc" + first, 2), first + best("abc" + first))
    assert found["status"] == "could not be checked"
    assert found["partings"][0]["logprobs"] is None
    assert parting(best("abc", 5), best("abc"))["status"] == "failed"  # the prompt says enough


class Words(Server):
    """A server whose tokens are words with the space before them, and which gives no ids.

    After half a word it is sure that a comma follows.
    """

    url = "words"

    def __init__(self, next_words: dict[str, float]) -> None:
        self.next_words, self.asked = next_words, list[str]()

    def candidates(self, prompt: Any) -> dict[Any, Candidate]:
        self.asked.append(prompt)
        if prompt.split(" ")[-1] not in ("go", "home"):
            return {",": Candidate(-0.1), "e": Candidate(-0.2), "is": Candidate(-9.0)}
        return {word: Candidate(logprob, word) for word, logprob in self.next_words.items()}


@pytest.mark.parametrize(("other", "status"), [(-1.1, "ok"), (-4.0, "failed")])
def test_texts_that_part_within_a_word_are_judged_by_the_word(other: float, status: str) -> None:
    tested = Words({" the": -1.0, " this": other, " t": -2.0, " home": -3.0})
    says = Says(tested, " home the day", has_ids=False)
    texts = GreedyTexts(["go"], [completion(" home this day", has_ids=False)])
    finding = check_greedy(tested, says, texts, 3, 0.5, no_progress_bar)
    [place] = finding.document()["partings"]
    assert finding.document()["status"] == status
    assert (place["unit"], place["place"]) == ("character", 8)
    assert (place["chosen"], place["expected"]) == ("' this'", "' the'")
    assert place["logprobs"]["gap"] == pytest.approx(-1.0 - other)
    assert set(tested.asked) == {"go home"}


def test_texts_without_a_space_are_read_token_by_token() -> None:
    class Syllables(Words):
        def candidates(self, prompt: Any) -> dict[Any, Candidate]:
            likely = {"ab": -0.1} if prompt == "go" else {"cd": -1.0, "ce": -1.2}
            return {text: Candidate(logprob, text) for text, logprob in likely.items()}

    tested = Syllables({})
    says = Says(tested, "abcd", has_ids=False)
    texts = GreedyTexts(["go"], [completion("abce", has_ids=False)])
    finding = check_greedy(tested, says, texts, 2, 0.5, no_progress_bar)
    [place] = finding.document()["partings"]
    assert place["logprobs"]["gap"] == pytest.approx(0.2)


def test_a_text_that_ends_early_is_not_judged() -> None:
    first = best("abc")
    found = parting(first, first + best("abc" + first))
    assert found["status"] == "could not be checked"
    assert found["partings"][0]["chosen"] == "the end of the text"


@pytest.mark.parametrize(
    ("own", "other", "is_same", "cause"),
    [
        (None, None, True, Cause.UNKNOWN),
        (None, 0.1, False, Cause.NEAR_TIE),
        (None, 3.0, False, Cause.FAULT),
        (3.0, 3.0, False, Cause.FAULT),  # its own forward pass prefers the other token
        (3.0, None, True, Cause.FAULT),
        (0.1, None, True, Cause.NEAR_TIE),
        (-0.1, 0.2, False, Cause.NEAR_TIE),
        (-3.0, 3.0, False, Cause.OTHER_WEIGHTS),  # each prefers its own
        (-3.0, None, True, Cause.FAULT),  # a forward pass that does not repeat itself
        (0.2, 3.0, False, Cause.OTHER_WEIGHTS),
    ],
)
def test_causes(own: float | None, other: float | None, is_same: bool, cause: Cause) -> None:
    assert _cause(own, other, 0.5, is_same) == cast(Cause, cause)
