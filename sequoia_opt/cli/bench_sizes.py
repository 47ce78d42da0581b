"""The command `bench-sizes`: trees against chains and other shapes, size by size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.bench_options import (
    DatasetOptions,
    Limit,
    NewTokens,
    OutputOptions,
    PairOptions,
    Repeats,
    ResumeOptions,
    SamplingOptions,
    SyntheticAcceptance,
    check_random_weights,
    decode_and_save,
    print_results,
    solved_tree,
    synthetic_of,
)
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import RandomWeights, integers
from sequoia_opt.cli.tree_defaults import Tree

LARGEST = 1024  # nodes


@app.command(
    name="bench-sizes",
    epilog="Example: sequoia-opt bench-sizes tree.json --sizes 8,32,128 -o sizes.json",
)
@with_option_groups
def bench_sizes(
    tree: Tree = None,
    *,
    data: DatasetOptions,
    sizes: Annotated[
        str, typer.Option(help="Numbers of nodes, at most, of the trees to compare.")
    ] = "8,32,128",
    acceptance: Annotated[
        Path | None,
        typer.Option(help="Acceptance file to make the trees for.", show_default="the tree's"),
    ] = None,
    limit: Limit = 8,
    max_new_tokens: NewTokens = 128,
    repeats: Repeats = 3,
    sampling: SamplingOptions,
    synthetic: SyntheticAcceptance = None,
    random_weights: RandomWeights = False,
    engine: PairOptions,
    resuming: ResumeOptions,
    outputs: OutputOptions,
) -> None:
    """Compare trees with chains and other shapes of the same size.

    Each tree has the most tokens per step for its size, whatever a step costs.
    It is compared with the best chain, the best k sequences and the best k-ary
    tree. All of them use the verifier of TREE.
    """
    counts = sorted(set(integers("--sizes", sizes)))
    if any(not 2 <= count <= LARGEST for count in counts):
        raise typer.BadParameter(
            f"found {sizes!r}, expected from 2 to {LARGEST} nodes", param_hint="--sizes"
        )
    resuming.check(outputs.output)
    outputs.check(data.dataset, [tree, acceptance, synthetic])
    check_random_weights(random_weights, synthetic)
    solved = solved_tree(tree, engine, sampling)
    from sequoia_opt.cli.output import note
    from sequoia_opt.measure.bench import prepare
    from sequoia_opt.measure.bench_sizes import SizesSpec
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.repository import paths

    folder = Path(solved.file).parent
    rates = acceptance or synthetic or paths.input_of(solved.tree, "acceptance", folder)
    spec = SizesSpec(
        tree=solved.tree,
        tree_file=solved.file,
        sampling=solved.sampling,
        limit=limit,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        template=data.template,
        memory_budget=engine.budget(solved.tree),
        sizes=counts,
        acceptance=Acceptance.load(rates),
        synthetic=synthetic_of(synthetic),
    ).bench_spec()
    name, documents = data.load()
    pair = engine.load(solved.tree, random_weights)
    results = decode_and_save(prepare(spec, pair, name, documents, note), outputs, resuming)
    print_results(results, outputs.printed, solved.sampling.temperature == 0 and not synthetic)
