from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from small_tokenizers import byte_level, llama_2_like

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.encoding import check_template, opening, prompt_and_text, prompt_tokens
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.sample_texts import prepare_texts
from sequoia_opt.measure.template import Template

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[ab]"


@pytest.fixture
def pair(make_pair: Callable[..., Any]) -> Iterator[Any]:
    pair = make_pair()
    original = pair.tokenizer
    pair.tokenizer = llama_2_like()
    pair.tokenizer.chat_template = TEMPLATE
    yield pair
    pair.tokenizer = original


@pytest.mark.parametrize("make", [llama_2_like, byte_level])
@pytest.mark.parametrize("text", [" ab", "    ab(c)\n", "\n  ab", "(c)", "é"])
def test_a_text_has_the_tokens_that_it_has_after_its_prompt(
    pair: Any, make: Callable[[], Any], text: str
) -> None:
    """Prompt and text have the tokens of both tokenized together."""
    pair.tokenizer = make()
    prompt, following = prompt_and_text(pair, Document("ab(c):", text))
    assert prompt == pair.encode("ab(c):")
    assert pair.decode(following, prompt) == text
    if make is llama_2_like:
        assert prompt + following == pair.tokenizer(f"ab(c):{text}")["input_ids"]


def test_conversations_go_through_the_template(pair: Any) -> None:
    messages = ({"role": "user", "content": "ab"},)
    template = Template(system="c", options={})
    expected = pair.tokenizer("[system]c[user]ab[ab]", add_special_tokens=False)["input_ids"]
    document = Document("", " ab", messages=messages)
    assert prompt_tokens(pair, document, template) == expected
    assert opening(pair, document, template) == expected
    prompt, following = prompt_and_text(pair, document, template)
    assert (prompt, pair.decode(following, prompt)) == (expected, " ab")
    with_system = Document("", "", messages=({"role": "system", "content": "a"}, *messages))
    assert prompt_tokens(pair, with_system, template) == pair.encode("[system]a[user]ab[ab]", False)
    plain = Document("ab", "")
    assert prompt_tokens(pair, plain, template) == pair.encode("ab")
    for_all = Template(for_all=True, system="c")
    assert prompt_tokens(pair, plain, for_all) == expected


def test_without_a_template_conversations_are_read_as_plain_text(pair: Any) -> None:
    pair.tokenizer.chat_template = None
    messages = ({"role": "system", "content": "a"}, {"role": "user", "content": "ab"})
    document, notes = Document("", "c", messages=messages), list[str]()
    check_template(pair, [document, Document("a", "")], Template(), notes.append)
    assert len(notes) == 1
    assert "no chat template; 1 conversations are read as plain text" in notes[0]
    assert prompt_tokens(pair, document) == pair.encode("a\n\nab")
    for template in (Template(for_all=True), Template(options={"enable_thinking": False})):
        with pytest.raises(SequoiaError, match="has no chat template"):
            check_template(pair, [], template, notes.append)
        with pytest.raises(SequoiaError, match="has no chat template"):
            prompt_tokens(pair, document, template)


def test_half_of_a_whole_text_serves_as_its_prompt(pair: Any) -> None:
    document = Document("", "ab ab ab ab", is_whole=True)
    whole = pair.encode(document.text)
    assert prompt_tokens(pair, document) == whole
    assert opening(pair, document) == whole[: len(whole) // 2]
    assert prompt_and_text(pair, document) == ([], whole)


def test_the_end_of_a_long_prompt_keeps_the_beginning_of_text(pair: Any) -> None:
    told: list[str] = []
    pair.target, target = _Wide(pair.target), pair.target
    try:
        documents = [Document("ab ab ab ab ab ab ab ab", ""), Document("ab", "")]
        long, short = prepare_texts(
            pair, documents, max_new_tokens=4, max_prompt_tokens=6, note=told.append
        )
    finally:
        pair.target = target
    whole = pair.encode(documents[0].prompt)
    assert long.prompt == [whole[0], *whole[-5:]]
    assert short.prompt == pair.encode("ab")
    assert told == ["1 prompts of more than 6 tokens: only their ends are read"]


class _Wide:
    """A runner that claims a vocabulary as large as any tokenizer's."""

    vocabulary = 10**6

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)
