"""One forward of a model, as a step runs it, again and again: what the profiler times.

Fills the buffers, finds out how many tokens fit into memory, and leaves the timing to rounds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.pair import ROLES, Pair
from sequoia_opt.engine.torch import cuda_graphs
from sequoia_opt.engine.torch.memory import check_fits
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.measure.timing import PLAIN_TURNS, Timed

Point = tuple[str, int, int, int]
"""Role, sequences, cached tokens and query tokens of a forward."""

GRAPHED = 4  # forwards in a graph that is timed, as levels follow one another in a step's
LOGIT_COPIES = 4  # of a step's logits, in float32: themselves, warped, sorted, what is left


def forwards_to_time(
    pair: Pair, tokens: list[int], contexts: list[int], batch: int
) -> dict[Point, Timed]:
    """Every forward of a batch to time."""
    points = {
        (role, batch, context, count): forward_to_time(pair, role, context, count, batch)
        for role in ROLES
        for context in contexts
        for count in tokens
    }
    for (*_, count), forward in points.items():
        is_power_of_two = count & (count - 1) == 0
        forward.spare = not is_power_of_two and count not in (tokens[0], tokens[-1])
    return points


def forward_to_time(
    pair: Pair, role: str, context: int, count: int, batch: int, compiled: bool | None = None
) -> Timed:
    """A forward of a model to time, as it comes in a step.

    Args:
        compiled: whether it is to be, whatever the model's other forwards are.
    """
    runner: Runner = getattr(pair, role)
    length = cuda_graphs.bucketed(context) if pair.graphs else context
    forward = one_forward(runner, context, count, batch, length)

    def run() -> object:
        if compiled is not None:
            runner.compiled = compiled
        return forward()

    def several() -> None:
        for _ in range(GRAPHED):
            run()

    queued = pair.device.type == "cuda"
    return Timed(
        cuda_graphs.recorded(several, pair.device) if pair.graphs else run,
        turns=PLAIN_TURNS if count == 1 and role == "target" else 1,
        parts=GRAPHED if pair.graphs else 1,
        queued=queued,
        streams=runner.stream is not None and not queued,  # then it comes behind itself anyway
    )


def that_fit(
    pair: Pair, tokens: list[int], context: int, batch: int, note: Callable[[str], None]
) -> list[int]:
    """Fill both models' buffers and try the forwards, the smallest first: those that fit, in all
    processes.

    Raises:
        SequoiaError: not even plain decoding fits, or one of several processes is out of memory
            where the others wait for it.
    """
    fitting: list[int] = []
    try:
        both = pair.target, pair.draft
        _all_can(pair.world, partial(_reserve, context, tokens[-1], batch, *both))
        for runner in both:
            fill(runner, context, tokens[-1], batch)
        for count in tokens:
            _all_can(pair.world, partial(_check_logits, count, batch, *both))
            for runner in both:
                one_forward(runner, context, count, batch, context)()
            fitting.append(count)
    except (SequoiaError, torch.OutOfMemoryError) as error:
        others_wait = pair.world.size > 1 and isinstance(error, torch.OutOfMemoryError)
        if others_wait or (batch == 1 and not fitting):
            raise SequoiaError(f"{one_line(error)}; profile shorter --contexts") from None
        kept = f"measured to {fitting[-1]} tokens" if fitting else "left out"
        note(f"batch {batch}: {kept}, more do not fit into memory ({one_line(error)[:200]})")
    return fitting


def _all_can(world: World, attempt: Callable[[], object]) -> None:
    """Attempt what a process may find no memory for: all find what one of them does.

    Raises:
        SequoiaError: what the first of them found.
    """
    found = ""
    try:
        attempt()
    except (SequoiaError, torch.OutOfMemoryError) as error:
        found = one_line(error)
    if refused := [each for each in world.gather(found) if each]:
        raise SequoiaError(refused[0])


def _reserve(context: int, room: int, batch: int, *runners: Runner) -> None:
    """Have buffers for `context` tokens of each sequence and `room` more."""
    for runner in runners:
        # Never read to the last slot, as in decoding: reading all of a buffer compiles anew.
        runner.reserve(cuda_graphs.room(context) + room, batch)


def _check_logits(count: int, batch: int, *runners: Runner) -> None:
    """Refuse forwards whose logits do not fit."""
    for runner in runners:
        each = runner.dtype.itemsize + LOGIT_COPIES * torch.float32.itemsize
        check_fits(
            batch * count * runner.vocabulary * each,
            runner.device,
            f"logits of {batch} × {count} tokens of {runner.name}",
            "measure fewer --tokens, or free memory",
        )


def fill(runner: Runner, context: int, room: int, batch: int) -> None:
    """Put `context` random tokens of each sequence into the buffers."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(runner.vocabulary, (batch, context), generator=generator)
    _reserve(context, room, batch, runner)
    runner.prefill(tokens.to(runner.device))


def one_forward(
    runner: Runner, context: int, count: int, batch: int, length: int
) -> Callable[[], object]:
    """One forward of `count` tokens a sequence as a step runs it, mask and slots included.

    Args:
        length: bound on the cached tokens that the step knows.
    """
    order = list(range(count))
    table = runner.mask_table(np.tri(count, dtype=np.bool_), order, order)
    place = torch.tensor([context], device=runner.device)
    offsets = torch.arange(count, device=runner.device)
    tokens = torch.zeros(batch, count, dtype=torch.long, device=runner.device)
    used = length + count

    def run() -> object:
        [masks] = table.masks(runner.places(place, used))
        return runner.forward(tokens, (place + offsets)[None], place + offsets, masks, 0)

    return run
