from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import documents, names, reading


def test_a_pipes_content_is_read_once_and_remembered(tmp_path: Path) -> None:
    """A command parses a profile and then takes its fingerprint."""
    pipe = tmp_path / "p.json"
    os.mkfifo(pipe)
    content = b'{"format": "f", "version": 1}'
    writer = threading.Thread(target=lambda: pipe.write_bytes(content))
    writer.start()
    document = documents.read_document(pipe, "f", 1)
    writer.join()
    assert documents.read_document(pipe, "f", 1) == document
    plain = tmp_path / "plain.json"
    plain.write_bytes(content)
    assert names.content_fingerprint(pipe) == names.content_fingerprint(plain)
    plain.write_bytes(content + b" ")  # a file is read again each time
    assert names.content_fingerprint(pipe) != names.content_fingerprint(plain)


def test_an_endless_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 2**20)
    with pytest.raises(SequoiaError, match="larger than 1 MiB"):
        reading.read_text("/dev/zero")
