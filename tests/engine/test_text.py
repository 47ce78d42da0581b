"""New tokens' texts are compared with whole texts as tokenizers decode them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import BYTES, PIECES, SPECIAL, byte_level, llama_2_like, metaspaced
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sequoia_opt import demo
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.text import Detokenizer, NewText


def bundled() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(demo.resolve(demo.TARGET_NAME))


TEXTS = [
    "abc ab\n    ab(c): é 日本 🙂 ab",
    "ab ab ab  ab",
    "ab 🙂🙂🙂🙂🙂🙂🙂🙂🙂🙂 ab",
    "one two three one",
]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        *((make, text) for make in (llama_2_like, byte_level) for text in TEXTS),
        (metaspaced, TEXTS[-1]),  # the only words that it has
    ],
)
def test_the_texts_of_prompt_and_new_tokens_are_the_whole_text(
    make: Callable[[], Any], text: str
) -> None:
    tokenizer = make()
    tokens = tokenizer(text)["input_ids"]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    detokenizer = Detokenizer(tokenizer)
    compared = 0
    for cut in range(len(tokens) + 1):
        prompt = tokenizer.decode(tokens[:cut], skip_special_tokens=True)
        if "\ufffd" not in prompt:
            compared += 1
            assert prompt + detokenizer.text(tokens[cut:], tokens[:cut]) == whole
    assert compared > 2


@pytest.mark.parametrize("make", [llama_2_like, byte_level])
@pytest.mark.parametrize("stop", [[], ["(c"], ["ab\n  ", "🙂"]])
def test_settled_text_is_the_beginning_of_the_final_text(
    make: Callable[[], Any], stop: list[str]
) -> None:
    """At any number of tokens, and wherever the generation ends."""
    tokenizer = make()
    prompt = tokenizer("ab ab")["input_ids"]
    tokens = tokenizer(" abc ab\n    ab(c): é\n日本 🙂 ab", add_special_tokens=False)["input_ids"]
    for end in range(len(tokens) + 1):
        new_text = NewText(Detokenizer(tokenizer), prompt, stop)
        stop_end = new_text.stop_place(tokens[:end], 0)
        final = new_text.text(tokens[:stop_end] if stop_end else tokens[:end])
        for early in range(end + 1):
            assert final.startswith(new_text.settled(tokens[:early]))


def test_an_incomplete_character_waits_for_its_other_bytes() -> None:
    """Byte tokens are decoded together, and all become unknown if one of them does not fit."""
    tokenizer = llama_2_like()
    new_text = NewText(Detokenizer(tokenizer), [1], [])
    tokens = tokenizer("ab🙂", add_special_tokens=False)["input_ids"]
    assert new_text.settled(tokens[:-2]) == "ab"
    assert new_text.settled([*tokens, tokens[-4], tokens[-3]]) == "ab"
    assert new_text.text(tokens) == "ab🙂"


def test_a_stop_string_may_be_a_special_token() -> None:
    tokenizer = byte_level()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    hello, user = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Hello there!", "user")
    )
    tokens = [*hello, end, start, *user]
    for stop, length in (
        ("<|im_end|>", len(hello) + 1),
        ("!<|im_end|>", len(hello) + 1),
        ("<|im_end|><|im_start|>u", len(hello) + 3),
        ("!u", len(hello) + 3),  # in the shown text
    ):
        new_text = NewText(Detokenizer(tokenizer), [1], [stop])
        stop_end = new_text.stop_place(tokens, 0)
        assert stop_end == length
        shown = "Hello there" if stop[0] == "!" else "Hello there!"
        assert new_text.text(tokens[:stop_end]) == shown
        for early in range(stop_end + 1):
            assert shown.startswith(new_text.settled(tokens[:early]))
    assert NewText(Detokenizer(tokenizer), [1], []).text(tokens) == "Hello there!user"


def test_text_after_a_special_token_begins_as_the_tokenizer_writes_it() -> None:
    """This tokenizer writes "ab" after a special token as at the beginning of a text."""
    tokenizer = llama_2_like()
    tokens = tokenizer("ab</s>ab")["input_ids"]
    after = tokens.index(2) + 1
    assert Detokenizer(tokenizer).text(tokens[after:], tokens[:after]) == "ab"
    assert Detokenizer(tokenizer).text(tokens[after:], tokens[: after - 1]) == " ab"


@pytest.fixture
def llama_2_pair(make_pair: Callable[..., Any]) -> Any:
    pair = make_pair()
    before = pair.tokenizer, pair.end_tokens
    pair.tokenizer = llama_2_like()
    yield pair
    pair.tokenizer, pair.end_tokens = before


def after_tokens(stream: Any, tokens: list[int]) -> Any:
    """The stream after the model has emitted these tokens."""
    for token in tokens:
        stream._take([token])
    stream.generation.text = stream._text.text(stream._shown_tokens())
    return stream


def test_completions_keep_their_first_space(llama_2_pair: Any) -> None:
    pair = llama_2_pair
    prompt = pair.encode("ab(c):\n")
    body = pair.tokenizer("ab(c):\n    ab")["input_ids"][len(prompt) :]
    pair.target, target = AnyVocabulary(pair.target), pair.target
    try:
        stream = after_tokens(Decoder(pair).stream(prompt, 9), body)
    finally:
        pair.target = target
    assert stream.generation.text == "    ab"
    assert stream.text() == "    ab"


def test_the_token_that_ends_a_text_is_not_part_of_it(llama_2_pair: Any) -> None:
    """Not even if it is a token that the tokenizer shows."""
    pair = llama_2_pair
    token = pair.tokenizer.convert_tokens_to_ids("!")
    pair.end_tokens = frozenset([token])
    pair.target, target = AnyVocabulary(pair.target), pair.target
    try:
        stream = after_tokens(Decoder(pair).stream([1, 5], 9), [*pair.encode("ab", False), token])
    finally:
        pair.target = target
    assert stream.generation.stopped == "end"
    assert (stream.generation.text, stream.text()) == (" ab", " ab")


class AnyVocabulary:
    """A runner that claims a vocabulary as large as the tokenizer's."""

    def __init__(self, runner: Any) -> None:
        self._runner, self.vocabulary = runner, len(SPECIAL) + len(BYTES) + len(PIECES)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def test_a_prompt_has_one_beginning_and_no_end(llama_2_pair: Any) -> None:
    pair = llama_2_pair
    plain = pair.encode("ab c")
    assert plain[0] == 1
    assert pair.encode("<s>ab c") == plain  # a chat template writes the beginning itself
    pair.tokenizer = llama_2_like(ends=True)
    assert pair.tokenizer("ab c")["input_ids"] == [*plain, 2]
    assert pair.encode("ab c") == plain
    assert pair.encode("ab c</s>") == [*plain, 2]  # an explicit end stays
    assert pair.encode("") == [1]


