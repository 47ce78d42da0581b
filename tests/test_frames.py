from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import pytest

from sequoia_opt.cli import app
from sequoia_opt.engine.stream import Stream
from sequoia_opt.frames import SLOTS, with_room
from sequoia_opt.measure.profiler import profile
from sequoia_opt.measure.race import race

CALLS = 200
DEPTHS = 400  # more than a chunk holds of the smallest frames


def mapped_pages(depth: int) -> int:
    """Pages of memory that a loop of calls maps, so many calls down."""
    calls = range(CALLS)  # one more variable: a frame whose size is no divisor of a chunk's
    if depth:
        return mapped_pages(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in calls:
        nothing()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def nothing() -> None:
    pass


def most_pages(function: Callable[[int], int]) -> int:
    return max(function(depth) for depth in range(DEPTHS))


def test_calls_at_any_depth_map_no_memory() -> None:
    assert most_pages(with_room(mapped_pages)) < CALLS // 4


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="later versions keep a chunk")
def test_without_room_some_do() -> None:
    assert most_pages(mapped_pages) >= CALLS


def test_it_is_called_as_before() -> None:
    @with_room
    def joined(first: str, *more: str, end: str = "") -> str:
        """Joins."""
        return first + "".join(more) + end

    assert joined("a", "b", end="c") == "abc"
    assert (joined.__name__, joined.__doc__) == ("joined", "Joins.")
    with pytest.raises(ZeroDivisionError):
        with_room(lambda: 1 // 0)()


@pytest.mark.parametrize("function", [app._status, Stream.finish, profile, race])
def test_what_is_timed_has_room(function: Callable[..., object]) -> None:
    assert function.__code__.co_stacksize == SLOTS
