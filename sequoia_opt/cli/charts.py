"""What `show` draws in a terminal: trees, latency curves, acceptance. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from sequoia_opt.cli.console import acceptance_summary, bar, out, profile_summary
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

BAR = 30  # characters
WIDEST = 40  # characters of a node and the lines to it; of deeper ones the end
SHOWN_DEPTHS, SHOWN_RANKS = 8, 6


def tree(drawn: TokenTree, acceptance: Acceptance | None, limit: int) -> None:
    """A tree, node by node, the least probable ones left out.

    Args:
        acceptance: what says how probable nodes are, if that is known.
        limit: nodes to show.
    """
    pair = " with ".join(str(drawn.metadata.get(role, "unknown")) for role in ("target", "draft"))
    size = "one node, plain decoding" if drawn.size == 1 else f"{drawn.size} nodes"
    out.print(f"{size}, {drawn.depth} deep, for {pair}", markup=False)
    for line in _predicted(drawn):
        out.print(line, markup=False)
    values = None if acceptance is None else acceptance.node_values(drawn)
    kept = most_probable(drawn, values, limit)
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("rank", no_wrap=True)
    if values is not None:
        for column in ("reached", "share"):
            table.add_column(column, justify="right")
        table.add_column("")
        largest = 1 / float(values.sum())
    for node, line in outline(drawn, kept):
        cells = [line if len(line) <= WIDEST else f"… {line[2 - WIDEST :]}"]
        if values is not None:
            share = float(values[node] / values.sum())
            cells += [f"{values[node]:.3f}", f"{100 * share:.1f} %", bar(share / largest, BAR)]
        table.add_row(*cells)
    out.print(table)
    if values is not None:
        out.print(
            "reached: the probability that verification does, guesses taken as independent; "
            f"together {values.sum():.2f} tokens a step",
            markup=False,
        )
    if len(kept) < drawn.size:
        rest = "" if values is None else f", {values.sum() - values[kept].sum():.3f} tokens a step"
        out.print(f"{drawn.size - len(kept)} less probable nodes are not shown{rest}", markup=False)


def _predicted(drawn: TokenTree) -> list[str]:
    """What was predicted of a tree when it was solved."""
    predicted, tokens = drawn.metadata.get("predicted", {}), drawn.predicted_tokens
    if not predicted or tokens is None:
        return []
    line = f"predicted: {tokens:.2f} tokens a step, {predicted['step_ms']:.2f} ms a step"
    line += f", {predicted['speedup']:.2f} × plain decoding"
    if {"speedup_low", "speedup_high"} <= set(predicted):
        line += f" ({predicted['speedup_low']:.2f} – {predicted['speedup_high']:.2f})"
    name = drawn.metadata.get("hardware", {}).get("name")
    return [line, f"on {name}"] if name else [line]


def most_probable(drawn: TokenTree, values: FloatArray | None, limit: int) -> list[int]:
    """The nodes to show, a tree themselves: the most probable ones, or the first."""
    if values is None:
        return list(range(min(limit, drawn.size)))
    # A node is never more probable than its parent, and comes after it where it is as probable.
    order = np.argsort(-values, kind="stable")[:limit]
    return sorted(int(node) for node in order)


def outline(drawn: TokenTree, kept: Sequence[int]) -> list[tuple[int, str]]:
    """The kept nodes from the root down, each behind the lines that lead to it."""
    shown = set(kept)
    found: list[tuple[int, str]] = []
    waiting = [(0, "", "")]
    while waiting:
        node, lead, below = waiting.pop()
        children = [child for child in drawn.children[node] if child in shown]
        hidden = len(drawn.children[node]) - len(children)
        more = f"  + {hidden} not shown" if hidden else ""
        found.append((node, lead + (str(drawn.ranks[node]) if node else "root") + more))
        for child in reversed(children):
            last = child == children[-1]
            waiting.append(
                (child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))
            )
    return found


def profile(measured: LatencyProfile) -> None:
    """A profile's table, then each model's curve at a middle context."""
    profile_summary(measured)
    for role, model in (("target", measured.target), ("draft", measured.draft)):
        alone = [curve for curve in model.curves if curve.batch == 1]
        _curve(role, alone[len(alone) // 2])


def _curve(role: str, curve: Curve) -> None:
    table = Table(
        title=f"{role}, {curve.context} cached tokens", title_justify="left", box=SIMPLE,
        pad_edge=False,
    )  # fmt: skip
    for column in ("tokens", "ms", "95 %", "× one token"):
        table.add_column(column, justify="right")
    table.add_column("")
    longest = float(curve.median_ms.max())
    first = float(curve.median_ms[0])
    for place, count in enumerate(curve.tokens):
        middle = float(curve.median_ms[place])
        table.add_row(
            str(count),
            f"{middle:.3g}",
            f"{curve.low_ms[place]:.3g} – {curve.high_ms[place]:.3g}",
            f"{middle / first:.2f}",
            bar(middle / longest, BAR),
        )
    out.print(table)


def acceptance(rates: Acceptance) -> None:
    """The rates by rank with their intervals; by depth too, where they were measured so."""
    acceptance_summary(rates)
    if rates.by_depth is None:
        return
    table = Table(title="by depth", title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("depth", justify="right")
    shown = min(SHOWN_RANKS, rates.width)
    for rank in range(1, shown + 1):
        table.add_column(f"rank {rank}", justify="right")
    for depth, row in enumerate(rates.by_depth[:SHOWN_DEPTHS], 1):
        table.add_row(str(depth), *(f"{rate:.3f}" for rate in row[:shown]))
    out.print(table)
    if len(rates.by_depth) > SHOWN_DEPTHS:
        out.print(f"{len(rates.by_depth) - SHOWN_DEPTHS} more depths are not shown", markup=False)
