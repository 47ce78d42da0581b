"""Room for the frames of Python functions.

CPython from 3.11 to the first releases of 3.14 keeps frames in chunks of 16 KB. A call that does
not fit into the last chunk maps another one, and unmaps it when it returns; later releases keep
one (python/cpython#142183). A loop whose calls happen to cross a chunk's end pays that for each:
12 to 15 µs, and more where other threads compute, which have to forget the address. A compiled
forward pass of 24 tokens of the bundled target calls 70 Python functions, and took 9.9 ms at the
worst depth of the stack instead of 7.5; commands, texts and profiles are at different depths.
`tests/benchmarks/stack_depth.py` prints such times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

SLOTS = 2**16  # of 8 bytes: just over half of a chunk of 1 MB

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def with_room(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, called with a chunk of frames of its own.

    Its frame is too large for the chunk at hand, so it gets one that is made for it, of a power of
    two bytes, whose rest holds a thousand frames. Most of that frame is never touched, so it takes
    no memory. This does nothing for a generator, whose frame lies elsewhere.
    """

    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        return function(*arguments, **options)

    call.__code__ = call.__code__.replace(co_stacksize=SLOTS)
    return wraps(function)(call)
