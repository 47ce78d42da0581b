from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import documents

HEAD = {"format": "test", "version": 1}

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet="abcxyz", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=plain_values, ending=st.sampled_from([".json", ".yaml"]))
def test_round_trip(value: Any, ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("files") / f"file{ending}"
    documents.write_document(path, HEAD | {"value": value})
    assert documents.read_document(path, "test", 1)["value"] == value


def test_numpy_values_become_built_in_types() -> None:
    value = {"a": np.float64(1.5), "b": np.arange(3), "c": (1, np.int64(2)), "d": Path("x")}
    assert documents.plain(value) == {"a": 1.5, "b": [0, 1, 2], "c": [1, 2], "d": "x"}


def test_file_names_that_are_not_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.yaml")
    for ending in ("json", "yaml"):
        path = tmp_path / f"t.{ending}"
        documents.write_document(path, {"format": "f", "version": 1, "file": name, "p": Path(name)})
        read = documents.read_document(path, "f", 1)
        assert read["file"] == read["p"] == r"\udcff.yaml"


def test_a_dataset_is_not_a_document(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(SequoiaError, match=r"found JSON lines.*--dataset, or to `complete`"):
        documents.read_document(path, "sequoia-opt/tree", 1)
