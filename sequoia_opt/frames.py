"""Room for the frames of Python functions.

CPython 3.11 and later keep frames in chunks of 16 KB. A call that does not fit into the last chunk
maps another one, and unmaps it when it returns: 12 µs, or 100 where other threads compute
meanwhile, which have to forget the address. A loop whose calls happen to cross a chunk's end pays
that for each of them. A compiled forward pass of SmolLM2-135M makes 151 calls of Python functions,
and took 10 to 20% longer at one depth of the stack than at all others; a step, a text or a command
is at another depth than what a profile timed.
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
