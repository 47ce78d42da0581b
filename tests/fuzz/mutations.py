"""Files that are nearly right: documents with something changed in them, bytes that are damaged."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# How many times as many cases as the test suite has time for; `make fuzz` raises it.
TIMES = int(os.environ.get("FUZZ", "1"))

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**9, 2**63, -(2**63), 10**30, 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(
        ["", "1e-5", "nan", "inf", "0x10", "../../x", "a\nb", "<b>", "\x00", "é" * 300]
    ),
    st.text(max_size=8),
    st.lists(st.integers(-2, 9) | st.floats(0, 1) | st.text(max_size=2), max_size=6),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9) | st.none(), max_size=3),
    st.builds(lambda: [[[[[[[[]]]]]]]]),
)


def cases(count: int) -> settings:
    """So many cases, or more where there is time; none of them is too slow."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count * TIMES, suppress_health_check=quiet, deadline=None)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every container in a document with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


@st.composite
def mutated(draw: st.DrawFn, originals: list[Any]) -> Any:
    """One of the documents with one to three things changed, left out or doubled."""
    document = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        where = places(document)
        if not where:
            break
        # Names that matter are near the top; lists have most of the places.
        node, key = where[
            draw(st.integers(0, min(len(where), 60) - 1) | st.integers(0, len(where) - 1))
        ]
        change = draw(st.sampled_from(["replace", "remove", "double", "swap"]))
        if change == "remove":
            del node[key]
        elif change == "double" and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif change == "swap":
            other, name = where[draw(st.integers(0, len(where) - 1))]
            if isinstance(other, dict) or name < len(other):
                node[key] = copy.deepcopy(
                    other.get(name) if isinstance(other, dict) else other[name]
                )
        else:
            node[key] = draw(JUNK)
    return document


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the files with bytes cut off, changed, or put in."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(["cut", "change", "insert", "drop"]))
        if change == "cut":
            del content[place:]
        elif change == "drop":
            del content[place : place + draw(st.integers(1, 40))]
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=12))
        elif place < len(content):
            content[place] = draw(st.integers(0, 255))
    return bytes(content)


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def as_yaml(document: Any) -> bytes:
    return yaml.dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
