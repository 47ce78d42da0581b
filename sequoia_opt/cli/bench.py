"""The command `bench`: decoding methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.bench_options import (
    DatasetOptions,
    Format,
    Limit,
    NewTokens,
    OutputOptions,
    PairOptions,
    Repeats,
    ResumeOptions,
    SamplingOptions,
    SolvedTree,
    SyntheticAcceptance,
    check_random_weights,
    decode_and_save,
    print_results,
    solved_tree,
    synthetic_of,
)
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import RandomWeights, Seed, names
from sequoia_opt.cli.tree_defaults import Tree, comparable
from sequoia_opt.measure.method_names import METHODS, PLANNED, SYNTHETIC

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.bench import BenchResults, BenchSpec
    from sequoia_opt.plan.tree import TokenTree


@app.command(epilog="Example: sequoia-opt bench tree.json --dataset prompts.jsonl --limit 16")
@with_option_groups
def bench(
    tree: Tree = None,
    *,
    data: DatasetOptions,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods to compare, e.g. plain,tree; the first is the baseline. Choose from "
            f"{', '.join(METHODS)}.",
            show_default="all that differ",
        ),
    ] = None,
    chain: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Nodes of the chain that the tree competes with.",
            show_default="the best by prediction",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Latency profile to solve the rivals from.", show_default="the tree's"),
    ] = None,
    acceptance: Annotated[
        Path | None,
        typer.Option(help="Acceptance file to solve the rivals from.", show_default="the tree's"),
    ] = None,
    limit: Limit = 8,
    max_new_tokens: NewTokens = 128,
    repeats: Repeats = 3,
    sampling: SamplingOptions,
    seed: Seed = 0,
    synthetic: SyntheticAcceptance = None,
    random_weights: RandomWeights = False,
    engine: PairOptions,
    resuming: ResumeOptions,
    outputs: OutputOptions,
) -> None:
    """Compare decoding methods side by side, on the same prompts.

    The methods are plain decoding, those of the library that people would use
    instead (transformers, or llama.cpp's server), the solved tree, and its
    rivals: the best chain, the best k sequences, and large trees that ignore
    latency.
    """
    resuming.check(outputs.output)
    outputs.check(data.dataset, [tree, profile, acceptance, synthetic])
    check_random_weights(random_weights, synthetic)
    asked = None if methods is None else names(methods)
    _check_methods(asked, methods, chain, bool(profile or acceptance), synthetic is not None)
    solved = solved_tree(tree, engine, sampling)
    chosen = _methods(asked, solved, synthetic is not None)
    rivals = _rivals(
        solved.tree, Path(solved.file).parent, chosen, chain, profile, acceptance or synthetic
    )
    from sequoia_opt.cli.output import note
    from sequoia_opt.measure.bench import BenchSpec, prepare

    spec = BenchSpec(
        tree=solved.tree,
        tree_file=solved.file,
        sampling=solved.sampling,
        limit=limit,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        template=data.template,
        memory_budget=engine.budget(solved.tree),
        methods=chosen,
        rivals=rivals,
        named=asked is not None,
        synthetic=synthetic_of(synthetic),
        seed=seed,
    )
    name, documents = data.load()
    pair = engine.load(solved.tree, random_weights)
    results = decode_and_save(prepare(spec, pair, name, documents, note), outputs, resuming)
    print_results(results, outputs.printed, solved.sampling.temperature == 0 and not synthetic)
    if outputs.printed in (Format.table, Format.md):
        _print_prediction(spec, pair, results)


def _check_methods(
    asked: Sequence[str] | None,
    text: str | None,
    chain: int | None,
    for_rivals: bool,
    synthetic: bool,
) -> None:
    """Refuse methods that do not exist or do not go with the other options.

    Args:
        asked: the names in `text`; None for the default.
        text: the option's value.
        for_rivals: whether --profile or --acceptance was used.
        synthetic: whether acceptance is simulated.
    """
    if asked is None:
        return
    problem = ""
    if not asked or not set(asked) <= set(METHODS):
        problem = f"found {text!r}, expected some of {', '.join(METHODS)}"
    elif chain is not None and "chain" not in asked:
        problem = "has no chain, which --chain is for"
    elif for_rivals and not set(asked) & set(PLANNED):
        problem = f"has none of {', '.join(PLANNED)}, which --profile and --acceptance are for"
    elif synthetic and not set(asked) <= set(SYNTHETIC):
        problem = (
            f"found {text!r}, with simulated acceptance expected some of {', '.join(SYNTHETIC)}"
        )
    if problem:
        raise typer.BadParameter(problem, param_hint="--methods")


def _methods(asked: Sequence[str] | None, solved: SolvedTree, synthetic: bool) -> list[str]:
    """The methods to compare: those asked for, or all that differ.

    Args:
        synthetic: whether acceptance is simulated.
    """
    from sequoia_opt.cli.output import note
    from sequoia_opt.measure.bench import default_methods, distinct_methods

    if asked is None:
        chosen = default_methods(solved.tree, solved.sampling, synthetic)
    else:
        chosen = distinct_methods(asked, solved.tree)
    if not solved.tree.speculates and "plain" in chosen:
        note("note: the tree has one node, which is plain decoding; it is left out")
    return chosen


def _rivals(
    tree: TokenTree,
    folder: Path,
    methods: Sequence[str],
    chain: int | None,
    profile: Path | None,
    acceptance: Path | None,
) -> dict[str, TokenTree]:
    """The trees of the methods that have one of their own.

    Args:
        folder: the tree's own.
        chain: nodes of the chain; None for the best by prediction.
        profile, acceptance: what to solve them from; None for the tree's own.
    """
    from sequoia_opt.measure.bench import rival_trees
    from sequoia_opt.plan import shapes
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.repository import paths

    rivals = {} if chain is None else {"chain": shapes.chain(chain)}
    solved_here = [name for name in methods if name in PLANNED and name not in rivals]
    if not solved_here:
        return rivals
    rates = Acceptance.load(acceptance or paths.input_of(tree, "acceptance", folder))
    latencies = LatencyProfile.load(profile or paths.input_of(tree, "profile", folder))
    return rivals | rival_trees(solved_here, latencies, rates)


def _print_prediction(spec: BenchSpec, pair: Pair, results: BenchResults) -> None:
    """Print the solved tree's predictions if they apply to the settings of the run."""
    from sequoia_opt.cli.bench_tables import prediction_lines
    from sequoia_opt.measure.bench import predictions_hold

    fitting = comparable(spec.tree, pair, spec.sampling)
    if "tree" in results.labels and fitting.tokens and predictions_hold(spec.tree, spec.synthetic):
        times = fitting.times and spec.methods[0] == "plain"
        prediction_lines(results.result_of("tree"), spec.tree, times)
