"""The command `check`: whether a server's speculation is on, lossless and fast."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt import demo
from sequoia_opt.cli.app import app
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import (
    SAMPLING,
    SERVER,
    ApiKey,
    Json,
    Seed,
    alternatives,
    names,
    print_json,
)
from sequoia_opt.measure.check.verdict import CHECKS, NEAR_TIE

if TYPE_CHECKING:
    from sequoia_opt.measure.check.checks import Report
    from sequoia_opt.measure.check.settings import Optimum

SOLVED = "Solved settings"  # a panel of --help


class Format(StrEnum):
    """How verdicts are printed."""

    text = "text"
    json = "json"


@dataclass(frozen=True)
class ConnectionOptions:
    """How servers are reached."""

    baseline: Annotated[
        str | None,
        typer.Option(
            help="Address of the same model served without speculation.",
            show_default="the server itself, decoding plainly",
            rich_help_panel=SERVER,
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(help="Model name.", show_default="the only one", rich_help_panel=SERVER),
    ] = None
    baseline_model: Annotated[
        str | None,
        typer.Option(
            help="Model name of the baseline.",
            show_default="the only one",
            rich_help_panel=SERVER,
        ),
    ] = None
    api_key: ApiKey = None
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Wait this many seconds for an answer.", rich_help_panel=SERVER),
    ] = 120.0


@dataclass(frozen=True)
class TextOptions:
    """Which texts are compared."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Take prompts from this dataset file, as `bench` does.", show_default="bundled"
        ),
    ] = None
    limit: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 8
    max_new_tokens: Annotated[int, typer.Option(min=2, help="New tokens of each greedy text.")] = 48
    repeats: Annotated[int, typer.Option(min=1, help="Time each prompt this many times.")] = 3
    near_tie: Annotated[
        float,
        typer.Option(min=0.0, help="Accept gaps between log-probabilities up to this, in nats."),
    ] = NEAR_TIE
    temperature: Annotated[
        float,
        typer.Option(help="Sample texts at this temperature, above 0.", rich_help_panel=SAMPLING),
    ] = 0.8
    samples: Annotated[
        int,
        typer.Option(
            min=20,
            help="Sample this many short texts from each server after each of 4 prompts.",
            rich_help_panel=SAMPLING,
        ),
    ] = 200
    parallel: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Send this many requests at a time while sampling.",
            rich_help_panel=SAMPLING,
        ),
    ] = 1
    seed: Seed = 0


@dataclass(frozen=True)
class SolvedOptions:
    """What was solved for the server."""

    plan: Annotated[
        Path | None,
        typer.Option(
            help="Compare the server's settings with this plan.",
            show_default="none",
            rich_help_panel=SOLVED,
        ),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Find the best chain from this latency profile and --acceptance.",
            show_default="none",
            rich_help_panel=SOLVED,
        ),
    ] = None
    acceptance: Annotated[
        Path | None,
        typer.Option(
            help="Find the best chain from this acceptance file and --profile.",
            show_default="none",
            rich_help_panel=SOLVED,
        ),
    ] = None

    def check(self) -> None:
        """Refuse files that do not go together.

        Raises:
            typer.BadParameter: the error names them.
        """
        if (self.profile is None) != (self.acceptance is None):
            raise typer.BadParameter(
                "found one of --profile and --acceptance, expected both", param_hint="--profile"
            )
        if self.plan is not None and self.profile is not None:
            raise typer.BadParameter(
                "found --plan and --profile, expected one of them", param_hint="--plan"
            )

    def optimum(self, engine: str) -> Optimum | None:
        """What was solved for an engine; None if nothing is given."""
        from sequoia_opt.measure.check.settings import optimum_of_measurements, optimum_of_plan

        if self.plan is not None:
            return optimum_of_plan(self.plan, engine)
        if self.profile is not None and self.acceptance is not None:
            return optimum_of_measurements(self.profile, self.acceptance)
        return None


