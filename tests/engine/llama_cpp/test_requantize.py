"""Number types of GGUF files, against the gguf package's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from small_gguf import write_gguf

from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.errors import SequoiaError

pytest.importorskip("llama_cpp")

from sequoia_opt.engine.llama_cpp.requantize import TYPES, requantized

MATRIX = "blk.0.attn_q.weight"


def matrix(path: Path) -> np.ndarray:
    """One matrix in float32."""
    [tensor] = [tensor for tensor in GGUFReader(path).tensors if tensor.name == MATRIX]
    return dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("number_type", TYPES)
def test_every_type(bundled_gguf: dict[str, Path], tmp_path: Path, number_type: str) -> None:
    original_file = bundled_gguf["target"]
    path = requantized(original_file, number_type, tmp_path / "model.gguf")
    header, before = read_header(path), read_header(original_file)
    assert header.dtype == number_type
    assert header.parameters == before.parameters
    assert header.array("tokenizer.ggml.tokens") == before.array("tokenizer.ggml.tokens")
    original = matrix(original_file)
    error = np.abs(matrix(path) - original).max() / np.abs(original).max()
    # A four-bit block has 16 values over its range, a half-precision number 11 bits.
    most = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8, "q8_0": 1 / 250}
    assert error <= most.get(number_type, 2**-3)
    assert (error == 0) == (number_type in ("float32", "bfloat16"))  # its source was bfloat16


def test_four_bits_as_float32_change_no_value(
    bundled_gguf: dict[str, Path], tmp_path: Path
) -> None:
    quantised = requantized(bundled_gguf["target"], "q4_1", tmp_path / "q4_1.gguf")
    whole = requantized(quantised, "float32", tmp_path / "float32.gguf")
    assert read_header(whole).weight_bytes > 5 * read_header(quantised).weight_bytes
    assert np.abs(matrix(whole) - matrix(quantised)).max() < 1e-6


def test_wrong_input(bundled_gguf: dict[str, Path], tmp_path: Path) -> None:
    draft, output = bundled_gguf["draft"], tmp_path / "model.gguf"
    with pytest.raises(SequoiaError, match="number type: found 'q9', expected one of float32, "):
        requantized(draft, "q9", output)
    with pytest.raises(SequoiaError, match="is the model itself; name another file"):
        requantized(draft, "q8_0", draft)
    with pytest.raises(SequoiaError, match=r"missing.gguf: no such file"):
        requantized(tmp_path / "missing.gguf", "q8_0", output)
    output.write_text("")
    with pytest.raises(SequoiaError, match=r"model.gguf/x: cannot be written"):
        requantized(draft, "q8_0", output / "x")


def test_a_file_that_llama_cpp_refuses(tmp_path: Path) -> None:
    source, output = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model.gguf"
    source.write_bytes(
        source.read_bytes().replace(
            b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00lxama"
        )
    )
    with pytest.raises(SequoiaError, match=r"tiny.gguf: llama.cpp cannot write it as q8_0 \("):
        requantized(source, "q8_0", output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf"]
