from __future__ import annotations

import pytest
import yaml

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields, shown


def test_numbers_that_yaml_reads_as_text_are_converted() -> None:
    document = yaml.safe_load("small: 1e-5\nlist: [1e-5, 2]\n")
    assert document["small"] == "1e-5"
    fields = Fields(document, "here")
    assert fields.number("small") == 1e-5
    assert fields.numbers("list").tolist() == [1e-5, 2]


@pytest.mark.parametrize("text", [".nan", ".inf", "[]", "true", "abc", "null", "1e999", "{a: 1}"])
def test_only_finite_numbers_pass(text: str) -> None:
    fields = Fields(yaml.safe_load(f"value: {text}"), "there")
    with pytest.raises(SequoiaError, match=r"there: value: found .*expected a number"):
        fields.number("value")
    with pytest.raises(SequoiaError, match="there: missing: missing, expected a number"):
        fields.number("missing")


def test_whole_numbers_too_large_for_a_float_are_refused() -> None:
    fields = Fields({"many": 10**30, "list": [1, 10**400]}, "file")
    with pytest.raises(SequoiaError, match=r"many: found 1000.*at most"):
        fields.integer("many")
    with pytest.raises(SequoiaError, match=r"list\[1\]: found 1000.*at most"):
        fields.integers("list")


def test_a_value_is_shown_in_at_most_60_characters() -> None:
    nested: list[object] = [0]
    for _ in range(60):
        nested = [nested, nested]
    assert len(shown(nested)) <= 60
