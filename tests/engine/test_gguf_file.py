"""GGUF headers against what the gguf package wrote, and files that are not what they should be."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, LlamaFileType
from small_gguf import LAYERS, ROWS, TOKENS, WIDTH, write_gguf

from sequoia_opt.engine.gguf_file import (
    GgufHeader,
    check_model,
    fingerprint,
    is_gguf,
    read_header,
    stem,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.names import MODEL_FINGERPRINT, same_fingerprint

PARAMETERS = LAYERS * ROWS * WIDTH + 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def changed(source: Path, copy: Path, offset: int, content: bytes) -> Path:
    """A copy of a file with other bytes at an offset."""
    data = bytearray(source.read_bytes())
    data[offset : offset + len(content)] = content
    copy.write_bytes(data)
    return copy


def entry(text: str, kind: int) -> bytes:
    """A key of the metadata as it lies in a file, with the code of its value's kind."""
    return struct.pack("<Q", len(text)) + text.encode() + struct.pack("<I", kind)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.gguf", True), ("folder/B.GGUF", True), ("a.gguf.txt", False), ("gguf", False)],
)
def test_is_gguf(name: str, expected: bool) -> None:
    assert is_gguf(name) == expected


def test_stem_leaves_out_folder_ending_and_part() -> None:
    assert stem("folder/big-Q4_K_M.gguf") == "big-Q4_K_M"
    assert stem(Path("big-00001-of-00003.gguf")) == "big"


def test_a_header_says_what_was_written(whole: Path) -> None:
    header = read_header(str(whole))
    check_model(header)
    assert (header.architecture, header.name, header.kind) == ("llama", "Tiny", "model")
    assert (header.dtype, header.parameters) == ("float32", PARAMETERS)
    assert (header.weight_bytes, header.has_weights) == (4 * PARAMETERS, True)
    assert (header.vocabulary, header.positions, header.layers) == (len(TOKENS), 64, LAYERS)
    assert (header.splits, header.parts) == (1, (whole,))
    assert header.tokenizer == "gpt2"
    assert header.chat_template == "{{ messages[0].content }}"
    assert [tensor.name for tensor in header.tensors][-1] == "norm.weight"
    assert header.tensors[0].shape == (WIDTH, ROWS)


def test_metadata_by_key(whole: Path) -> None:
    header = read_header(whole)
    assert header.array("tokenizer.ggml.tokens") == TOKENS
    assert header.array("tokenizer.ggml.token_type") == [3, 3, 1, 1, 1, 1]
    assert header.array("tiny.nested") == [[1, 2], [3]]
    assert header.array("tiny.flag") == header.array("nothing") == []
    assert header.value("tiny.flag") is True
    assert header.value("tiny.eps") == 0.25
    assert header.value("tiny.nested", "default") == header.value("nothing", "default") == "default"
    assert header.number("general.name") == 0
    assert header.text("tiny.eps") is None


def test_the_tensors_lie_where_the_header_says(whole: Path) -> None:
    last = read_header(whole).tensors[-1]
    numbers = np.random.default_rng(0)
    numbers.normal(size=(LAYERS, ROWS, WIDTH))
    assert last.size == 20
    found = np.frombuffer(whole.read_bytes(), np.float32, 5, last.start)
    assert found.tolist() == numbers.normal(size=5).astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("kind", "file_type", "word"),
    [
        (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16, "float16"),
        (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16, "bfloat16"),
        (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1, "q4_1"),
        (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_K_M, "q4_k_m"),
        (GGMLQuantizationType.Q8_0, None, "q8_0"),  # most of the weights decide
        (GGMLQuantizationType.Q8_0, LlamaFileType.GUESSED, "float32"),
    ],
)
def test_number_types(
    tmp_path: Path, kind: GGMLQuantizationType, file_type: LlamaFileType | None, word: str
) -> None:
    header = read_header(write_gguf(tmp_path / "model.gguf", kind, file_type))
    assert header.dtype == word
    assert header.is_quantized == (kind.name not in ("F16", "BF16"))
    assert header.parameters == PARAMETERS


