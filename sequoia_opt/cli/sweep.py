"""The command that shows how the best tree changes with the context length or the batch: sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import Json, alternatives, print_json
from sequoia_opt.cli.solving_options import (
    AcceptanceFile,
    ProfileFile,
    SolvingOptions,
    load_measurements,
)
from sequoia_opt.plan.sweep import AXES

if TYPE_CHECKING:
    from rich.table import Table

    from sequoia_opt.plan.sweep import Point

TITLES = {"context": "best tree by context length", "batch": "best tree by batch"}


@app.command(epilog="Example: sequoia-opt sweep batch --max-size 64")
@with_option_groups
def sweep(
    axis: Annotated[str, typer.Argument(help=f"What to vary: {alternatives(AXES)}.")] = AXES[0],
    profile: ProfileFile = None,
    acceptance: AcceptanceFile = None,
    *,
    options: SolvingOptions,
    as_json: Json = False,
) -> None:
    """Show how the best tree changes with context or batch.

    Solves like `solve`, then again for each value that the profile has.

    The table shows the best tree there, and what the first tree loses. No file is written.
    """
    from sequoia_opt.cli.output import note, out, show
    from sequoia_opt.plan import solver
    from sequoia_opt.plan import sweep as sweeping
    from sequoia_opt.repository import paths

    if axis not in AXES:
        raise typer.BadParameter(
            f"found {axis!r}, expected {alternatives(AXES)}", param_hint="AXIS"
        )
    asked = options.keywords()
    latencies, rates = load_measurements(
        profile or paths.bundled_profile(), acceptance or paths.bundled_acceptance()
    )
    plan = solver.solve(latencies, rates, **asked)
    points = sweeping.sweep(latencies, rates, plan.tree, axis, **asked)
    for line in latencies.doubts():
        note(f"note: the profile's times: {line}")
    if as_json:
        print_json({
            "axis": axis,
            "tree": plan.tree.document(),
            "points": [point.document() for point in points],
        })  # fmt: skip
        return
    chosen = plan.choice.tree
    out.print(
        f"chosen tree: {chosen.size} nodes, {chosen.depth} deep, solved for "
        f"{plan.context:.0f} cached tokens and batch {plan.batch}"
    )
    show(_table(axis, points))


def _table(axis: str, points: Sequence[Point]) -> Table:
    """The best tree at each value, and what the chosen one gives up there."""
    from rich.table import Table

    table = Table(title=TITLES[axis], title_justify="left")
    columns = ("nodes", "depth", "tokens", "ms/step", "speed", "pays", "chosen", "loses")
    for column in (axis, *columns):
        table.add_column(column, justify="right")
    for point in points:
        best = point.plan.choice
        table.add_row(
            str(point.value),
            str(best.tree.size),
            str(best.tree.depth),
            f"{best.tokens[0]:.2f}",
            f"{best.step_ms[0]:.2f}",
            f"{best.speedup[0]:.2f}x",
            "" if best.tree.size == 1 else f"{100 * best.pays:.0f}%",
            "" if point.given is None else f"{point.given.speedup[0]:.2f}x",
            "not measured" if point.lost is None else f"{100 * point.lost:.1f}%",
        )
    return table
