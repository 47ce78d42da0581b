from __future__ import annotations

import os
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import atomic
from sequoia_opt.files.reading import read_text


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.yaml"
    atomic.write_text(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SequoiaError, match="No space left"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.yaml"]


def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    atomic.write_text(path, "old")

    def interrupt(source: str, destination: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_unwritable_paths_are_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file, not a folder")
    with pytest.raises(SequoiaError, match="cannot be written"):
        atomic.check_writable(tmp_path / "plain" / "file.yaml")
    with pytest.raises(SequoiaError, match="is a folder"):
        atomic.check_writable(tmp_path)
    atomic.check_writable(tmp_path / "new" / "file.yaml")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_symbolic_link_survives(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    atomic.write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_pipes_and_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic.check_writable(pipe)
    atomic.write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    atomic.write_text("/dev/null", "nowhere")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["loop", "n" * 300, "nul\0", "file/below"])
def test_invalid_paths_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    path = tmp_path / name
    for attempt in (
        lambda: read_text(path),
        lambda: atomic.write_text(path, "new"),
        lambda: atomic.check_writable(path),
    ):
        with pytest.raises(SequoiaError, match=r"cannot be (read|written)|no such file") as caught:
            attempt()
        assert "Errno" not in str(caught.value)
    assert (tmp_path / "loop").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


def test_a_read_only_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    path.write_text("old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for all but root
    for attempt in (
        lambda: atomic.write_text(path, "new"),
        lambda: atomic.check_writable(path),
    ):
        with pytest.raises(SequoiaError, match=r"cannot be written .Permission denied"):
            attempt()
    assert path.read_text() == "old"


def test_what_another_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.bin"
    for content in ("old", "new"):
        with atomic.replaced(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
        assert path.read_text() == content
    assert os.listdir(path.parent) == ["file.bin"]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode

    def fail() -> None:
        with atomic.replaced(path) as temporary:
            temporary.write_text("a part")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file.bin"]
