"""The command that draws what bench keeps: plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import check_output


@app.command(epilog="Example: sequoia-opt plot results/*.json -o figures")
def plot(
    results: Annotated[list[Path], typer.Argument(help="Files that `bench --output` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the figures.")] = Path(
        "figures"
    ),
    form: Annotated[str, typer.Option("--format", help="svg, png or pdf.")] = "svg",
) -> None:
    """Draw results: speed by method, tokens per step by temperature and by tree size, predictions.

    Each file becomes a figure; files that differ in the temperature another one together.
    """
    from sequoia_opt import console, plots

    if form not in plots.FORMATS:
        raise typer.BadParameter(
            f"found {form!r}, expected {', '.join(plots.FORMATS)}", param_hint="--format"
        )
    found = [plots.Results.load(path) for path in results]
    check_output(output / f"figure.{form}")
    for name, figure in plots.figures(found).items():
        path = output / f"{name}.{form}"
        plots.save(figure, path)
        console.written(path)
