"""The commands to look with: show, report and plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import Force, Json, any_tree, check_output, print_json, refuse_standard
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.tree import TokenTree

SHOWN_NODES = 40


@app.command(epilog="Example: sequoia-opt show tree.json --limit 20")
def show(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A tree, in any format that `import` reads, a profile or an acceptance file.",
            show_default="the bundled pair's tree",
        ),
    ] = None,
    acceptance: Annotated[
        Path | None,
        typer.Option(help="What a tree's nodes are worth.", show_default="what it was solved from"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Nodes to show.")] = SHOWN_NODES,
    as_json: Json = False,
) -> None:
    """Look at a tree, a latency profile or acceptance rates in the terminal."""
    from sequoia_opt.cli import charts
    from sequoia_opt.files.reading import read_text
    from sequoia_opt.plan import acceptance as rates
    from sequoia_opt.plan import latency
    from sequoia_opt.repository import paths

    file = file or paths.bundled_tree(0.0)
    text = "" if file.suffix == ".pt" else read_text(file)
    kind = next((each for each in (latency.FORMAT, rates.FORMAT) if each in text), "")
    if kind in (latency.FORMAT, rates.FORMAT) and acceptance is not None:
        raise typer.BadParameter("goes with a tree", param_hint="--acceptance")
    if kind == latency.FORMAT:
        profile = latency.LatencyProfile.load(file)
        print_json(profile.document()) if as_json else charts.profile(profile)
    elif kind == rates.FORMAT:
        found = rates.Acceptance.load(file)
        print_json(found.document()) if as_json else charts.acceptance(found)
    else:
        tree = any_tree(file)
        known = _worth(tree, acceptance, file.parent)
        print_json(_nodes(tree, known)) if as_json else charts.tree(tree, known, limit)


def _worth(tree: TokenTree, named: Path | None, beside: Path) -> Acceptance | None:
    """The rates that say what a tree's nodes are worth, if there are any.

    Args:
        beside: folder that they may be in.
    """
    from sequoia_opt.cli import console
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.repository import paths

    try:
        return Acceptance.load(named or paths.input_of(tree, "acceptance", beside))
    except SequoiaError:
        if named is not None:
            raise
        console.note("note: its acceptance file is not here; --acceptance names one")
        return None


def _nodes(tree: TokenTree, acceptance: Acceptance | None) -> dict[str, Any]:
    """A tree's document, each node's worth with it."""
    document = tree.document()
    if acceptance is not None:
        values = acceptance.node_values(tree)
        document |= {"reached": values, "shares": values / values.sum()}
    return document


@app.command(epilog="Example: sequoia-opt report tree.json --results bench.json -o report.html")
def report(
    tree: Annotated[
        Path | None, typer.Argument(help="Tree file.", show_default="the bundled pair's")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Latency profile.", show_default="what the tree was solved from"),
    ] = None,
    acceptance: Annotated[
        Path | None,
        typer.Option(help="Acceptance file.", show_default="what the tree was solved from"),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="What `bench --output` wrote, to show beside; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write.", show_default="the tree's, .html"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a page that shows why the tree was chosen: one HTML file, to be opened offline."""
    from sequoia_opt.cli import console
    from sequoia_opt.files.atomic import write_text
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.report.bench_results import Results
    from sequoia_opt.repository import paths, tree_provenance
    from sequoia_opt.repository.kinds import REPORT
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    file = tree or paths.bundled_tree(0.0)
    maker = Provenance.drawn(REPORT, [file])
    if output is None:
        output = settled(Path(file.with_suffix(".html").name), maker, force, console.note)
    check_output(output, REPORT, [file, profile, acceptance, *(results or [])], force)
    shown = any_tree(file)
    profile = profile or paths.input_of(shown, "profile", file.parent)
    acceptance = acceptance or paths.input_of(shown, "acceptance", file.parent)
    plan = tree_provenance.plan_again(
        shown, LatencyProfile.load(profile), Acceptance.load(acceptance)
    )
    found = [Results.load(path) for path in results or []]
    from sequoia_opt.report.page import page

    write_text(output, page(shown, plan, found, maker.mark))
    if as_json:
        print_json({"written": [output]})
    console.written(output)


@app.command(epilog="Example: sequoia-opt plot results/*.json -o figures")
def plot(
    results: Annotated[list[Path], typer.Argument(help="Files that `bench --output` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the figures.")] = Path(
        "figures"
    ),
    form: Annotated[str, typer.Option("--format", help="svg, png or pdf.")] = "svg",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw results: speed by method, tokens per step by temperature and by tree size, predictions.

    Each file becomes a figure; files that differ in the temperature another one together.
    """
    from sequoia_opt.cli import console
    from sequoia_opt.report import bench_figures, bench_results
    from sequoia_opt.repository.kinds import FIGURE
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    if form not in bench_figures.FORMATS:
        raise typer.BadParameter(
            f"found {form!r}, expected {', '.join(bench_figures.FORMATS)}", param_hint="--format"
        )
    found = [bench_results.Results.load(path) for path in results]
    refuse_standard(output)
    check_output(output / f"figure.{form}")
    written = []
    for name, figure in bench_figures.figures(found).items():
        shown = [results[place] for place in bench_figures.drawn_from(name, found)]
        maker = Provenance.drawn(FIGURE, shown)
        path = settled(output / f"{name}.{form}", maker, force, console.note)
        bench_figures.save(figure, path, maker.mark)
        console.written(path)
        written.append(path)
    if as_json:
        print_json({"written": written})
