"""The tables of `calibrate`: predictions and measurements, tree by tree. No torch.

Knows the comparisons. Knows nothing of how they were measured.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

from sequoia_opt.cli.bench_tables import in_one_line, interval_text, markdown_lines
from sequoia_opt.cli.csv_output import flat, print_csv
from sequoia_opt.cli.output import out, show

if TYPE_CHECKING:
    from sequoia_opt.measure.calibration import (
        Calibration,
        CalibrationPart,
        Comparison,
    )
    from sequoia_opt.plan.tree import TokenTree

RATIO = "vs chosen\n(95%)"
SHOWN = {"tokens": "tokens\n/step", "step": "step\ntime", "speedup": "speedup"}
ERRORS = {
    "tokens": "tokens/step",
    "step": "step time",
    "speedup": "speedup",
    "filed_step": "step time by the profile on file",
    "filed_speedup": "speedup by the profile on file",
}


def calibration_table(part: CalibrationPart, title: str) -> None:
    """Print one sampling's trees as a table, then how far off the predictions are."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE, collapse_padding=True, pad_edge=False
    )
    table.add_column("tree", overflow="fold")
    for column in ("nodes", *SHOWN.values(), RATIO):
        table.add_column(column, justify="right", no_wrap=True)
    for checked in part.trees:
        comparisons = map(checked.comparison, SHOWN)
        cells = [f"{one.predicted:.2f}/{one.measured:.2f}" for one in comparisons]
        ratio = _measured(checked.over_chosen, "x")
        table.add_row(checked.name, _nodes(checked.tree), *cells, ratio)
    show(table)
    out.print("predicted/measured; step time in steps of plain decoding")
    _conclusions(part)


def calibration_markdown(part: CalibrationPart, title: str) -> None:
    """Print one sampling's trees as Markdown, with intervals and errors; then as in
    `calibration_table`."""
    columns = ["tree", "nodes", "depth"]
    for label in map(in_one_line, SHOWN.values()):
        columns += [f"{label}, predicted", "measured", "error"]
    columns.append(in_one_line(RATIO))
    rows = []
    for checked in part.trees:
        cells = [checked.name, _nodes(checked.tree), str(checked.tree.largest_depth)]
        for kind in SHOWN:
            compared = checked.comparison(kind)
            cells += [f"{compared.predicted:.2f}", _measured(compared)]
            cells.append(f"{100 * compared.error:+.1f}%")
        rows.append([*cells, _measured(checked.over_chosen, "x")])
    out.print("\n".join([*markdown_lines(columns, rows), "", title]), soft_wrap=True)
    _conclusions(part)


def calibration_csv(calibration: Calibration) -> None:
    """Print a row for each tree of each sampling, with all settings."""
    print_csv(
        [
            {**flat(checked.document()), **flat({**calibration.settings, **asdict(part.sampling)})}
            for part in calibration.parts
            for checked in part.trees
        ]
    )


def _nodes(tree: TokenTree) -> str:
    """How many nodes a tree has, or at most if it grows."""
    return str(tree.size) if tree.policy is None else f"≤{tree.largest_size}"


def _measured(compared: Comparison, unit: str = "") -> str:
    """A measured number, with its interval where it has one."""
    return f"{compared.measured:.2f}{unit}{interval_text(compared.low, compared.high)}"


def _conclusions(part: CalibrationPart) -> None:
    """Print the errors of each kind of prediction, and whether the fastest tree was chosen."""
    for kind, label in ERRORS.items():
        median, largest = part.errors(kind)
        out.print(f"{label}: off by {100 * median:.1f}% (median), {100 * largest:.1f}% at most")
    if part.chose_fastest:
        out.print("the chosen tree is the fastest of these")
    else:
        fastest = part.fastest
        out.print(
            f"the fastest tree is {fastest.name}: {_measured(fastest.over_chosen, 'x')} "
            "the chosen tree's speed"
        )
