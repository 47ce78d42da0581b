"""Fixtures of the tests that measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from number_texts import NumberTokenizer


@pytest.fixture
def number_pair(make_pair: Callable[..., Any]) -> Iterator[Any]:
    """A small pair whose texts are numbers, see `number_texts`."""
    pair = make_pair()
    tokenizer, pair.tokenizer = pair.tokenizer, NumberTokenizer()
    yield pair
    pair.tokenizer = tokenizer