def test_a_text_too_long_for_any_model_is_refused_before_it_is_tokenized(
    llama_2_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(llama_2_pair.tokenizer), "__call__", None)
    with pytest.raises(Exception, match=r"found 2000000 characters, expected at most 1048576"):
        llama_2_pair.encode("x" * 2_000_000)


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}"
)


def test_switches_of_a_chat_template(llama_2_pair: Any) -> None:
    pair = llama_2_pair
    pair.tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "ab"}]
    plain = pair.render_chat(messages)
    assert pair.render_chat(messages, {"enable_thinking": False}) == f"{plain}<no>"
    assert pair.render_chat(messages, {"enable_thinking": True}) == plain
    for name in ("enable_thinkin", "tokenize", "messages"):
        with pytest.raises(Exception, match=rf"template-option: found {name}, which"):
            pair.render_chat(messages, {name: False})


def test_tokenizers_saved_with_space_cleanup_keep_their_spaces(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The cleanup would drop spaces before punctuation, which changes code."""
    import shutil

    from sequoia_opt.api import load_pair

    folder = tmp_path / "model"
    shutil.copytree(make_model("llama", vocab_size=8), folder)
    words = ["one", "two", ",", "n't", "do", "x", "y", "z"]
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=built).save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"clean_up_tokenization_spaces": True})
    )
    pair = load_pair(folder, folder, "cpu")
    assert pair.decode([0, 2, 1]) == "one , two"


@pytest.mark.parametrize("make", [llama_2_like, byte_level, metaspaced, bundled])
@pytest.mark.parametrize("stop", [[], ["ab\n", "🙂"]])
def test_settled_text_does_not_depend_on_what_was_decoded_before(
    make: Callable[[], Any], stop: list[str]
) -> None:
    """Random tokens, with special ones and incomplete characters, a few at a time."""
    tokenizer = make()
    detokenizer = Detokenizer(tokenizer)
    generator = random.Random(0)
    for _ in range(30):
        tokens = [generator.randrange(len(tokenizer)) for _ in range(60)]
        prompt = [generator.randrange(len(tokenizer)) for _ in range(generator.randrange(5))]
        new_text, end = NewText(detokenizer, prompt, stop), 0
        while end < len(tokens):
            before, end = end, min(end + generator.randrange(1, 5), len(tokens))
            fresh = NewText(detokenizer, prompt, stop)
            assert new_text.settled(tokens[:end]) == fresh.settled(tokens[:end])
            if fresh.stop_place(tokens[:end], before) is not None:
                break


def test_a_long_text_is_not_decoded_again_for_each_step() -> None:
    decoded: list[int] = []

    class Counting(Detokenizer):
        def _decode(self, tokens: Sequence[int]) -> str:
            decoded.append(len(tokens))
            return super()._decode(tokens)

    tokens = bundled()("x = [1, 2, 3]\n" * 300)["input_ids"]
    new_text = NewText(Counting(bundled()), tokens[:3], [])
    for end in range(0, len(tokens), 4):
        new_text.settled(tokens[:end])
    assert max(decoded) < 100 < len(tokens)