def test_an_unknown_number_type_is_no_error(whole: Path, tmp_path: Path) -> None:
    """A newer library may know it; this program only counts and names."""
    data = whole.read_bytes()
    at = data.index(b"blk.0.up.weight") + 15 + 4 + 16  # after name, number of dimensions, shape
    path = changed(whole, tmp_path / "new.gguf", at, struct.pack("<I", 77))
    header = read_header(path)
    assert (header.tensors[0].type, header.tensors[0].size) == (77, None)
    assert header.parameters == PARAMETERS
    fingerprint(header)


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "vocab.gguf", weights=False))
    assert (header.has_weights, header.dtype, header.parameters) == (False, "", 0)
    assert header.vocabulary == len(TOKENS)
    fingerprint(header)
    with pytest.raises(SequoiaError, match="has a vocabulary but no weights; name a file"):
        check_model(header)


def test_what_is_no_model_is_refused(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "other.gguf"
    # The name becomes the file's type: key and text of the same lengths.
    path.write_bytes(data.replace(b"general.name", b"general.type").replace(b"Tiny", b"clip"))
    with pytest.raises(SequoiaError, match="holds 'clip', no model"):
        check_model(read_header(path))
    path.write_bytes(data.replace(b"general.architecture", b"general.architectura"))
    with pytest.raises(SequoiaError, match=r"general.architecture: found none"):
        check_model(read_header(path))


class TestWrongFiles:
    def refused(self, path: Path) -> str:
        with pytest.raises(SequoiaError) as caught:
            read_header(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message

    def test_missing(self, tmp_path: Path) -> None:
        assert "no such file" in self.refused(tmp_path / "a.gguf")

    def test_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "a.gguf"
        folder.mkdir()
        assert "is a folder; name a .gguf file in it" in self.refused(folder)

    def test_unreadable(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe.gguf"
        os.mkfifo(pipe)
        keep_open = os.open(pipe, os.O_RDWR)  # else reading would wait for a writer
        try:
            assert "cannot be read" in self.refused(pipe)
        finally:
            os.close(keep_open)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty; download it again"),
            (b"PK\x03\x04 zip", "is not a GGUF file: it starts with b'PK"),
            (b"GG", "is not a GGUF file"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "run `git lfs pull`"),
            (b"GGUF", "cut short: its header does not end within the file's 4 bytes"),
            (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "found GGUF version 1, .* convert the model"),
            (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9, expected 2 or 3; update this"),
            (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian machines; convert it"),
            (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "cut short: its header"),
            (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1), "cut short: its header"),
            (
                b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("key", 99),
                r"damaged header \(found a value of kind 99",
            ),
            (
                b"GGUF"
                + struct.pack("<IQQ", 3, 0, 1)
                + entry("a", 9)
                + struct.pack("<IQ", 8, 2**62),
                "cut short: its header",
            ),
            (
                b"GGUF"
                + struct.pack("<IQQ", 3, 0, 1)
                + entry("a", 9)
                + struct.pack("<IQ", 9, 1) * 2000,
                "damaged header",
            ),
            (
                b"GGUF"
                + struct.pack("<IQQ", 3, 0, 1)
                + entry("general.alignment", 4)
                + struct.pack("<I", 24),
                "general.alignment: found 24, expected a power of two",
            ),
            (
                b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry("t", 10**6),
                "damaged header .'t': found 1000000 dimensions",
            ),
            (
                b"GGUF"
                + struct.pack("<IQQ", 3, 1, 0)
                + entry("t", 2)
                + struct.pack("<QQIQ", 2**40, 2**40, 0, 0),
                "damaged header .'t': its shape is",
            ),
            (
                b"GGUF"
                + struct.pack("<IQQ", 3, 1, 0)
                + entry("t", 1)
                + struct.pack("<QIQ", 33, 2, 0),
                "damaged header .'t': rows of 33 numbers are no blocks of 32",
            ),
        ],
    )
    def test_content(self, tmp_path: Path, content: bytes, reason: str) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        assert re.search(reason, self.refused(path))

    def test_cut_short(self, whole: Path, tmp_path: Path) -> None:
        """The header at every length; the tensors say how many bytes are missing."""
        content = whole.read_bytes()
        header = read_header(whole)
        last = header.tensors[-1]
        assert last.size is not None
        end = last.start + last.size
        path = tmp_path / "cut.gguf"
        for length in range(4, header.layouts[0].data - 32, 7):
            path.write_bytes(content[:length])
            assert "cut short" in self.refused(path)
        path.write_bytes(content[: end - 9])
        assert "cut short: 9 bytes are missing at its end (tensor 'norm.weight'" in self.refused(
            path
        )
        path.write_bytes(content[:end])  # the padding after the last tensor holds nothing
        read_header(path)


class TestSplitModels:
    @pytest.fixture
    def first(self, tmp_path: Path) -> Path:
        write_gguf(tmp_path / "big.gguf", split_max_tensors=1)
        return tmp_path / "big-00001-of-00003.gguf"

    def test_all_parts_are_read(self, first: Path, whole: Path) -> None:
        header, single = read_header(first), read_header(whole)
        assert header.splits == 3
        assert [path.name[4:9] for path in header.parts] == ["00001", "00002", "00003"]
        assert [tensor.name for tensor in header.tensors] == [t.name for t in single.tensors]
        assert header.parameters == PARAMETERS
        assert header.vocabulary == len(TOKENS)

    def test_a_later_part(self, first: Path) -> None:
        second = first.with_name("big-00002-of-00003.gguf")
        with pytest.raises(
            SequoiaError, match=r"part 2 of 3 .* name the first, big-00001-of-00003"
        ):
            read_header(second)

    def test_missing_parts(self, first: Path) -> None:
        first.with_name("big-00003-of-00003.gguf").unlink()
        with pytest.raises(
            SequoiaError, match=r"3 parts, but big-00003-of-00003.gguf cannot be found"
        ):
            read_header(first)
        first.with_name("big-00002-of-00003.gguf").unlink()
        with pytest.raises(SequoiaError, match=r"big-00002-of-00003.gguf and 1 more cannot"):
            read_header(first)

    def test_another_name(self, first: Path) -> None:
        other = first.rename(first.with_name("renamed.gguf"))
        with pytest.raises(SequoiaError, match=r"must end in -00001-of-00003.gguf and so on"):
            read_header(other)

    def test_a_damaged_part(self, first: Path) -> None:
        third = first.with_name("big-00003-of-00003.gguf")
        third.write_bytes(third.read_bytes()[:-32])
        with pytest.raises(SequoiaError, match=r"big-00003-of-00003.gguf: cut short"):
            read_header(first)

    def test_fingerprints_see_every_part(self, first: Path) -> None:
        before = fingerprint(read_header(first))
        third = first.with_name("big-00003-of-00003.gguf")
        tensor = read_header(first).layouts[2].tensors[0]
        changed(third, third, tensor.start, b"\xff")
        assert not same_fingerprint(before, fingerprint(read_header(first)))


class TestFingerprints:
    def of(self, path: Path) -> str:
        return fingerprint(read_header(path))

    def test_form(self, whole: Path, tmp_path: Path) -> None:
        copy = changed(whole, tmp_path / "copy.gguf", 0, b"")
        assert MODEL_FINGERPRINT.fullmatch(self.of(whole))
        assert self.of(whole) == self.of(copy)

    def test_other_weights_change_the_second_part(self, whole: Path, tmp_path: Path) -> None:
        other = self.of(write_gguf(tmp_path / "other.gguf", seed=1))
        assert other[:16] == self.of(whole)[:16]
        assert other[16:] != self.of(whole)[16:]

    def test_other_metadata_changes_the_first_part(self, whole: Path, tmp_path: Path) -> None:
        path = tmp_path / "other.gguf"
        path.write_bytes(whole.read_bytes().replace(b"Tiny", b"Tidy"))
        assert self.of(path)[:16] != self.of(whole)[:16]

    def test_few_samples_are_spread_over_all_tensors(
        self, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sequoia_opt.engine import gguf_file

        read: GgufHeader = read_header(whole)
        assert len(gguf_file._sample_offsets(read.layouts[0], 4096)) == 2 * len(read.tensors)
        assert len(gguf_file._sample_offsets(read.layouts[0], 2)) == 2
