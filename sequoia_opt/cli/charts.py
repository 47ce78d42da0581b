"""What `show` draws in a terminal: trees, latency curves and acceptance rates.

Knows loaded documents. Knows nothing of files, and loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from sequoia_opt.cli.acceptance_summary import acceptance_summary
from sequoia_opt.cli.output import bar, out
from sequoia_opt.cli.policy_summary import confidence_summary, policy_summary
from sequoia_opt.cli.profile_summary import profile_summary
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve
from sequoia_opt.plan.judge import kind
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

BAR = 30  # characters
WIDEST = 40  # characters of a node and the lines that lead to it; deeper nodes are cut at the left
SHOWN_DEPTHS, SHOWN_RANKS = 8, 6


def tree(drawn: TokenTree, acceptance: Acceptance | None, limit: int) -> None:
    """Print a tree node by node, without the least probable ones.

    Args:
        acceptance: rates that say how probable the nodes are, if they are known.
        limit: how many nodes to print.
    """
    pair = " with ".join(str(drawn.metadata.get(role, "unknown")) for role in ("target", "draft"))
    size = "one node, plain decoding" if drawn.size == 1 else f"{drawn.size} nodes"
    if drawn.policy is None:
        out.print(f"{size}, {drawn.depth} deep, for {pair}")
    else:
        out.print(f"{kind(drawn)} of up to {drawn.largest_size} nodes, for {pair}")
    for line in _prediction(drawn):
        out.print(line)
    if drawn.policy is not None:
        policy_summary(drawn)
        out.print(f"engines that cannot grow trees run this one: {size}, {drawn.depth} deep")
    values = None if acceptance is None else acceptance.node_values(drawn)
    shown = most_probable(drawn, values, limit)
    out.print(_tree_table(drawn, values, shown))
    if values is not None:
        out.print(
            "reached: probability that verification reaches the node, assuming independent guesses"
        )
        out.print(f"the sum is {values.sum():.2f} tokens per step")
    if len(shown) < drawn.size:
        rest = (
            "" if values is None else f", {values.sum() - values[shown].sum():.3f} tokens per step"
        )
        hidden = drawn.size - len(shown)
        nodes = "1 less probable node is" if hidden == 1 else f"{hidden} less probable nodes are"
        out.print(f"{nodes} not shown{rest}")


def _tree_table(drawn: TokenTree, values: FloatArray | None, shown: Sequence[int]) -> Table:
    """The shown nodes, each with its probability where `values` has them."""
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("rank", no_wrap=True)
    if values is not None:
        for column in ("reached", "share"):
            table.add_column(column, justify="right")
        table.add_column("", no_wrap=True, overflow="crop")
    for node, line in outline(drawn, shown):
        cells = [line if len(line) <= WIDEST else f"… {line[2 - WIDEST :]}"]
        if values is not None:
            share = float(values[node] / values.sum())
            # The root, which is always reached, has the longest bar.
            drawn_bar = bar(float(values[node]), BAR)
            cells += [f"{values[node]:.3f}", f"{100 * share:.1f}%", drawn_bar]
        table.add_row(*cells)
    return table


def _prediction(drawn: TokenTree) -> list[str]:
    """What was predicted of a tree when it was solved, in one or two lines; none if nothing."""
    predicted, tokens = drawn.metadata.get("predicted", {}), drawn.predicted_tokens
    if not predicted or tokens is None:
        return []
    line = f"predicted: {tokens:.2f} tokens per step, {predicted['step_ms']:.2f} ms per step"
    line += f", {predicted['speedup']:.2f}x plain decoding"
    if {"speedup_low", "speedup_high"} <= set(predicted):
        line += f" ({predicted['speedup_low']:.2f}–{predicted['speedup_high']:.2f})"
    name = drawn.metadata.get("hardware", {}).get("name")
    return [line, f"on {name}"] if name else [line]


def most_probable(drawn: TokenTree, values: FloatArray | None, limit: int) -> list[int]:
    """The most probable nodes, which form a tree themselves; without values, the first nodes.

    Args:
        values: [nodes], the probability that verification reaches each node.
    """
    if values is None:
        return list(range(min(limit, drawn.size)))
    # A parent is at least as probable as its child and comes before it, so a stable sort keeps it.
    order = np.argsort(-values, kind="stable")[:limit]
    return sorted(int(node) for node in order)


def outline(drawn: TokenTree, shown: Sequence[int]) -> list[tuple[int, str]]:
    """The shown nodes from the root down, each with the lines that lead to it and its rank.

    Args:
        shown: nodes that form a tree, in order; the first is the root.
    """
    is_shown = set(shown)
    lines: list[tuple[int, str]] = []
    stack = [(0, "", "")]  # node, the lines that lead to it, the lines that lead past it
    while stack:
        node, lead, below = stack.pop()
        children = [child for child in drawn.children[node] if child in is_shown]
        hidden = len(drawn.children[node]) - len(children)
        more = f"  + {hidden} not shown" if hidden else ""
        lines.append((node, lead + (str(drawn.ranks[node]) if node else "root") + more))
        for child in reversed(children):
            branch, past = ("└─ ", "   ") if child == children[-1] else ("├─ ", "│  ")
            stack.append((child, below + branch, below + past))
    return lines


def profile(measured: LatencyProfile) -> None:
    """Print a profile's table, then each model's curve at a middle context length."""
    profile_summary(measured)
    for role, model in (("target", measured.target), ("draft", measured.draft)):
        if model.is_free:
            continue
        unbatched = [curve for curve in model.curves if curve.batch == 1]
        out.print(_curve_table(role, unbatched[len(unbatched) // 2]))


def _curve_table(role: str, curve: Curve) -> Table:
    table = Table(
        title=f"{role}, {curve.context} cached tokens", title_justify="left", box=SIMPLE,
        pad_edge=False,
    )  # fmt: skip
    for column in ("tokens", "ms", "95%", "x one token"):
        table.add_column(column, justify="right")
    table.add_column("")
    longest_ms = float(curve.median_ms.max())
    single_ms = float(curve.median_ms[0])
    for count, median, low, high in zip(
        curve.tokens, curve.median_ms, curve.low_ms, curve.high_ms, strict=True
    ):
        table.add_row(
            str(count),
            f"{median:.3g}",
            f"{low:.3g}–{high:.3g}",
            f"{median / single_ms:.2f}",
            bar(float(median) / longest_ms, BAR),
        )
    return table


def acceptance(rates: Acceptance) -> None:
    """Print the rates by rank with their intervals; by depth too, where they were measured so."""
    acceptance_summary(rates)
    if rates.by_depth is not None:
        _by_depth(rates.by_depth)
    if rates.confidence is not None:
        confidence_summary(rates.confidence)


def _by_depth(by_depth: FloatArray) -> None:
    """Print the first depths' rates, [depths, ranks]."""
    table = Table(title="by depth", title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("depth", justify="right")
    shown_ranks = min(SHOWN_RANKS, by_depth.shape[1])
    for rank in range(1, shown_ranks + 1):
        table.add_column(f"rank {rank}", justify="right")
    for depth, row in enumerate(by_depth[:SHOWN_DEPTHS], 1):
        table.add_row(str(depth), *(f"{rate:.3f}" for rate in row[:shown_ranks]))
    out.print(table)
    if len(by_depth) > SHOWN_DEPTHS:
        out.print(f"{len(by_depth) - SHOWN_DEPTHS} more depths are not shown")
