"""Fixtures of the tests that measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from head_texts import DRAFT_VOCABULARY, VOCABULARY
from number_texts import NumberTokenizer
from small_heads import specforge_head

from sequoia_opt.api import load_pair


@pytest.fixture
def number_pair(make_pair: Callable[..., Any]) -> Iterator[Any]:
    """A small pair whose texts are numbers, see `number_texts`."""
    pair = make_pair()
    tokenizer, pair.tokenizer = pair.tokenizer, NumberTokenizer()
    yield pair
    pair.tokenizer = tokenizer


@pytest.fixture(scope="module")
def head_folders(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]
) -> tuple[Path, Path]:
    """Of a target and a head, see `head_texts`."""
    head = tmp_path_factory.mktemp("head") / "head"
    specforge_head(head, DRAFT_VOCABULARY, VOCABULARY)
    return make_model("llama", vocab_size=VOCABULARY), head


@pytest.fixture(scope="module")
def head_pair(head_folders: tuple[Path, Path]) -> Any:
    """Both; no token ends a text."""
    return replace(load_pair(*head_folders, "cpu", "float64"), end_tokens=frozenset())
