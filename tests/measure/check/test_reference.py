"""Plain texts of the same server: by request, or one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
from checking import PROMPTS, baseline, server

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.reference import OneByOne, WithoutSpeculation, reference_for


def test_a_baseline_comes_first() -> None:
    other = baseline()
    reference = reference_for(server(heeds=True), other, PROMPTS[0])
    assert reference is not None
    assert reference.server is other
    assert not reference.is_one_by_one


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM", "SGLang"])
def test_a_baseline_that_speculates_is_refused(kind: str) -> None:
    with pytest.raises(SequoiaError, match="speculates, expected the same model served without"):
        reference_for(server(kind=kind), server(kind=kind), PROMPTS[0])


def test_a_baseline_of_another_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = baseline()
    monkeypatch.setattr(other, "tokenize", lambda text: [7, *range(len(text))])
    with pytest.raises(SequoiaError, match="splits a prompt into other tokens than"):
        reference_for(server(), other, PROMPTS[0])


def test_a_request_switches_speculation_off_where_that_is_heeded() -> None:
    """Told from the counts of guesses: today's llama-server takes the field and ignores it."""
    heeded = reference_for(server(heeds=True), None, PROMPTS[0])
    assert isinstance(heeded, WithoutSpeculation)
    guesses = heeded.complete(PROMPTS[0], 20).reading.guesses
    assert guesses is not None
    assert guesses.drafted == 0
    assert isinstance(reference_for(server(), None, PROMPTS[0]), OneByOne)


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM", "SGLang"])
def test_one_token_at_a_time_is_plain_decoding(kind: str) -> None:
    tested = server(kind=kind, guesses=4, fault="accepts too much")
    reference = OneByOne(tested)
    for prompt in PROMPTS:
        plain = baseline().complete(prompt, 24).reading
        text = reference.complete(prompt, 24).reading
        assert (text.tokens, text.text) == (plain.tokens, plain.text)


def test_each_token_has_a_random_number_of_its_own() -> None:
    reference = OneByOne(server())
    texts = {reference.complete("abc", 4, 0.8, seed).reading.tokens for seed in range(50)}
    assert len(texts) > 20
    again = [reference.complete("abc", 4, 0.8, 7).reading.tokens for _ in range(2)]
    assert again[0] == again[1]
    second = np.array([reference.complete("abc", 2, 0.8, s).reading.tokens for s in range(200)])
    correlation = np.corrcoef(second.T)[0, 1]
    assert np.isfinite(correlation)


def test_without_token_ids_there_is_no_reference() -> None:
    assert reference_for(server(kind="other"), None, PROMPTS[0]) is None
    assert reference_for(server(kind="vLLM", has_tokens=False), None, PROMPTS[0]) is None
