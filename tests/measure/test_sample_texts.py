from __future__ import annotations

from typing import Any

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.sample_texts import SampleText, prepare_texts


@pytest.mark.parametrize(
    ("documents", "options", "complaint"),
    [
        ([Document("5 6", "")], {"teacher_forced": True}, "no texts for teacher forcing"),
        ([], {}, "no prompts"),
        ([Document("5", "")], {"max_new_tokens": 300}, "only 256 positions"),
        ([Document("5 9999", "", where="a:1")], {}, "a:1: found token 9999, expected 0 to"),
    ],
)
def test_a_dataset_without_usable_documents_is_refused(
    number_pair: Any, documents: list[Document], options: dict[str, Any], complaint: str
) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 128, "max_prompt_tokens": 512}
    with pytest.raises(SequoiaError, match=complaint):
        prepare_texts(number_pair, documents, **(limits | options))


def test_prompts_and_texts(number_pair: Any) -> None:
    """A document without a prompt starts from its first half or, teacher-forced, first token."""
    documents = [Document("2 3", "4 5 6 7"), Document("", "2 3 4 5", is_whole=True)]
    limits = {"max_new_tokens": 3, "max_prompt_tokens": 512}
    assert prepare_texts(number_pair, documents, **limits) == [
        SampleText([2, 3], [], 3), SampleText([2, 3], [], 3)
    ]  # fmt: skip
    assert prepare_texts(number_pair, documents, teacher_forced=True, **limits) == [
        SampleText([2, 3], [4, 5, 6], 3), SampleText([2], [3, 4, 5], 3)
    ]  # fmt: skip


def test_unusable_documents_are_left_out_with_a_note(number_pair: Any) -> None:
    notes: list[str] = []
    documents = [Document("5 9999", ""), Document("5 6", "")]
    texts = prepare_texts(
        number_pair, documents, max_new_tokens=3, max_prompt_tokens=1, note=notes.append
    )
    assert texts == [SampleText([6], [], 3)]
    assert len(notes) == 2
    assert notes[0].startswith("document 1: found token 9999, expected 0 to ")
    assert notes[1] == "1 prompts of more than 1 tokens: only their ends are read"
