"""A model's first layers: what is kept, what changes, and that transformers agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType
from small_gguf import LAYERS, TOKENS, write_gguf

from sequoia_opt import demo
from sequoia_opt.engine.gguf_edit import first_layers
from sequoia_opt.engine.gguf_file import check_model, read_header
from sequoia_opt.errors import SequoiaError

CUT = "blk.1."  # begins the names of what a file with one layer lacks


def content(path: Path) -> dict[str, bytes]:
    """The tensors of a file as the gguf package reads them."""
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q4_1])
def test_other_layers_are_dropped(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", kind, LlamaFileType.MOSTLY_Q4_1)
    path = first_layers(whole, 1, tmp_path / "new" / "first.gguf")
    header = read_header(path)
    check_model(header)
    assert (header.layers, header.architecture, header.dtype) == (1, "llama", "q4_1")
    assert header.array("tokenizer.ggml.tokens") == TOKENS
    assert header.fields.keys() == read_header(whole).fields.keys()
    before = content(whole)
    assert any(name.startswith(CUT) for name in before)
    assert content(path) == {
        name: values for name, values in before.items() if not name.startswith(CUT)
    }


def test_numbers_by_layer_are_cut(tmp_path: Path) -> None:
    whole = write_gguf(
        tmp_path / "whole.gguf", arrays={"llama.by_layer": [7, 9], "other.numbers": [7, 9]}
    )
    header = read_header(first_layers(whole, 1, tmp_path / "first.gguf"))
    assert header.array("llama.by_layer") == [7]
    assert header.array("other.numbers") == [7, 9]
    assert header.value("tiny.eps") == 0.25  # what follows them is still found


def test_parts_become_one_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    write_gguf(tmp_path / "big.gguf", split_max_tensors=1)
    parts = first_layers(tmp_path / "big-00001-of-00003.gguf", 1, tmp_path / "a.gguf")
    single = first_layers(tmp_path / "whole.gguf", 1, tmp_path / "b.gguf")
    assert read_header(parts).splits == 1
    assert content(parts) == content(single)


@pytest.mark.parametrize("count", [0, -1, LAYERS, 10**9])
def test_wrong_counts(tmp_path: Path, count: int) -> None:
    whole, output = write_gguf(tmp_path / "whole.gguf"), tmp_path / "first.gguf"
    with pytest.raises(SequoiaError, match=rf"whole.gguf: layers: found {count}, expected 1"):
        first_layers(whole, count, output)
    assert not output.exists()


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    output = tmp_path / "first.gguf"
    vocabulary = write_gguf(tmp_path / "vocabulary.gguf", weights=False)
    with pytest.raises(SequoiaError, match="has a vocabulary but no weights"):
        first_layers(vocabulary, 1, output)
    predicting = write_gguf(tmp_path / "mtp.gguf", numbers={"llama.nextn_predict_layers": 1})
    with pytest.raises(SequoiaError, match=r"mtp.gguf: .* cannot be cut; choose another model"):
        first_layers(predicting, 1, output)


def test_wrong_outputs(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf")
    before = whole.read_bytes()
    (tmp_path / "link.gguf").symlink_to(whole)
    with pytest.raises(SequoiaError, match=r"link.gguf: is the model itself; name another"):
        first_layers(whole, 1, tmp_path / "link.gguf")
    with pytest.raises(SequoiaError, match=r"whole.gguf/first.gguf: cannot be written"):
        first_layers(whole, 1, whole / "first.gguf")
    assert whole.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.gguf", "whole.gguf"]


def test_logits_are_those_of_the_first_layers(
    bundled_gguf: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    from llama_cpp_reference import Reference
    from transformers import AutoModelForCausalLM

    folder = demo.resolve("demo-target")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.model.layers = model.model.layers[:3]
    tokens = list(range(5, 200, 3))
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    path = first_layers(bundled_gguf["target"], 3, tmp_path / "first.gguf")
    reference = Reference(path)
    assert np.abs(reference.logits(tokens) - expected).max() < 1e-3
    reference.close()
