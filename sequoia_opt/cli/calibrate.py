"""The command `calibrate`: predicted against measured speed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.bench_options import (
    DatasetOptions,
    Format,
    Limit,
    NewTokens,
    OutputOptions,
    PairOptions,
    Repeats,
    SamplingOptions,
    solved_tree,
)
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import SAMPLING, print_json
from sequoia_opt.cli.tree_defaults import (
    Tree,
    TreeMinP,
    TreeTopK,
    TreeTopP,
    TreeVerifier,
)

if TYPE_CHECKING:
    from sequoia_opt.measure.calibration import Calibration

TEMPERATURES = (0.0, 0.6)


@app.command(epilog="Example: sequoia-opt calibrate tree.json --limit 40 -o calibration.json")
@with_option_groups
def calibrate(
    tree: Tree = None,
    *,
    data: DatasetOptions,
    profile: Annotated[
        Path | None,
        typer.Option(help="Latency profile to predict from.", show_default="the tree's"),
    ] = None,
    limit: Limit = 64,
    max_new_tokens: NewTokens = 128,
    repeats: Repeats = 1,
    chains: Annotated[
        int,
        typer.Option(
            help="Also decode with chains of 1 to this many guesses.", min=0, show_default="none"
        ),
    ] = 0,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Sampling temperature; 0 is greedy.",
            show_default=" and ".join(f"{value:g}" for value in TEMPERATURES),
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    top_p: TreeTopP = None,
    top_k: TreeTopK = None,
    min_p: TreeMinP = None,
    verifier: TreeVerifier = None,
    engine: PairOptions,
    outputs: OutputOptions,
) -> None:
    """Compare predicted with measured speed for many tree sizes.

    Acceptance is estimated from one half of the dataset's documents. The other
    half is decoded with the tree that is best by that estimate, and with others
    from 2 nodes to twice its size.
    """
    outputs.check(data.dataset, [tree, profile])
    solved = solved_tree(tree, engine, SamplingOptions(temperature, top_p, top_k, min_p, verifier))
    from sequoia_opt.cli.output import note, progress
    from sequoia_opt.measure.calibration import CalibrationSpec, run_calibration
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.repository import paths

    spec = CalibrationSpec(
        tree=solved.tree,
        tree_file=solved.file,
        sampling=solved.sampling,
        limit=limit,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        chains=chains,
        template=data.template,
        memory_budget=engine.budget(solved.tree),
        profile=LatencyProfile.load(
            profile or paths.input_of(solved.tree, "profile", Path(solved.file).parent)
        ),
        temperatures=TEMPERATURES if temperature is None else (temperature,),
    )
    spec.check()
    name, documents = data.load()
    pair = engine.load(solved.tree)
    calibration = run_calibration(spec, pair, name, documents, progress, note)
    outputs.save(calibration.document())
    _print(calibration, outputs.printed)


def _print(calibration: Calibration, form: Format) -> None:
    """Print a calibration."""
    from sequoia_opt.cli import calibration_tables
    from sequoia_opt.cli.bench_tables import settings_line

    if form is Format.json:
        print_json(calibration.document())
    elif form is Format.csv:
        calibration_tables.calibration_csv(calibration)
    else:
        show = (
            calibration_tables.calibration_markdown
            if form is Format.md
            else calibration_tables.calibration_table
        )
        for part in calibration.parts:
            show(part, settings_line(calibration.settings | asdict(part.sampling)))
