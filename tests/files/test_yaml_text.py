from __future__ import annotations

from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import documents
from sequoia_opt.files.yaml_text import yaml_value


def test_yaml_is_loaded_safely(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("format: !!python/object/apply:os.system [true]\n")
    with pytest.raises(SequoiaError, match="not valid YAML"):
        documents.read_document(path, "test", 1)


def test_dates_are_text(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("format: test\nversion: 1\nwhen: 2024-01-01\n")
    document = documents.read_document(path, "test", 1)
    assert document["when"] == "2024-01-01"
    documents.write_document(tmp_path / "f.json", document)


@pytest.mark.parametrize("text", ["a: [", "a: {b: }}", "\t- x"])
def test_a_text_that_is_not_yaml_raises_one_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d") as caught:
        yaml_value(text)
    assert "\n" not in str(caught.value)
