"""The command that shows how the best tree changes with the context length or the batch: sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt import demo
from sequoia_opt.cli.app import app
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import (
    STANDARD,
    Force,
    Json,
    alternatives,
    check_output,
    print_json,
)
from sequoia_opt.cli.solving_options import (
    AcceptanceFile,
    ProfileFile,
    SolvingOptions,
    load_measurements,
)
from sequoia_opt.plan.sweep import AXES

if TYPE_CHECKING:
    from rich.table import Table

    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.schedule import Schedule
    from sequoia_opt.plan.sweep import Point

TITLES = {"context": "best tree by context length", "batch": "best tree by batch"}
SCHEDULE = "Schedule"  # panel of --help
TO = ("vllm", "tensorrt-llm", "sglang", "sglang-costs", "llama.cpp-costs")
SCHEDULE_OPTIONS = ("max_size", "max_depth", "context")  # those of solving that a schedule has


@dataclass(frozen=True)
class ScheduleOptions:
    """What is asked of a schedule by batch size."""

    to: Annotated[
        str | None,
        typer.Option(
            help="Write the schedule for an engine instead of the table: vllm, tensorrt-llm, "
            "sglang; or what its steps cost: sglang-costs, llama.cpp-costs.",
            rich_help_panel=SCHEDULE,
        ),
    ] = None
    draft: Annotated[
        str | None,
        typer.Option(
            help="Draft model as the engine should load it.",
            show_default="the profile's",
            rich_help_panel=SCHEDULE,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File that --to writes.",
            show_default="standard output",
            rich_help_panel=SCHEDULE,
        ),
    ] = None
    requests_per_second: Annotated[
        str | None,
        typer.Option(
            help="Find the batch size that this request rate leads to; several: 2,8,32.",
            rich_help_panel=SCHEDULE,
        ),
    ] = None
    tokens_per_request: Annotated[
        int,
        typer.Option(min=1, help="New tokens of a request, on average.", rich_help_panel=SCHEDULE),
    ] = 256

    @property
    def rates(self) -> list[float]:
        """Requests per second.

        Raises:
            typer.BadParameter: they are malformed, or not above 0.
        """
        if self.requests_per_second is None:
            return []
        try:
            rates = [float(rate) for rate in self.requests_per_second.split(",")]
        except ValueError:
            rates = [0.0]
        if not all(0 < rate < inf for rate in rates):
            raise typer.BadParameter(
                f"found {self.requests_per_second!r}, expected rates above 0 as 2,8,32",
                param_hint="--requests-per-second",
            )
        return rates

    def check(self, axis: str) -> None:
        """Refuse options that do not go together.

        Raises:
            typer.BadParameter: it says which.
        """
        if self.to is not None and self.to not in TO:
            raise typer.BadParameter(
                f"found {self.to!r}, expected {alternatives(TO)}", param_hint="--to"
            )
        is_asked = self.to is not None or self.requests_per_second is not None
        if is_asked and axis != "batch":
            raise typer.BadParameter(
                f"found {axis!r}, expected batch: schedules are by batch size", param_hint="AXIS"
            )
        if self.to is not None and self.requests_per_second is not None:
            raise typer.BadParameter(
                "found --to too, expected one of them: a schedule is for every load",
                param_hint="--requests-per-second",
            )
        if self.output is not None and self.to is None:
            raise typer.BadParameter("found no --to, which says what to write", param_hint="-o")


@app.command(epilog="Example: sequoia-opt sweep batch --profile profile.yaml --to vllm")
@with_option_groups
def sweep(
    axis: Annotated[str, typer.Argument(help=f"What to vary: {alternatives(AXES)}.")] = AXES[0],
    profile: ProfileFile = None,
    acceptance: AcceptanceFile = None,
    *,
    options: SolvingOptions,
    schedule_options: ScheduleOptions,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show how the best tree changes with context or batch.

    The command solves like `solve`, then again for each value that the profile has.

    The table shows the best tree there, and how much slower the first tree is.

    With several batches, another shows the guesses of the best chain at each batch size.
    """
    from sequoia_opt.cli.output import note
    from sequoia_opt.repository import paths

    if axis not in AXES:
        raise typer.BadParameter(
            f"found {axis!r}, expected {alternatives(AXES)}", param_hint="AXIS"
        )
    schedule_options.check(axis)
    asked, rates = options.keywords(), schedule_options.rates
    files = (profile or paths.bundled_profile(), acceptance or paths.bundled_acceptance())
    latencies, accepted = load_measurements(*files)
    for line in latencies.doubts():
        note(f"note: the profile's times: {line}")
    if schedule_options.to is not None:
        _write(latencies, accepted, asked, schedule_options, files, force, as_json)
        return
    schedule = None
    if axis == "batch" and (rates or len(latencies.batches()) > 1):
        schedule = _schedule(latencies, accepted, asked)
    _show(axis, latencies, accepted, asked, schedule, schedule_options, as_json)


