"""What `solve` prints: the chosen tree, its rivals, and how trees grow with their budget.

Knows plans as the solver returns them. Computes nothing that a plan does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from sequoia_opt.cli.output import out, show
from sequoia_opt.plan.adaptive_plans import ORACLE, AdaptivePlans, Bound
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.judge import kind
from sequoia_opt.plan.policy_text import rule

if TYPE_CHECKING:
    from sequoia_opt.plan.judge import Candidate
    from sequoia_opt.plan.plan import Plan
    from sequoia_opt.plan.scaling import Scaling

LONGEST_BAR = 28  # characters of the largest tree's bar


def plan_summary(plan: Plan) -> None:
    """Print the chosen tree and why it was chosen, then a table with its rivals."""
    for line in _verdict(plan):
        out.print(line)
    show(_candidates_table(plan))
    if plan.adaptive is not None:
        show(_kinds_table(plan.adaptive))


def _verdict(plan: Plan) -> list[str]:
    """The choice in words."""
    choice, fastest = plan.choice, plan.fastest
    if choice.tree.policy is not None:
        return _adaptive_verdict(plan)
    if not plan.may_speculate:
        return ["Only one node was allowed: plain decoding."]
    if fastest.tree.size == 1:
        return [
            "Speculation does not pay here: no tree is predicted to beat plain decoding, so the "
            "chosen tree has one node: plain decoding."
        ]
    if choice.tree.size == 1:
        return [
            f"Speculation hardly pays here: the fastest tree has {fastest.tree.size} nodes and is "
            f"predicted at {_speedup(fastest)}, so the chosen tree has one node: plain decoding."
        ]
    low, high = interval(choice.tokens)
    title = "Best tree" if choice.is_faster else "No tree pays. Best of those allowed"
    levels = " ".join(str(len(level)) for level in choice.tree.levels)
    return [
        f"{title}: {choice.tree.size} nodes, {choice.tree.depth} deep: {choice.tokens[0]:.2f} "
        f"tokens per step ({low:.2f}–{high:.2f}), {_speedup(choice)}",
        f"nodes at each depth: {levels}; E*(n, D) by {plan.method}",
        *_why_not_the_fastest(plan),
    ]


def _adaptive_verdict(plan: Plan) -> list[str]:
    """The choice of an adaptive plan in words."""
    choice, plans = plan.choice, plan.adaptive
    policy = choice.tree.policy
    assert policy is not None
    assert plans is not None
    low, high = interval(choice.tokens)
    return [
        f"Best plan: {kind(choice.tree)} of up to {choice.tree.largest_size} nodes: "
        f"{choice.tokens[0]:.2f} tokens per step ({low:.2f}–{high:.2f}), {_speedup(choice)}",
        *rule(policy),
        f"fitted to {plans.fitted} documents, predicted on {plans.held_out} others",
        *_why_not_another(choice, plans),
    ]


def _why_not_another(choice: Candidate, plans: AdaptivePlans) -> list[str]:
    """Why another adaptive plan than the one of highest predicted speed was chosen, if one was."""
    fastest = max(plans.adaptive, key=lambda candidate: candidate.speedup[0])
    if fastest is choice:
        return []
    return [
        f"An {kind(fastest.tree)} is predicted at {fastest.speedup[0]:.2f}x; the simpler plan was "
        "chosen."
    ]


def _kinds_table(plans: AdaptivePlans) -> Table:
    """Each kind of plan on the documents that no policy was fitted to."""
    table = Table(
        title=f"static and adaptive plans on {plans.held_out} documents that no policy was fitted "
        "to",
        title_justify="left",
    )
    table.add_column("plan", no_wrap=True)
    for column in ("nodes", "tokens/step", "ms/step", "tokens/s", "speed", "95% interval"):
        table.add_column(column, justify="right")
    rows: list[tuple[str, str, Candidate | Bound]] = [
        (kind(c.tree), _nodes(c), c) for c in plans.compared
    ]
    for name, nodes, row in [*rows, (ORACLE, "", plans.oracle)]:
        low, high = interval(row.speedup)
        is_chosen = row is plans.choice or name == kind(plans.choice.tree)
        table.add_row(
            name,
            nodes,
            f"{row.tokens[0]:.2f}",
            f"{row.step_ms[0]:.2f}",
            f"{row.tokens_per_second[0]:.1f}",
            f"{row.speedup[0]:.2f}x",
            f"{low:.2f}–{high:.2f}",
            style="bold" if is_chosen else "",
        )
    return table


def _nodes(candidate: Candidate) -> str:
    """How many nodes a step verifies."""
    tree = candidate.tree
    return str(tree.size) if tree.policy is None else f"≤ {tree.largest_size}"


def _why_not_the_fastest(plan: Plan) -> list[str]:
    """Why another tree than the one of highest predicted speed was chosen, if one was."""
    choice, fastest = plan.choice, plan.fastest
    if choice is fastest:
        return []
    tree = f"A {fastest.tree.size}-node tree is predicted at {fastest.speedup[0]:.2f}x"
    if plan.confidence is None:
        return [f"{tree}, indistinguishable from this one; the smaller tree was chosen."]
    return [
        f"{tree}, but this one is surer to be fast: with probability {plan.confidence:g} its "
        f"speedup is at least {choice.speedup_exceeded_with(plan.confidence):.2f}x."
    ]


def _speedup(candidate: Candidate) -> str:
    low, high = interval(candidate.speedup)
    return (
        f"{candidate.speedup[0]:.2f}x plain decoding ({low:.2f}–{high:.2f}; "
        f"faster in {100 * candidate.pays:.0f}% of resamplings)"
    )


def _candidates_table(plan: Plan) -> Table:
    sequences = f", batch {plan.batch}" if plan.batch > 1 else ""
    table = Table(
        title=f"predicted at {plan.context:.0f} cached tokens{sequences}", title_justify="left"
    )
    table.add_column("tree", no_wrap=True)
    for column in ("nodes", "depth", "E(T)", "replayed", "ms/step", "tokens/s", "speed"):
        table.add_column(column, justify="right")
    rows: list[tuple[str, Candidate]] = [("chosen", plan.choice)]
    if plan.choice is not plan.fastest:
        name = "fastest" if plan.choice.tree.policy is None else "best static"
        rows.append((name, plan.fastest))
    rows += [("next best", other) for other in plan.runners_up if other is not plan.fastest]
    rows += [(candidate.name, candidate) for candidate in (*plan.baselines, *plan.given)]
    for label, candidate in rows:
        table.add_row(*_candidate_row(label, candidate), style="bold" if label == "chosen" else "")
    return table


def _candidate_row(label: str, candidate: Candidate) -> list[str]:
    replayed, tree = candidate.replayed_tokens, candidate.tree
    is_static = tree.policy is None
    return [
        label,
        _nodes(candidate),
        str(tree.depth) if is_static else f"≤ {tree.largest_depth}",
        f"{candidate.expected_tokens:.2f}" if is_static else "–",
        "–" if replayed is None else f"{replayed:.2f}",
        f"{candidate.step_ms[0]:.2f}",
        f"{candidate.tokens_per_second[0]:.1f}",
        f"{candidate.speedup[0]:.2f}x",
    ]


def budgets_table(plans: Mapping[int, Plan]) -> None:
    """Print, for each budget of nodes, the fastest tree and the shapes that other tools use."""
    table = Table(title="speedup (tokens per step), by largest number of nodes")
    table.title_justify = "left"
    rivals = [c.name for plan in plans.values() for c in (*plan.baselines, *plan.given)]
    names = [name for name in dict.fromkeys(["solved", *rivals]) if name != "plain"]
    table.add_column("nodes", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for budget, plan in plans.items():
        by_name = {c.name: c for c in (*plan.baselines, plan.fastest, *plan.given)}
        candidates = [by_name.get(name) for name in names]
        table.add_row(
            str(budget),
            *(f"{c.speedup[0]:.2f}x ({c.tokens[0]:.2f})" if c else "" for c in candidates),
        )
    show(table)


def scaling_table(scaling: Scaling) -> None:
    """Print tokens per step by tree size: a table with bars, and the fitted growth."""
    table = Table(title="expected tokens per step, depth unlimited", title_justify="left")
    for column in ("nodes", "solved tree", "k sequences", "advantage"):
        table.add_column(column, justify="right")
    table.add_column("")
    per_token = LONGEST_BAR / scaling.trees.max()
    for size, tree, sequences in zip(scaling.sizes, scaling.trees, scaling.sequences, strict=True):
        marks = "█" * round(per_token * sequences) + "░" * round(per_token * (tree - sequences))
        table.add_row(
            str(size), f"{tree:.2f}", f"{sequences:.2f}", f"{tree / sequences:.2f}x", marks
        )
    show(table)
    out.print(
        f"solved trees of 8 nodes and more: {scaling.offset:.2f} + {scaling.per_doubling:.2f} "
        f"tokens per doubling (within {100 * scaling.error:.1f}%); "
        f"k sequences never exceed {scaling.plateau:.2f}"
    )
