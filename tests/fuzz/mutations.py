"""Files that are nearly right: documents with changed fields, and damaged bytes."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Multiplies the number of cases; `make fuzz` raises it.
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
    """Settings for `count` cases, or more with `make fuzz`, however slow they are."""
    suppressed = [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ]
    return settings(max_examples=count * TIMES, suppress_health_check=suppressed, deadline=None)


def entries(document: Any) -> list[tuple[Any, Any]]:
    """Every container in a document with each of its keys."""
    pairs: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            pairs.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return pairs


@st.composite
def mutated(draw: st.DrawFn, originals: list[Any]) -> Any:
    """One of the documents with one to three fields changed, removed, doubled or swapped."""
    document = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        pairs = entries(document)
        if not pairs:
            break
        # The important fields are near the top, but most of the entries are in lists.
        node, key = pairs[
            draw(st.integers(0, min(len(pairs), 60) - 1) | st.integers(0, len(pairs) - 1))
        ]
        change = draw(st.sampled_from(["replace", "remove", "double", "swap"]))
        if change == "remove":
            del node[key]
        elif change == "double" and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif change == "swap":
            other, name = pairs[draw(st.integers(0, len(pairs) - 1))]
            if isinstance(other, dict) or name < len(other):
                node[key] = copy.deepcopy(
                    other.get(name) if isinstance(other, dict) else other[name]
                )
        else:
            node[key] = draw(JUNK)
    return document


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the files with bytes cut off, changed, inserted or dropped."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(["cut", "change", "insert", "drop"]))
        if change == "cut":
            del content[position:]
        elif change == "drop":
            del content[position : position + draw(st.integers(1, 40))]
        elif change == "insert":
            content[position:position] = draw(st.binary(max_size=12))
        elif position < len(content):
            content[position] = draw(st.integers(0, 255))
    return bytes(content)


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def as_yaml(document: Any) -> bytes:
    return yaml.dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