def _show(
    axis: str,
    latencies: LatencyProfile,
    accepted: Acceptance,
    asked: dict[str, Any],
    schedule: Schedule | None,
    options: ScheduleOptions,
    as_json: bool,
) -> None:
    """Solve for each value and print the tables, or one document."""
    from sequoia_opt.cli.output import out, show
    from sequoia_opt.cli.schedule_summary import load_table, schedule_table
    from sequoia_opt.plan import schedule_formats, solver
    from sequoia_opt.plan import sweep as sweeping

    loads = [schedule.load(rate, options.tokens_per_request) for rate in options.rates if schedule]
    plan = solver.solve(latencies, accepted, **asked)
    points = sweeping.sweep(latencies, accepted, plan.tree, axis, **asked)
    if as_json:
        print_json({
            "axis": axis,
            "tree": plan.tree.document(),
            "points": [point.document() for point in points],
            **({"schedule": schedule.document()} if schedule else {}),
            **({"loads": [asdict(load) for load in loads]} if loads else {}),
        })  # fmt: skip
        return
    chosen = plan.choice.tree
    out.print(
        f"chosen tree: {chosen.size} nodes, {chosen.depth} deep, solved for "
        f"{plan.context:.0f} cached tokens and batch {plan.batch}"
    )
    show(_table(axis, points))
    if schedule is not None:
        show(schedule_table(schedule))
        out.print(schedule_formats.stops_note(schedule))
    if loads:
        show(load_table(loads, options.tokens_per_request))


def _schedule(latencies: LatencyProfile, accepted: Acceptance, asked: dict[str, Any]) -> Schedule:
    from sequoia_opt.plan.schedule import schedule

    return schedule(latencies, accepted, **{name: asked[name] for name in SCHEDULE_OPTIONS})


def _write(
    latencies: LatencyProfile,
    accepted: Acceptance,
    asked: dict[str, Any],
    options: ScheduleOptions,
    inputs: Sequence[Path],
    force: bool,
    as_json: bool,
) -> None:
    """Write the schedule, or the costs of steps, for an engine."""
    from sequoia_opt.cli.export import check_replaceable
    from sequoia_opt.cli.output import note, plain, written
    from sequoia_opt.files.atomic import write_text
    from sequoia_opt.plan import schedule_formats

    output, to = options.output, str(options.to)
    output = None if output == STANDARD else output
    check_output(output, inputs=list(inputs))
    if to in schedule_formats.COSTS:
        text, notes = schedule_formats.export_costs(latencies, accepted, asked["context"], to)
    else:
        named = options.draft or demo.resolve(latencies.draft.model)
        if named != latencies.draft.model:
            latencies.draft.extra["path"] = named
        text, notes = schedule_formats.export_schedule(_schedule(latencies, accepted, asked), to)
    if output is not None:
        check_replaceable(output, text, force)
    for line in notes:
        note(f"note: {line}")
    if output is not None:
        write_text(output, text)
        written(output)
    if as_json:
        print_json({"to": to, "text": text, "notes": notes})
    elif output is None:
        plain(text, end="")


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
