"""Room for the frames of Python functions.

CPython 3.11 and later keep frames in chunks of 16 KB. A call that does not fit into the last chunk
maps another one, and unmaps it when it returns. A loop whose calls happen to cross a chunk's end
pays that, 12 to 15 µs, for each of them. A compiled forward pass of 24 tokens of the bundled target
calls 70 Python functions, and took 9.9 ms at the worst depth of the stack instead of 7.5; commands,
texts and profiles are at different depths. `tests/benchmarks/stack_depth.py` prints such times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

SLOTS = 2**16  # of 8 bytes: just over half of a chunk of 1 MB

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def with_room(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, whose calls do not meet the end of a chunk.

    Its own frame is too large for the chunk at hand, so it gets one that is made for it, of a power
    of two bytes. The rest of it holds a thousand frames. The frame itself is never touched.
    """

    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        return function(*arguments, **options)

    call.__code__ = call.__code__.replace(co_stacksize=SLOTS)
    return wraps(function)(call)
