"""Tokenizers of GGUF files on torch, against llama.cpp's own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from small_gguf import write_gguf, write_vocabulary

from sequoia_opt import demo
from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.engine.torch.gguf_tokenizer import SPLITS, end_tokens_of, tokenizer_of
from sequoia_opt.errors import SequoiaError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
PIECES = [
    *("a", "B", "Hello", "'s", "'S", "'re", "'LL", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n"),
    *("\u00a0", "\u3000", "é", "e\u0301", "中文", "かな", "😀", "1", "23", "456", "7890", "½", "٣"),
    *("_", "-", "...", "!?", "don't", "\u200d", "ß", "Ǆ", "__init__", " =", "==", "#", " word"),
    *("CamelCase", "snake_case", "/", "//", "<|endoftext|>", "<|im_end|>", "<think>"),
]


def texts(count: int = 200) -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(PIECES, k=8)) for _ in range(count)]


def byte_level(path: Path, **tokenizer: Any) -> Path:
    """The bundled tokenizer, which is byte-level, with two more tokens."""
    folder = Path(demo.resolve(demo.TARGET_NAME))
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_end|>", "<think>"]
    types = [CONTROL, *[NORMAL] * 2047, CONTROL, USER_DEFINED]
    merges = [" ".join(pair) for pair in model["merges"]]
    return write_vocabulary(path, "gpt2", tokens, types, merges, **tokenizer)


def sentencepiece(path: Path, **tokenizer: Any) -> Path:
    """Pieces with scores that say what is merged first, after all bytes."""
    generator = random.Random(1)
    letters = ["\u2581", *"abcdeHlo12.,-_=", "é", "中"]
    words = {"".join(generator.choices(letters, k=2)) for _ in range(60)}
    words |= {first + second for first, second in zip(sorted(words), letters * 4, strict=False)}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    pieces = [*sorted(words - set(letters)), *letters]
    scores = [0.0] * len(tokens) + [-float(i) for i in range(len(pieces))]
    tokens, types = tokens + pieces, types + [NORMAL] * len(pieces)
    return write_vocabulary(path, "llama", tokens, types, scores=scores, **tokenizer)


class TestAgainstLlamaCpp:
    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("llama_cpp")

    def compare(self, path: Path) -> None:
        from llama_cpp_reference import Vocabulary

        reference, header = Vocabulary(path), read_header(path)
        tokenizer = tokenizer_of(header)
        assert tokenizer is not None
        spaced = header.tokenizer == "llama" and header.value(
            "tokenizer.ggml.add_space_prefix", True
        )
        for text in [*texts(), " leading", "trailing ", "", "\n"]:
            tokens = tokenizer(text)["input_ids"]
            assert tokens == reference.tokens(text, beginning=True), text
            decoded = tokenizer.decode(tokens, skip_special_tokens=True)
            expected = reference.text(tokens)
            assert decoded == (expected.removeprefix(" ") if spaced else expected), text
        assert end_tokens_of(header) == reference.ends()
        reference.close()

    @pytest.mark.parametrize("family", sorted(SPLITS))
    def test_byte_level_families(self, family: str, tmp_path: Path) -> None:
        special = {"bos_token_id": 0, "eos_token_id": 0}
        self.compare(byte_level(tmp_path / "model.gguf", pre=family, **special))

    @pytest.mark.parametrize("beginning", [False, True])
    def test_the_file_says_whether_texts_begin_with_a_token(
        self, beginning: bool, tmp_path: Path
    ) -> None:
        path = byte_level(
            tmp_path / "model.gguf", pre="llama-bpe", bos_token_id=0, eos_token_id=0,
            add_bos_token=beginning,
        )  # fmt: skip
        self.compare(path)
        tokenizer = tokenizer_of(read_header(path))
        assert (tokenizer("a")["input_ids"][0] == 0) == beginning

    @pytest.mark.parametrize("options", [{}, {"add_space_prefix": False}, {"add_bos_token": False}])
    def test_sentencepiece(self, options: dict[str, bool], tmp_path: Path) -> None:
        special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
        self.compare(sentencepiece(tmp_path / "model.gguf", **special, **options))

    def test_special_tokens_that_the_file_does_not_name(self, tmp_path: Path) -> None:
        self.compare(sentencepiece(tmp_path / "pieces.gguf"))

    def test_ends(self, tmp_path: Path) -> None:
        """Whatever the metadata names, and tokens with well-known names."""
        from llama_cpp_reference import Vocabulary

        path = byte_level(tmp_path / "model.gguf", pre="qwen2", eos_token_id=5, eot_token_id=9)
        assert end_tokens_of(read_header(path)) == [0, 5, 9, 2048] == Vocabulary(path).ends()


def test_names_template_and_length(tmp_path: Path) -> None:
    template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    path = byte_level(
        tmp_path / "model.gguf", pre="gpt-2", template=template, eos_token_id=2048,
        padding_token_id=0, bos_token_id=99999, unknown_token_id=11,
    )  # fmt: skip
    tokenizer = tokenizer_of(read_header(path))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.bos_token is None  # there is no such token
    assert tokenizer.unk_token is None  # it is a usual one
    assert tokenizer.model_max_length == 64
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<hi>"
    assert tokenizer("<think>")["input_ids"] == [2049]
    assert tokenizer.decode([2049, 2048], skip_special_tokens=True) == "<think>"


def test_no_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modem"))
    assert tokenizer_of(read_header(path)) is None


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("bert", {}, "is of the kind 'bert', which is read by llama.cpp alone; use --engine llama"),
        ("gpt2", {"pre": "new"}, r"tokenizer.ggml.pre: found 'new', .* use --engine llama.cpp"),
        ("gpt2", {}, r"tokenizer.ggml.pre: found ''"),
        ("llama", {}, r"cannot be used \(2 tokens, 0 scores and 2 types\); download"),
        ("gpt2", {"pre": "gpt-2", "merges": ["a zz"]}, "cannot be used"),
        ("gpt2", {"pre": "gpt-2", "merges": ["azz"]}, "cannot be used"),
        ("gpt2", {"pre": "gpt-2", "tokens": ["a", "a"]}, "has the token 'a' twice"),
    ],
)
def test_what_is_refused(kind: str, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    whole = {"tokens": ["a", "b"], "types": [NORMAL] * 2} | options
    path = write_vocabulary(tmp_path / "model.gguf", kind, **whole)
    with pytest.raises(SequoiaError, match=reason) as caught:
        tokenizer_of(read_header(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
