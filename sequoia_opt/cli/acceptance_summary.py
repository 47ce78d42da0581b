"""What `estimate` prints: acceptance by rank. No torch.

Knows acceptance rates. Knows nothing of how they were sampled.
"""

from __future__ import annotations

from rich.table import Table

from sequoia_opt.cli.output import bar, out, show
from sequoia_opt.plan.acceptance import Acceptance

SHOWN_RANKS = 8
BAR = 32  # characters


def acceptance_summary(acceptance: Acceptance) -> None:
    """Print the first ranks' rates with their intervals."""
    out.print(_heading(acceptance))
    table = Table()
    for column in ("rank", "accepted", "95% interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for index, rate in enumerate(acceptance.rates[:SHOWN_RANKS]):
        interval = ""
        if acceptance.low is not None and acceptance.high is not None:
            interval = f"{acceptance.low[index]:.3f}–{acceptance.high[index]:.3f}"
        table.add_row(str(index + 1), f"{rate:.3f}", interval, bar(rate, BAR))
    show(table)
    rest = acceptance.rates[SHOWN_RANKS:]
    sums = []
    if rest.size:
        sums.append(
            f"ranks {SHOWN_RANKS + 1} to {acceptance.rates.size} together: {rest.sum():.3f}"
        )
    sums.append(f"no rank accepted: {max(0.0, 1 - acceptance.rates.sum()):.3f}")
    out.print("; ".join(sums))
    if acceptance.by_depth is not None and len(acceptance.by_depth) > 1:
        first = " ".join(f"{rate:.3f}" for rate in acceptance.by_depth[:, 0])
        out.print(f"rank 1 accepted at depths 1 to {len(acceptance.by_depth)}: {first}")


def _heading(acceptance: Acceptance) -> str:
    """What the rates are of, in a line."""
    documents = f" of {len(acceptance.traces)} documents" if acceptance.traces else ""
    fit = "" if acceptance.fit == "raw" else f", {acceptance.fit} fit"
    return (
        f"{acceptance.draft} for {acceptance.target} on {acceptance.dataset}: temperature "
        f"{acceptance.temperature:g}, top-p {acceptance.top_p:g}{acceptance.sampling.cuts}, "
        f"{acceptance.verifier}, {acceptance.positions} tokens{documents}{fit}"
    )
