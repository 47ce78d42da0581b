from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document
from sequoia_opt.files.yaml_tables import PLACEHOLDER, parse_with_tables
from sequoia_opt.files.yaml_text import to_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb:\n- [1, 2,\n  3]\n- []\n- [40]\nc: {d: 2}\n",
        "b:\n- [1]\n- [2]\n",
        "b:\n- [1]\n- [2]",
        "b:\n- [01, 1]\n- [1,]\n- [2]\nc: 1\n",
        "b:\n- [1]\n- x\nc: 1\n",
        "b:\n- [1] \n- [2] # two\n\n- [3]\n",
        "b:\n  - [1]\n  - [2]\n",
        "a:\n  b:\n  - [1]\n",
        "b:\n- [1 2]\n",
        "b:\n- [1]\n- [[2]]\n- [-1, 1.5]\n",
        "- [1]\n- [2]\n",
        "1:\n- [1]\n",
        "yes:\n- [1]\nno:\n- [2]\n",
        "b:\n- [1]\nb: 5\n",
        f"b:\n- [1]\na: {PLACEHOLDER}\n",
        "",
    ],
)
def test_tables_are_what_yaml_says(text: str) -> None:
    assert parse_with_tables(text, yaml.safe_load) == yaml.safe_load(text)


@given(rows=st.lists(st.lists(st.integers(0, 10**6))), after=st.text(alphabet="ab: -[]"))
def test_tables_as_this_program_writes_them(rows: list[list[int]], after: str) -> None:
    document = {"rows": rows, "after": after}
    assert parse_with_tables(to_yaml(document), yaml.safe_load) == document


@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 10**6), max_size=40), min_size=1), min_size=1
    )
)
def test_tables_of_tables_are_taken_out(documents: list[list[list[int]]]) -> None:
    text = to_yaml({"rows": documents, "after": 1})
    parsed: list[str] = []

    def parse(rest: str) -> object:
        parsed.append(rest)
        return yaml.safe_load(rest)

    assert parse_with_tables(text, parse) == {"rows": documents, "after": 1}
    assert len(parsed) == 1
    assert "[" not in parsed[0]


def test_errors_after_a_table_keep_their_line_number(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a:\n- [1,\n  2]\n- [3]\nb: [\n")
    with pytest.raises(SequoiaError, match="line 6"):
        read_document(path, "test", 1)


def test_the_committed_acceptance_files_have_tables() -> None:
    """The faster way is taken where it was measured."""
    paths = sorted((ROOT / "profiles" / "acceptance").glob("*.yaml"))
    assert paths
    for path in paths:
        parsed: list[str] = []

        def parse(text: str) -> object:
            parsed.append(text)
            return yaml.safe_load(text)

        text = path.read_text()
        document = parse_with_tables(text, parse)
        assert len(parsed) == 1
        assert len(parsed[0]) < len(text) / 4
        assert document == yaml.safe_load(text)
