"""The command that writes a page about a tree: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import Force, Json, any_tree, check_output, print_json

FROM_TREE = "the one that the tree was solved from"


@app.command(epilog="Example: sequoia-opt report tree.json --results bench.json -o report.html")
def report(
    tree: Annotated[
        Path | None, typer.Argument(help="Tree file.", show_default="the bundled pair's tree")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Latency profile.", show_default=FROM_TREE)
    ] = None,
    acceptance: Annotated[
        Path | None, typer.Option(help="Acceptance file.", show_default=FROM_TREE)
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Results file of `bench --output` to include; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File to write.", show_default="the tree's name, .html"
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an HTML page that shows why the tree was chosen.

    The page is one file that opens offline.
    """
    from sequoia_opt.cli.output import note, written
    from sequoia_opt.files.atomic import write_text
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.report.bench_results import Results
    from sequoia_opt.repository import paths, tree_provenance
    from sequoia_opt.repository.kinds import REPORT
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    tree_path = tree or paths.bundled_tree(0.0)
    provenance = Provenance.drawn(REPORT, [tree_path])
    if output is None:
        output = settled(Path(tree_path.with_suffix(".html").name), provenance, force, note)
    check_output(output, REPORT, [tree_path, profile, acceptance, *(results or [])], force)
    loaded = any_tree(tree_path)
    profile = profile or paths.input_of(loaded, "profile", tree_path.parent)
    acceptance = acceptance or paths.input_of(loaded, "acceptance", tree_path.parent)
    plan = tree_provenance.plan_again(
        loaded, LatencyProfile.load(profile), Acceptance.load(acceptance)
    )
    measured = [Results.load(path) for path in results or []]
    from sequoia_opt.report.page import page

    write_text(output, page(loaded, plan, measured, provenance.mark))
    if as_json:
        print_json({"written": [output]})
    written(output)
