"""The command that plans: solve."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import Force, Json, Output, any_tree, check_output, print_json

if TYPE_CHECKING:
    from sequoia_opt.plan.judge import Candidate
    from sequoia_opt.plan.tree import TokenTree

AXES = ("context", "batch")  # of `solve --sweep`
BUDGETS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # nodes, of `solve --compare`


@app.command(epilog="Example: sequoia-opt solve --max-size 64 --context 512 -o tree.json")
def solve(
    profile: Annotated[
        Path | None, typer.Option(help="Latency profile.", show_default="of the bundled pair")
    ] = None,
    acceptance: Annotated[
        Path | None, typer.Option(help="Acceptance file.", show_default="of the bundled pair")
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(min=1, help="Largest tree.", show_default="largest measured")
    ] = None,
    max_depth: Annotated[
        int | None, typer.Option(min=0, help="Deepest tree.", show_default="32")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Fix the number of nodes.")] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Fix the depth limit.")] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Cached tokens: 512, several as 128,512,2048, or weighted as 128:3,2048:1.",
            show_default="as in the acceptance file",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 1,
    shape: Annotated[
        str, typer.Option(help="What the engine can run: tree, chain, k-sequences or k-ary.")
    ] = "tree",
    max_width: Annotated[
        int | None,
        typer.Option(min=1, help="Most children of a node.", show_default="ranks measured"),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Maximise the speed-up that is exceeded with this probability.",
            show_default="maximise the predicted one",
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Tree to set beside it, in any format that `import` reads; may be repeated."
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="Show how the best tree changes with the context, or with the batch."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Set other tools' shapes beside it, by budget.")
    ] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Show how tokens a step grow with the size.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Every profile here with every acceptance of its pair.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="With --all: write nothing, list trees that differ or whose inputs are gone.",
        ),
    ] = False,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find the tree that decodes fastest, exactly, from both measurements."""
    options: dict[str, Any] = {
        "max_size": max_size,
        "max_depth": max_depth,
        "size": size,
        "depth": depth,
        "context": None if context is None else _contexts(context),
        "batch": batch,
        "shape": shape,
        "max_width": max_width,
        "confidence": confidence,
    }
    if check and not every:
        raise typer.BadParameter("goes with --all", param_hint="--check")
    if every:
        if profile or acceptance or output or compare or scaling or against or sweep:
            raise typer.BadParameter(
                "takes every profile and acceptance and writes each tree where it belongs; "
                "drop --profile, --acceptance, -o, --against, --compare, --scaling and --sweep",
                param_hint="--all",
            )
        _solve_all(options, check, force, as_json)
        return
    if sweep not in (None, *AXES):
        raise typer.BadParameter(
            f"found {sweep!r}, expected {' or '.join(AXES)}", param_hint="--sweep"
        )
    from sequoia_opt.plan.tree import FORMAT

    check_output(output, FORMAT, [profile, acceptance, *(against or [])], force)
    from sequoia_opt.cli import console
    from sequoia_opt.plan import solver
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.repository import paths, tree_provenance
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    profile = profile or paths.bundled_profile()
    latencies = LatencyProfile.load(profile)
    acceptance = acceptance or paths.bundled_acceptance()
    rates = Acceptance.load(acceptance)
    for role in ("target", "draft"):
        names = getattr(latencies, role).model, getattr(rates, role)
        if names[0] != names[1] and names[1] != "unknown":
            console.note(f"note: the profile's {role} is {names[0]}, the acceptance's {names[1]}")
    given = {str(path): any_tree(path) for path in against or []}
    plan = solver.solve(latencies, rates, **options, given=given)
    tree = tree_provenance.planned_tree(plan, tree_provenance.Source(profile, acceptance), options)
    path = output
    if path is None:
        slug = str(latencies.hardware.get("slug", "unknown"))
        usual = paths.tree_path(slug, profile, rates, acceptance)
        path = settled(usual, Provenance.of(tree.document()), force, console.note)
    plans = {}
    if compare:
        largest = max_size or plan.expected.shape[1] - 1
        for budget in (nodes for nodes in BUDGETS if nodes <= largest):
            within = options | {"max_size": budget, "size": None}
            fitting = {name: other for name, other in given.items() if other.size <= budget}
            plans[budget] = solver.solve(latencies, rates, **within, given=fitting)
    points, grown = [], None
    if sweep:
        from sequoia_opt.plan import sweep as sweeping

        points = sweeping.sweep(latencies, rates, tree, sweep, **options)
    if scaling:
        from sequoia_opt.plan import scaling as growth

        grown = growth.scaling(rates)
    tree.save(path)
    for line in latencies.doubts():
        console.note(f"note: the profile's times: {line}")

    document: dict[str, Any] = tree.document()
    if given:
        document["against"] = {c.name: _prediction(c) for c in plan.given}
    if compare:
        document["compare"] = {
            budget: {
                c.name: _prediction(c) for c in (*found.baselines, found.fastest, *found.given)
            }
            for budget, found in plans.items()
        }
    if sweep:
        document["sweep"] = {"axis": sweep, "points": [point.document() for point in points]}
    if grown:
        document["scaling"] = grown.document()
    if as_json:
        print_json(document)
    else:
        console.plan_summary(plan)
        if plans:
            console.comparison(plans)
        if sweep:
            console.sweep_table(sweep, points)
        if grown:
            console.scaling_summary(grown)
    console.written(path)


def _prediction(candidate: Candidate) -> dict[str, Any]:
    return {
        "size": candidate.tree.size,
        "depth": candidate.tree.depth,
        "tokens": float(candidate.tokens[0]),
        "speedup": float(candidate.speedup[0]),
    }


def _solve_all(options: dict[str, Any], check: bool, force: bool, as_json: bool) -> None:
    """Solve every profile with every acceptance of its pair, or say which trees are not that."""
    from sequoia_opt.cli import console
    from sequoia_opt.repository import solve_all
    from sequoia_opt.repository.outputs import set_apart, settled
    from sequoia_opt.repository.provenance import Provenance

    def settle(path: Path, tree: TokenTree) -> Path:
        maker = Provenance.of(tree.document())
        if not check:
            return settled(path, maker, force, console.note)
        apart = set_apart(path, maker)
        return apart if apart.exists() else path

    with console.progress("solving") as advance:
        trees = list(solve_all.solve_all(Path(), options, advance, settle))
    done = [str(path) for path, _ in trees]
    different = []
    if check:
        lines = [solve_all.difference(path, tree) for path, tree in trees]
        different = [line for line in lines if line]
        different += solve_all.left_over(Path(), [path for path, _ in trees])
    for path, tree in trees:
        if not check:
            tree.save(path)
    if as_json:
        print_json({"trees": done} | ({"different": different} if check else {}))
    elif check:
        for line in different:
            console.plain(line)
    if not check:
        console.note(f"wrote {len(done)} trees")
    elif different:
        console.note("these are not what their inputs give; `sequoia-opt solve --all` solves anew")
    else:
        console.note(f"all {len(done)} trees are what their inputs give")
    if different:
        raise typer.Exit(1)


def _contexts(text: str) -> dict[float, float]:
    """Numbers of cached tokens and their weights."""
    weights: dict[float, float] = {}
    for part in text.split(","):
        length, _, weight = part.partition(":")
        try:
            weights[float(length)] = float(weight or 1)
        except ValueError:
            weights[-1.0] = 0.0
    if not all(length >= 0 < weight < inf for length, weight in weights.items()):
        raise typer.BadParameter(
            f"found {text!r}, expected 512, 128,512,2048 or 128:3,2048:1", param_hint="--context"
        )
    return weights
