"""The command that finds the plan that decodes fastest: solve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import Force, Json, Output, any_tree, check_output, print_json
from sequoia_opt.cli.solving_options import (
    AcceptanceFile,
    ProfileFile,
    SolvingOptions,
    Static,
    load_measurements,
    load_recording,
)

if TYPE_CHECKING:
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.judge import Candidate
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.plan import Plan
    from sequoia_opt.plan.recording import Recording
    from sequoia_opt.plan.tree import TokenTree

BUDGETS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # nodes, with --compare


@app.command(epilog="Example: sequoia-opt solve --max-size 64 --context 512 -o tree.json")
@with_option_groups
def solve(
    profile: ProfileFile = None,
    acceptance: AcceptanceFile = None,
    *,
    options: SolvingOptions,
    static: Static = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Tree to compare with, in any format that `import` reads; may be repeated."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare with other tools' shapes, by budget.")
    ] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Show how tokens per step grow with the tree.")
    ] = False,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find the plan that decodes fastest: a static tree, a chain, an adaptive tree, or none.

    The command solves from a latency profile and acceptance rates, without the models. Adaptive
    plans, whose trees grow by the draft's probabilities, need the drafts that `estimate` recorded.
    """
    from sequoia_opt.plan.tree import FORMAT

    asked = options.keywords()
    check_output(output, FORMAT, [profile, acceptance, *(against or [])], force)
    from sequoia_opt.cli import plan_summary
    from sequoia_opt.cli.output import note, written
    from sequoia_opt.plan import solver
    from sequoia_opt.repository import paths, tree_provenance
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    profile = profile or paths.bundled_profile()
    acceptance = acceptance or paths.bundled_acceptance()
    latencies, rates = load_measurements(profile, acceptance)
    rivals = {str(path): any_tree(path) for path in against or []}
    is_used = not static or any(rival.policy is not None for rival in rivals.values())
    recording = load_recording(rates, acceptance) if is_used else None
    plan = solver.solve(latencies, rates, **asked, given=rivals, recording=recording, static=static)
    source = tree_provenance.Source(profile, acceptance)
    stated = asked | {"static": True} if static else asked
    tree = tree_provenance.planned_tree(plan, source, stated)
    if output is None:
        slug = str(latencies.hardware.get("slug", "unknown"))
        default = paths.tree_path(slug, profile, rates, acceptance)
        output = settled(default, Provenance.of(tree.document()), force, note)
    plans = {}
    if compare:
        plans = _plans_by_budget(plan, latencies, rates, asked, rivals, recording)
    growth = None
    if scaling:
        from sequoia_opt.plan.scaling import scaling as growth_of

        growth = growth_of(rates)
    tree.save(output)
    for line in latencies.doubts():
        note(f"note: the profile's times: {line}")
    for line in plan.notes:
        note(f"note: {line}")

    if as_json:
        document: dict[str, Any] = tree.document()
        if rivals:
            document["against"] = {rival.name: _prediction(rival) for rival in plan.given}
        if compare:
            document["compare"] = {budget: _predictions(best) for budget, best in plans.items()}
        if plan.adaptive is not None:
            document["compared"] = plan.adaptive.speedups()
        if growth:
            document["scaling"] = growth.document()
        print_json(document)
    else:
        plan_summary.plan_summary(plan)
        if compare:
            plan_summary.budgets_table(plans)
        if growth:
            plan_summary.scaling_table(growth)
    written(output)


def _plans_by_budget(
    plan: Plan,
    latencies: LatencyProfile,
    rates: Acceptance,
    options: dict[str, Any],
    rivals: dict[str, TokenTree],
    recording: Recording | None,
) -> dict[int, Plan]:
    """The static plan of at most so many nodes, for each budget up to the largest of `plan`."""
    from sequoia_opt.plan import solver

    largest = options["max_size"] or plan.expected.shape[1] - 1
    plans = {}
    for budget in BUDGETS:
        if budget > largest:
            break
        limits = options | {"max_size": budget, "size": None}
        small = {name: tree for name, tree in rivals.items() if tree.largest_size <= budget}
        plans[budget] = solver.solve(
            latencies, rates, **limits, given=small, recording=recording, static=True
        )
    return plans


def _predictions(plan: Plan) -> dict[str, Any]:
    """What is predicted of a plan's fastest tree and its rivals, by name."""
    return {c.name: _prediction(c) for c in (*plan.baselines, plan.fastest, *plan.given)}


def _prediction(candidate: Candidate) -> dict[str, Any]:
    return {
        "size": candidate.tree.largest_size,
        "depth": candidate.tree.largest_depth,
        "tokens": float(candidate.tokens[0]),
        "speedup": float(candidate.speedup[0]),
    }
