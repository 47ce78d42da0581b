from __future__ import annotations

import pytest

from sequoia_opt.plan.settings_text import plain_name, settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--a-b 1 --c=x --on -d", {"a_b": 1, "c": "x", "on": True, "d": True}),
        ('{"a": null, "b": {"c": [1, 2.5]}, "d": "e f"}', {"b": {}, "c": {}, "d": "e f"}),
        ("x.y.z = 3\nw = f(u=[[1]])", {"z": 3, "w": "f", "u": [[1]]}),
        ("a:\n  - - 1\n  - - 2\n    - 3\nb: true", {"a": [[1], [2, 3]], "b": True}),
        ("url: http://host:80/p # c: 4", {"url": "http://host:80/p"}),
        ("if a == 3: pass", {}),
    ],
)
def test_the_settings_in_a_text(text: str, expected: dict[str, object]) -> None:
    values = {s.name: s.value for s in settings(text) if s.value is not None}
    assert {name: values.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("--draft-max", "draft_max"),
        ("LLAMA_ARG_DRAFT_MAX", "draft_max"),
        ("--speculative-config.num_speculative_tokens", "num_speculative_tokens"),
        ("speculative.n_max", "n_max"),
    ],
)
def test_a_name_is_the_same_in_every_spelling(written: str, name: str) -> None:
    assert plain_name(written) == name


def test_a_comment_sets_nothing() -> None:
    assert [setting.value for setting in settings("a: 1  # a: 2\n# a: 3")] == [1]
