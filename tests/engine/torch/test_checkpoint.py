from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sequoia_opt.engine.torch import checkpoint as module
from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.errors import SequoiaError

TENSORS = {
    "floats": torch.randn(7, 5),
    "halves": torch.randn(3, 11).bfloat16(),
    "counts": torch.arange(9, dtype=torch.int64),
    "number": torch.tensor(3.5),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def read(checkpoint: Checkpoint, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    into = torch.empty(checkpoint.shape(name), dtype=dtype or TENSORS[name].dtype)
    checkpoint.read(name, into)
    return into


def test_reads_what_was_saved(folder: Path) -> None:
    checkpoint = Checkpoint(str(folder))
    assert set(checkpoint.names) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(read(checkpoint, name), tensor)
    assert checkpoint.read("floats", torch.empty(7, 5)) == 7 * 5 * 4


@pytest.mark.parametrize("piece", [4, 12, 2**23])
def test_converts_piece_by_piece(folder: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    checkpoint = Checkpoint(str(folder))
    for name in ("floats", "halves", "number"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            assert torch.equal(read(checkpoint, name, dtype), TENSORS[name].to(dtype))


def test_reads_all_files_of_an_index(tmp_path: Path) -> None:
    shards = {"first.safetensors": ["floats", "number"], "second.safetensors": ["halves", "counts"]}
    for shard, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, tmp_path / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint(str(tmp_path))
    for name, tensor in TENSORS.items():
        assert torch.equal(read(checkpoint, name), tensor)
    (tmp_path / "second.safetensors").unlink()
    with pytest.raises(SequoiaError, match=r"second\.safetensors"):
        Checkpoint(str(tmp_path))
    index.write_text("[]")
    with pytest.raises(SequoiaError, match="damaged index"):
        Checkpoint(str(tmp_path))


def test_a_file_that_changes_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    checkpoint = Checkpoint(str(folder))
    content = path.read_bytes()
    with path.open("r+b") as stream:  # in place; another file of that name would do no harm
        stream.write(content[:-1])
    os.utime(path, ns=(0, 1))
    with pytest.raises(SequoiaError, match="has changed since it was opened"):
        read(checkpoint, "floats")
    os.truncate(path, len(content) - 8)
    with pytest.raises(SequoiaError, match="has changed"):
        read(checkpoint, "floats")


def test_a_new_file_of_the_same_name_does_no_harm(folder: Path) -> None:
    checkpoint = Checkpoint(str(folder))
    save_file({"floats": torch.zeros(7, 5)}, folder / "other")
    (folder / "other").replace(folder / "model.safetensors")
    assert torch.equal(read(checkpoint, "floats"), TENSORS["floats"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10\x00",
        (10**12).to_bytes(8, "little") + b"{}",
        (3).to_bytes(8, "little") + b"{!}",
        (2).to_bytes(8, "little") + b"[]",
        (12).to_bytes(8, "little") + b'{"a": "text"}'[:12],
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SequoiaError, match=r"model.safetensors: damaged weights"):
        Checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([-1, -1], [0, 4]),
        ([0, -1], [0, 0]),
        ([2], [-8, 0]),
        ([2], [-4, 4]),
        ([2], [8, 0]),
        ([1], [64, 68]),
        ([2**40, 2**40], [0, 0]),
        ([10**30], [0, 8]),
    ],
)
def test_impossible_tensors_are_refused(
    tmp_path: Path, shape: list[int], offsets: list[int]
) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    header = json.dumps({"a": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(64)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SequoiaError, match=r"model.safetensors: damaged weights"):
        Checkpoint(str(tmp_path))


@pytest.mark.parametrize("piece", [12, 2**23])
def test_compares_tensors(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    one = torch.arange(35.0).view(5, 7)
    last = one.clone()
    last[-1, -1] = 0
    tensors = {"one": one, "twin": one.clone(), "last": last, "flat": one.flatten().clone()}
    save_file(tensors | {"half": one.bfloat16()}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(str(tmp_path))
    same = [name for name in checkpoint.names if checkpoint.same("one", name)]
    assert sorted(same) == ["one", "twin"]


def test_missing_data_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SequoiaError, match="damaged weights"):
        Checkpoint(str(folder))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(SequoiaError, match="no safetensors files"):
        Checkpoint(str(tmp_path))
