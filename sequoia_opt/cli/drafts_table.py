"""What `compare-drafts` prints: drafts by predicted speed. No torch.

Knows the plans. Knows nothing of how drafts were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

from sequoia_opt.cli.bench_tables import interval_text
from sequoia_opt.cli.output import out, show

if TYPE_CHECKING:
    from sequoia_opt.measure.compare_drafts import DraftResult


def drafts_table(results: Sequence[DraftResult]) -> None:
    """Print drafts in the given order."""
    table = Table(
        title=f"drafts for {results[0].profile.target.model}",
        title_justify="left",
        box=SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("draft", overflow="fold")
    for column in (
        "para-\nmeters", "rank 1\naccepted", "cost", "nodes", "depth", "tokens\n/step",
        "speedup (95%)",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        choice = result.choice
        at_most = "" if choice.tree.policy is None else "≤ "
        table.add_row(
            result.draft,
            f"{result.parameters / 1e6:,.1f}M" if result.parameters else "–",
            f"{result.acceptance.rates[0]:.2f}",
            f"{100 * result.relative_cost:.0f}%",
            f"{at_most}{choice.tree.largest_size}",
            f"{at_most}{choice.tree.largest_depth}",
            f"{choice.tokens[0]:.2f}",
            f"{choice.speedup[0]:.2f}x{interval_text(*result.speedup_interval)}",
        )
    show(table)
    out.print("cost: time of the draft's forward pass over the target's")


def fastest_line(first: DraftResult, second: DraftResult, probability: float) -> None:
    """Print how sure it is that the first draft is faster than the second."""
    out.print(
        f"{first.draft} is predicted to be the fastest: ahead of {second.draft} in "
        f"{100 * probability:.0f}% of resamplings"
    )