@app.command(epilog="Example: sequoia-opt check localhost:8000 --baseline localhost:8001 --strict")
@with_option_groups
def check(
    url: Annotated[
        str, typer.Argument(help="Address of an OpenAI-compatible server, e.g. localhost:8000.")
    ],
    *,
    servers: ConnectionOptions,
    expect_speculation: Annotated[
        bool,
        typer.Option(
            "--expect-speculation/--no-expect-speculation",
            help="Fail if the server does not speculate; with --no-, fail if it does.",
        ),
    ] = True,
    only: Annotated[
        str | None,
        typer.Option(help=f"Run only these checks: {', '.join(CHECKS)}.", show_default="all"),
    ] = None,
    texts: TextOptions,
    solved: SolvedOptions,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also fail if a check could not be made.")
    ] = False,
    printed: Annotated[
        Format, typer.Option("--format", help="Print verdicts as text or JSON.")
    ] = Format.text,
    as_json: Json = False,
) -> None:
    """Check that a running server's speculation is on, lossless and worthwhile.

    The command compares its greedy texts, sampled texts and speed with those of the same
    model without speculation. The exit status is 1 if a check fails.
    """
    checks = CHECKS if only is None else names(only)
    _check_usage(checks, texts.temperature)
    solved.check()
    if only is not None:
        _check_possible(checks, expect_speculation, solved)
    from sequoia_opt.cli.output import progress
    from sequoia_opt.measure.check.checks import CheckSpec
    from sequoia_opt.measure.check.checks import check as run
    from sequoia_opt.measure.check.server import connect

    spec = CheckSpec(
        prompts=_prompts(texts),
        new_tokens=texts.max_new_tokens,
        samples=texts.samples,
        temperature=texts.temperature,
        seed=texts.seed,
        repeats=texts.repeats,
        parallel=texts.parallel,
        near_tie=texts.near_tie,
        expects_speculation=expect_speculation,
        checks=checks,
    )
    server = connect(url, servers.model, servers.api_key, servers.timeout)
    baseline = None
    if servers.baseline is not None:
        baseline = connect(
            servers.baseline, servers.baseline_model, servers.api_key, servers.timeout
        )
    report = run(server, baseline, spec, solved.optimum(server.dialect.name), progress)
    _print(report, strict, as_json or printed is Format.json)
    if report.fails(strict):
        raise typer.Exit(1)


def _check_usage(checks: list[str] | tuple[str, ...], temperature: float) -> None:
    """Refuse options that cannot be used.

    Raises:
        typer.BadParameter: a check is unknown, or the temperature is not above 0.
    """
    unknown = [name for name in checks if name not in CHECKS]
    if unknown or not checks:
        found = ", ".join(unknown) or "none"
        raise typer.BadParameter(
            f"found {found}, expected {alternatives(CHECKS)}", param_hint="--only"
        )
    if not 0 < temperature < 100:
        raise typer.BadParameter(
            f"found {temperature:g}, expected a temperature above 0 and below 100; the greedy "
            "check runs at temperature 0",
            param_hint="--temperature",
        )


def _check_possible(
    checks: Collection[str], expects_speculation: bool, solved: SolvedOptions
) -> None:
    """Refuse checks that were asked for by name and would not be made.

    Raises:
        typer.BadParameter: the error names what is lacking.
    """
    lacking = None
    if "settings" in checks and solved.plan is None and solved.profile is None:
        lacking = "settings, expected --plan, or --profile and --acceptance, with it"
    elif "acceptance" in checks and not expects_speculation:
        lacking = "acceptance, expected it without --no-expect-speculation"
    if lacking:
        raise typer.BadParameter(f"found {lacking}", param_hint="--only")


def _prompts(texts: TextOptions) -> list[str]:
    """The prompts of a dataset, or the bundled ones."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.measure.check.checks import load_prompts

    if texts.prompts is None:
        return demo.prompts()[: texts.limit]
    return load_prompts(texts.prompts, texts.limit, note)


def _print(report: Report, is_strict: bool, as_json: bool) -> None:
    """Print the verdicts."""
    if as_json:
        print_json(report.document() | {"ok": not report.fails(is_strict)})
        return
    from sequoia_opt.cli.check_summary import print_report

    print_report(report)
