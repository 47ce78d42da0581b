"""What is printed of an adaptive plan: its rule, its calibration, and what replay showed.

Knows policies, the plan's file and the calibration of an acceptance file. Computes nothing that
they do not say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from sequoia_opt.cli.output import bar, out
from sequoia_opt.files.fields import Fields

if TYPE_CHECKING:
    from sequoia_opt.plan.confidence import Confidence
    from sequoia_opt.plan.confidence_fit import FittedConfidence
    from sequoia_opt.plan.tree import TokenTree

BAR = 30  # characters


def policy_summary(plan: TokenTree) -> None:
    """Print an adaptive plan's policy, its calibration and its metadata."""
    from sequoia_opt.plan.policy_text import rule

    policy = plan.policy
    assert policy is not None
    for line in rule(policy):
        out.print(line)
    if policy.lookup is not None:
        by_match = policy.lookup.policy
        title = "acceptance by how far a lookup's match is believed"
        out.print(_calibration_table(by_match.confidence, by_match.ranks, title))
    out.print(_calibration_table(policy.confidence, policy.ranks))
    adaptive = Fields(plan.metadata.get("adaptive", {}), "adaptive")
    if not adaptive.mapping:
        return
    if "fitted_documents" in adaptive.mapping:
        out.print(
            f"fitted to {adaptive.integer('fitted_documents')} documents, predicted on "
            f"{adaptive.integer('predicted_documents')} others"
        )
    if "looked_up" in adaptive.mapping:
        share = 100 * adaptive.number("looked_up", 0.0, 1.0)
        out.print(f"drafted by lookup before the model in replay: {share:.1f}% of the steps")
    for key, title, column in (
        ("sizes", "target passes in replay", "nodes"),
        ("drafted_levels", "levels drafted in replay", "levels"),
    ):
        if key in adaptive.mapping:
            out.print(_shares_table(title, column, adaptive.section(key)))
    if "reliability" in adaptive.mapping:
        _reliability(adaptive.section("reliability"))
    if "compared" in adaptive.mapping:
        out.print(_compared_table(adaptive.section("compared")))


def confidence_summary(fitted: FittedConfidence) -> None:
    """Print a calibration and how reliable it is."""
    out.print(_calibration_table(fitted.confidence, fitted.confidence.ranks))
    document = fitted.document()
    _reliability(Fields(document["reliability"], "confidence: reliability"))


def _calibration_table(
    confidence: Confidence, ranks: int, title: str = "acceptance by the draft's probability"
) -> Table:
    """Acceptance by the draft's probability: each rank at depth 1, and the first rank below."""
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("probability", justify="right")
    columns = [(f"rank {rank + 1}", 0, rank) for rank in range(ranks)]
    depths = len(confidence.acceptance)
    for depth in range(1, depths):
        deeper = "≥ " if depth == depths - 1 else ""
        columns.append((f"rank 1, depth {deeper}{depth + 1}", depth, 0))
    for name, _, _ in columns:
        table.add_column(name, justify="right")
    edges = [0.0, *confidence.edges, 1.0]
    for number in range(len(edges) - 1):
        rates = [f"{confidence.acceptance[depth][rank][number]:.3f}" for _, depth, rank in columns]
        table.add_row(f"{edges[number]:g}–{edges[number + 1]:g}", *rates)
    return table


def _shares_table(title: str, column: str, shares: Fields) -> Table:
    """How often each number occurred."""
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column(column, justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    for number in shares.mapping:
        share = shares.number(number, 0.0, 1.0)
        table.add_row(str(number), f"{100 * share:.1f}%", bar(share, BAR))
    return table


def _reliability(reliability: Fields) -> None:
    """Print what was predicted beside what was accepted on the other documents."""
    table = Table(
        title="reliability on the documents that it was not fitted to", title_justify="left",
        box=SIMPLE, pad_edge=False,
    )  # fmt: skip
    for column in ("predicted", "accepted", "guesses"):
        table.add_column(column, justify="right")
    table.add_column("")
    predicted, accepted = (reliability.numbers(key, 0.0, 1.0) for key in ("predicted", "accepted"))
    guesses = reliability.integers("guesses")
    for said, happened, count in zip(predicted, accepted, guesses, strict=False):
        table.add_row(f"{said:.3f}", f"{happened:.3f}", str(count), bar(float(happened), BAR))
    out.print(table)
    if {"error", "draft_error"} <= set(reliability.mapping):
        out.print(
            f"expected calibration error: {reliability.number('error'):.4f}; of the draft's own "
            f"probabilities: {reliability.number('draft_error'):.4f}"
        )


def _compared_table(compared: Fields) -> Table:
    """The predicted speeds of all kinds of plans."""
    table = Table(title="predicted speed", title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("plan", no_wrap=True)
    for column in ("speed", "95% interval"):
        table.add_column(column, justify="right")
    for name in compared.mapping:
        section = compared.section(name)
        values: dict[str, Any] = {key: section.number(key, 0.0) for key in ("low", "high")}
        interval = f"{values['low']:.2f}–{values['high']:.2f}"
        table.add_row(str(name), f"{section.number('speedup', 0.0):.2f}x", interval)
    return table
