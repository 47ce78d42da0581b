"""Prompts that a server reads, with a stand-in for its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sequoia_opt.engine.http_client import ServerGoneError
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.tune.prompts import prompts_for


class Letters:
    """A token for each letter, and one for the beginning."""

    def tokens(self, text: str) -> list[int]:
        return [0, *map(ord, text)]

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if messages[0]["role"] != "user":
            raise SequoiaError("the template takes users only")
        return "<" + str(messages[0]["content"]) + ">"


def prompts(*documents: Document, limit: int = 9, most: int | None = None) -> list[list[int]]:
    return prompts_for(Letters(), documents, limit, most, lambda line: None)


def test_each_kind_of_document_has_its_tokens() -> None:
    found = prompts(
        Document("ab", ""),
        Document("", "abcde", is_whole=True),
        Document("", "", tokens=(5, 6)),
        Document("", "", messages=({"role": "user", "content": "a"},)),
    )
    assert found == [[0, 97, 98], [5, 6], [0, 60, 97, 62]]  # the second is the first's tokens


def test_prompts_are_spread_and_replaced_by_others() -> None:
    documents = [Document(letter * (9 if letter == "c" else 1), "") for letter in "abcd"]
    notes: list[str] = []
    found = prompts_for(Letters(), documents, 2, 5, notes.append)
    assert found == [[0, 97], [0, 98]]
    assert "the prompt has 10 tokens" in notes[0]


def test_without_a_usable_prompt_it_says_why() -> None:
    system = Document("", "", messages=({"role": "system", "content": "a"},), where="f: line 1")
    with pytest.raises(SequoiaError, match="no prompt is usable: f: line 1: the template takes"):
        prompts(system)


@pytest.mark.parametrize(("most", "count"), [(None, 2), (2, 1), (0, 0)])
def test_a_prompt_has_at_most_so_many_tokens(most: int | None, count: int) -> None:
    documents = [Document("a", ""), Document("bc", "")]
    if count:
        assert len(prompts(*documents, most=most)) == count
        return
    with pytest.raises(SequoiaError, match="the prompt has 2 tokens, which leaves the model too"):
        prompts(*documents, most=most)


class Gone(Letters):
    """A server that ends after some texts."""

    def __init__(self, answers: int) -> None:
        self.left, self.asked = answers, 0

    def tokens(self, text: str) -> list[int]:
        self.asked += 1
        if self.asked > self.left:
            raise ServerGoneError("the server ended")
        return super().tokens(text)


@pytest.mark.parametrize("answers", [0, 2])
def test_a_server_that_does_not_answer_is_not_asked_again(answers: int) -> None:
    server = Gone(answers)
    documents = [Document(letter, "") for letter in "abcdefgh"]
    with pytest.raises(ServerGoneError, match=r"^the server ended$"):
        prompts_for(server, documents, 8, None, lambda line: None)
    assert server.asked == answers + 1
