"""What calls take at each depth of Python's stack: `python tests/benchmarks/stack_depth.py`.

A call that crosses the end of a chunk of frames maps another one, see sequoia_opt/frames.py. Prints
the time of an empty function in a loop, and of a compiled forward pass of 24 tokens of the bundled
target, or of a model of yours: the median over depths, and the depth at which most pages are
mapped; as they are, and with room.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer

from sequoia_opt import load_pair
from sequoia_opt.frames import with_room
from sequoia_opt.measure.forwards import fill, forward_to_time

CALLS, DEPTHS = 200, 200  # a chunk of 16 KB holds fewer of the frames that lead to a depth
CONTEXT, RUNS = 128, 3


class Sample(NamedTuple):
    """A time in milliseconds, and how many pages of memory were mapped meanwhile."""

    ms: float
    pages: int


def sample(depth: int, work: Callable[[], object]) -> Sample:
    """One run of the work, so many calls down."""
    if depth:
        return sample(depth - 1, work)
    pages, started = _pages(), time.perf_counter()
    work()
    return Sample(1000 * (time.perf_counter() - started), _pages() - pages)


def _pages() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def calls() -> None:
    """Calls of an empty function."""
    for _ in range(CALLS):
        _nothing()


def _nothing() -> None:
    pass


def row(name: str, work: Callable[[], object], count: int) -> str:
    """A row of the table: microseconds of work that does `count` times what is named."""
    cells = []
    for run in (sample, with_room(sample)):
        samples = []
        for depth in range(DEPTHS):
            runs = [run(depth, work) for _ in range(RUNS)]
            samples.append(Sample(median(s.ms for s in runs), min(s.pages for s in runs)))
        usual, worst = median(s.ms for s in samples), max(samples, key=lambda s: s.pages)
        cells += [
            f"{1000 * usual / count:.1f}",
            f"{1000 * worst.ms / count:.1f}",
            f"{worst.pages}",
        ]
    return f"| {name} | " + " | ".join(cells) + " |"


@torch.inference_mode()
def main(
    target: Annotated[
        Path | None, typer.Option(help="A model in place of the bundled one.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the forward pass.")] = 24,
) -> None:
    """Print microseconds of a call and of a forward pass."""
    pair = load_pair(target, "lookup", engine="torch", dtype="float32")
    pair.compile(["target"])
    filled = fill(pair, CONTEXT, tokens)
    forward = forward_to_time(pair, filled, "target", CONTEXT, tokens).run
    print("| microseconds of | usual | where most pages are mapped | pages | with room | | |")
    print("| --- |" + " ---: |" * 6)
    print(row("an empty function", calls, CALLS))
    print(row(f"a forward pass of {tokens} tokens", forward, 1))


if __name__ == "__main__":
    typer.run(main)
