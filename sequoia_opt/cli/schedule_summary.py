"""What `sweep batch` prints of a schedule by batch size, and of serving at a rate of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from sequoia_opt.plan.schedule import Load, Schedule


def schedule_table(schedule: Schedule) -> Table:
    """The guesses by batch size, with the predicted speed at both ends of each stretch."""
    from rich.table import Table

    table = Table(title="best chain by batch size", title_justify="left")
    for column in ("batch", "guesses", "tokens", "speed", "tokens/s of all"):
        table.add_column(column, justify="right")
    for stretch in schedule.stretches:
        ends = sorted({stretch.first, stretch.last})
        table.add_row(
            _range([str(batch) for batch in ends]),
            str(stretch.guesses),
            f"{schedule.tokens[stretch.guesses]:.2f}",
            _range([f"{schedule.speedup(batch):.2f}x" for batch in ends]),
            _range([f"{schedule.tokens_per_second(batch):.0f}" for batch in ends]),
        )
    return table


def load_table(loads: Sequence[Load], tokens_per_request: float) -> Table:
    """The batch that each rate of requests comes to."""
    from rich.table import Table

    title = f"serving requests of {tokens_per_request:g} tokens each"
    table = Table(title=title, title_justify="left")
    for column in ("requests/s", "batch", "guesses", "seconds/request"):
        table.add_column(column, justify="right")
    for load in loads:
        table.add_row(
            f"{load.requests_per_second:g}",
            str(load.batch),
            str(load.guesses),
            f"{load.request_seconds:.2f}",
        )
    return table


def _range(ends: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(ends))
