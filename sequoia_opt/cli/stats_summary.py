"""What `show` prints for the statistics of adaptive plans: measured beside predicted numbers.

Knows the statistics' counts. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from sequoia_opt.cli.output import out
from sequoia_opt.plan.growth import DEPTH, NO_GUESS, PAUSE, THRESHOLD
from sequoia_opt.plan.growth_counts import BINS, GuessCounts

if TYPE_CHECKING:
    from sequoia_opt.plan.growth_stats import Growths

STOP_WORDS = {
    PAUSE: "a pause: a plain step",
    THRESHOLD: "a further level would not pay",
    DEPTH: "all levels are drafted",
    NO_GUESS: "no guess to continue from",
}


def stats_summary(growths: Growths) -> None:
    """Print what the steps of one plan did."""
    setting, predicted = growths.setting, growths.predicted
    texts = "1 text" if growths.texts == 1 else f"{growths.texts} texts"
    out.print(
        f"adaptive plan {growths.plan} for {setting.target} with {setting.draft}, "
        f"{setting.verifier}, temperature {setting.temperature:g}: {texts}, {growths.steps} steps"
    )
    line = f"{growths.tokens_per_step:.2f} tokens per step"
    if predicted is not None:
        line += f", predicted: {predicted.tokens_per_step:.2f}"
    out.print(line)
    sizes = None if predicted is None else predicted.sizes
    levels = None if predicted is None else predicted.levels
    out.print(_steps_table("nodes of the target passes", "nodes", growths.sizes, sizes))
    out.print(_steps_table("levels drafted", "levels", growths.levels, levels))
    out.print(_steps_table("guesses accepted", "guesses", growths.accepted))
    stops = {STOP_WORDS[stop]: count for stop, count in growths.stops.items()}
    out.print(_steps_table("why no further level was drafted", "", stops))
    out.print(_guesses_table(growths.guesses))


def _steps_table(
    title: str,
    column: str,
    counts: Mapping[Any, int],
    predicted: Mapping[Any, float] | None = None,
) -> Table:
    """Numbers and shares of steps by some count or reason, with the predicted shares."""
    table = _table(title)
    table.add_column(column, justify="right")
    table.add_column("steps", justify="right")
    table.add_column("share", justify="right")
    if predicted is not None:
        table.add_column("predicted", justify="right")
    total = max(sum(counts.values()), 1)
    for value in sorted({*counts, *(predicted or {})}):
        count = counts.get(value, 0)
        cells = [str(value), str(count), f"{100 * count / total:.1f}%"]
        if predicted is not None:
            cells.append(f"{100 * predicted.get(value, 0.0):.1f}%")
        table.add_row(*cells)
    return table


def _guesses_table(guesses: GuessCounts) -> Table:
    """Verified guesses by calibrated acceptance."""
    table = _table("guesses whose parents were reached, by calibrated acceptance")
    for column in ("calibrated", "verified", "accepted", "share", "predicted"):
        table.add_column(column, justify="right")
    for number, verified in enumerate(guesses.verified):
        if verified:
            accepted, predicted = guesses.accepted[number], guesses.predicted[number]
            table.add_row(
                f"{number / BINS:.1f}–{(number + 1) / BINS:.1f}",
                str(verified),
                str(accepted),
                f"{100 * accepted / verified:.1f}%",
                f"{100 * predicted / verified:.1f}%",
            )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
