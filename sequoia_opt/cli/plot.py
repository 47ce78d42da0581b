"""The command that draws figures of results: plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import Force, Json, check_output, print_json, refuse_standard

FOLDER = Path("figures")


@app.command(epilog="Example: sequoia-opt plot results/*.json -o figures")
def plot(
    results: Annotated[list[Path], typer.Argument(help="Results files of `bench --output`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the figures.")
    ] = FOLDER,
    form: Annotated[str, typer.Option("--format", help="File format: svg, png or pdf.")] = "svg",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw figures of benchmark results.

    Each file becomes a figure of speed by method, tokens per step by size, or predictions.

    Files that differ only in temperature share one more figure.
    """
    from sequoia_opt.cli.output import note, written
    from sequoia_opt.report import bench_figures, bench_results
    from sequoia_opt.repository.kinds import FIGURE
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    if form not in bench_figures.FORMATS:
        raise typer.BadParameter(
            f"found {form!r}, expected {', '.join(bench_figures.FORMATS)}", param_hint="--format"
        )
    measured = [bench_results.Results.load(path) for path in results]
    refuse_standard(output)
    check_output(output / f"figure.{form}")
    paths = []
    for name, figure in bench_figures.figures(measured).items():
        sources = [results[index] for index in bench_figures.drawn_from(name, measured)]
        provenance = Provenance.drawn(FIGURE, sources)
        path = settled(output / f"{name}.{form}", provenance, force, note)
        bench_figures.save(figure, path, provenance.mark)
        written(path)
        paths.append(path)
    if as_json:
        print_json({"written": paths})
