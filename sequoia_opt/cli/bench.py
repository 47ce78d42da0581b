"""The command that sets ways to decode side by side: bench."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import (
    Chat,
    DatasetOption,
    Device,
    Draft,
    Dtype,
    Force,
    Graphs,
    Json,
    MaxSeconds,
    RandomWeights,
    Resume,
    System,
    Target,
    TemplateOption,
    check_output,
    integers,
    journal,
    load,
    names,
    print_json,
    tell_unused_settings,
    template_of,
)
from sequoia_opt.cli.tree_defaults import (
    Tree,
    TreeCompile,
    TreeMemoryBudget,
    TreeMinP,
    TreeOffload,
    TreeTemperature,
    TreeTopK,
    TreeTopP,
    TreeVerifier,
    bundled_tree,
    check_world,
    comparable,
    compiled_roles,
    models_of,
    offload_of,
    sampling_of,
)
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.journal import Journal
    from sequoia_opt.measure.methods import Method
    from sequoia_opt.measure.records import Document
    from sequoia_opt.measure.template import Template
    from sequoia_opt.plan.sampling import Sampling
    from sequoia_opt.plan.tree import TokenTree

LARGEST = 1024  # nodes
ASSISTED = ("assisted", "assisted-best")
BLIND = {"blind-64": 64, "blind-128": 128}
# Verifiers of the solved tree other than its own; at temperature 0 they are all the same.
SAMPLED = ("sequoia", "specinfer", "topk", "traversal")
PLANNED = ("chain", "k-sequences", *BLIND)  # trees that are solved for here
CALIBRATED = (0.0, 0.6)  # temperatures
METHODS = (
    "plain", "generate", "assisted", "assisted-best", "lookup", *PLANNED, "tree", *SAMPLED
)  # fmt: skip
SYNTHETIC = ("plain", "generate", *PLANNED, "tree")  # methods that make sense at given rates
RANDOM_PROMPT = 128  # tokens, where there is no tokenizer
PROMPTS, UNSEEN = 8, 64  # by default
FEW_PROMPTS = 5  # an interval over fewer says little
TUNED = 2  # prompts that assisted generation's best number of guesses is found on


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


@app.command(epilog="Example: sequoia-opt bench tree.json --dataset prompts.jsonl --limit 16")
def bench(
    tree: Tree = None,
    dataset: DatasetOption = None,
    chat: Chat = False,
    system: System = None,
    template_option: TemplateOption = None,
    target: Target = None,
    draft: Draft = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 128,
    temperature: TreeTemperature = None,
    top_p: TreeTopP = None,
    top_k: TreeTopK = None,
    min_p: TreeMinP = None,
    verifier: TreeVerifier = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prompts to use.", show_default=f"{PROMPTS}, to calibrate {UNSEEN}"
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Repetitions of each prompt.", show_default="3, to calibrate 1"),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"What to run, of {', '.join(METHODS)}; the others are set beside the first.",
            show_default="all that differ",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Trees of most tokens of these sizes beside the best chains, k sequences and "
            "k-ary trees of as many nodes, all with the tree's verifier, instead of methods: "
            "8,32,128.",
            show_default=False,
        ),
    ] = None,
    chain: Annotated[
        int | None,
        typer.Option(min=2, help="Nodes of the chain.", show_default="the best by prediction"),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile to plan rivals by.", show_default="the tree's")
    ] = None,
    acceptance: Annotated[
        Path | None, typer.Option(help="Acceptance file, likewise.", show_default="the tree's")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Set predictions beside measurements, for trees of many sizes: half of the "
            "dataset's documents are estimated from, the others decoded.",
        ),
    ] = False,
    synthetic: Annotated[
        Path | None,
        typer.Option(
            "--synthetic-acceptance",
            help="Acceptance file to draw from what is accepted, whatever the models say: for "
            "speed alone.",
        ),
    ] = None,
    random_weights: RandomWeights = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="JSON file to keep the results in, for `plot`."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="How to print the results.")
    ] = Format.table,
    compile: TreeCompile = None,
    graphs: Graphs = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: TreeOffload = None,
    memory_budget: TreeMemoryBudget = None,
    resume: Resume = False,
    max_seconds: MaxSeconds = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Plain decoding, transformers' ways, other trees and the solved one, side by side."""
    from sequoia_opt.cli import console
    from sequoia_opt.files.names import content_fingerprint
    from sequoia_opt.plan import shapes
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
    from sequoia_opt.report import bench_results
    from sequoia_opt.repository import paths
    from sequoia_opt.repository.provenance import sources_of

    if calibrate and (methods or chain or acceptance or sizes):
        raise typer.BadParameter(
            "takes neither --methods nor --sizes nor --chain nor --acceptance",
            param_hint="--calibrate",
        )
    if sizes is not None and (methods or chain or profile):
        raise typer.BadParameter(
            "takes neither --methods nor --chain nor --profile", param_hint="--sizes"
        )
    budgets = sorted(set(integers("--sizes", sizes))) if sizes is not None else []
    if any(not 2 <= size <= LARGEST for size in budgets):
        raise typer.BadParameter(
            f"found {sizes!r}, expected from 2 to {LARGEST} nodes", param_hint="--sizes"
        )
    if output and output.suffix != ".json":
        raise typer.BadParameter(f"found {output}, expected a .json file", param_hint="--output")
    if resume and (calibrate or not output):
        raise typer.BadParameter(
            "goes with -o, which says where a run was kept, and not with --calibrate",
            param_hint="--resume",
        )
    if calibrate and max_seconds:
        raise typer.BadParameter("goes without --calibrate", param_hint="--max-seconds")
    inputs = [
        tree,
        profile,
        acceptance,
        synthetic,
        *map(Path, sources_of(dataset=dataset).values()),
    ]
    check_output(output, bench_results.FORMAT, inputs, force)
    limit = limit or (UNSEEN if calibrate else PROMPTS)
    repeats = repeats or (1 if calibrate else 3)
    if random_weights and not synthetic:
        raise typer.BadParameter(
            "models of random weights agree on nothing; add --synthetic-acceptance",
            param_hint="--random-weights",
        )
    if synthetic and calibrate:
        raise typer.BadParameter("takes no --synthetic-acceptance", param_hint="--calibrate")
    planned = not calibrate and not sizes and bool(profile or acceptance)
    wanted = _wanted(methods, bool(chain), planned)
    if synthetic and methods and not set(wanted) <= set(SYNTHETIC):
        raise typer.BadParameter(
            f"found {methods!r}, at given rates expected some of {', '.join(SYNTHETIC)}",
            param_hint="--methods",
        )
    path = tree or bundled_tree(temperature, compile, device)
    loaded = TokenTree.load(path)
    check_world(loaded)
    sampling = sampling_of(loaded, temperature, top_p, verifier, top_k, min_p)
    if methods is None:
        again = SAMPLED if sampling.temperature == 0 else (sampling.verifier,)
        wanted = [name for name in wanted if name not in again]
    if loaded.size == 1 and "plain" in wanted and not sizes and not calibrate:
        same = ("tree", *SAMPLED)
        wanted = [name for name in wanted if name not in same]
        console.note("note: the tree has one node: it is plain decoding, and left out")
    if synthetic:
        wanted = [name for name in wanted if name in SYNTHETIC]
        acceptance = acceptance or synthetic
    trees = {"plain": AUTOREGRESSIVE, "tree": loaded}
    if chain:
        trees["chain"] = shapes.chain(chain)
    if sizes:
        by_size = _by_size(loaded, budgets, acceptance)
        trees |= by_size
        wanted = ["plain", *by_size]
    elif not calibrate:
        rivals = [name for name in wanted if name in PLANNED and name not in trees]
        trees |= _rivals(loaded, rivals, profile, acceptance) if rivals else {}

    from sequoia_opt.api import load_dataset
    from sequoia_opt.measure import bench as benchmark
    from sequoia_opt.measure.encoding import check_template
    from sequoia_opt.measure.hardware import hardware, software
    from sequoia_opt.measure.journal import Journal

    template = template_of(chat, system, template_option)
    name, documents = load_dataset(dataset, console.note)
    name += template.label
    models = models_of(loaded, target, draft)
    place, budget = offload_of(loaded, offload, memory_budget)
    roles = compiled_roles(loaded, compile)
    pair = load(*models, device, dtype, roles, graphs, random_weights, place, budget)
    if pair.tokenizer is None and random_weights:
        prompts, name = _random_prompts(pair, limit), "random tokens"
    else:
        check_template(pair, documents, template, console.note)
        unseen = documents[1::2] if calibrate else documents
        prompts = _usable(pair, unseen, limit, max_new_tokens, template)
    tell_unused_settings(pair)
    _warn(len(prompts))
    longest = max(map(len, prompts)) + max_new_tokens
    if set(ASSISTED) & set(wanted) and longest > pair.draft.positions:
        console.note(
            f"assisted generation is left out: the draft has {pair.draft.positions} positions, "
            f"prompts and new tokens take {longest}"
        )
        wanted = [each for each in wanted if each not in ASSISTED]
    sizes_of = pair.target.vocabulary, pair.draft.vocabulary
    if set(ASSISTED) & set(wanted) and sizes_of[0] != sizes_of[1]:
        console.note(
            f"assisted generation is left out: transformers takes the target's {sizes_of[0]} and "
            f"the draft's {sizes_of[1]} logits for different tokenizers"
        )
        wanted = [each for each in wanted if each not in ASSISTED]
    options = asdict(sampling)
    if synthetic:
        deepest = 1 + max(tree.depth for tree in trees.values())
        options["rates"] = Acceptance.load(synthetic).table(deepest)
    settings: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(pair.device),
        "software": software(pair.device),
        "target": pair.target_name,
        "draft": pair.draft_name,
        "dtype": pair.dtype,
        "compile": pair.compiled,
        "graphs": pair.graphs,
        **({"offload": place, "memory_budget": budget} if place != "none" else {}),
        **({"world_size": pair.world.size} if pair.world.size > 1 else {}),
        "dataset": name,
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
        "tree": str(path),
        "fingerprints": {**pair.fingerprints, "tree": content_fingerprint(path)},
        **({"synthetic_acceptance": str(synthetic)} if synthetic else {}),
        **({"random_weights": True} if random_weights else {}),
        **({"template": template.document()} if template.document() else {}),
        **asdict(sampling),
    }
    if calibrate:
        profile = profile or paths.input_of(loaded, "profile")
        warmths = CALIBRATED if temperature is None else (temperature,)
        samplings = [replace(sampling, temperature=warmth) for warmth in warmths]
        printed = Format.json if as_json else form
        _calibrate(
            pair, profile, documents[::2], prompts, samplings, settings, printed, output, template
        )
        return
    kept = Journal(max_seconds=max_seconds)
    if output:
        about = {key: value for key, value in settings.items() if key != "date"}
        about |= {"methods": wanted, "tokens": prompts}
        about["trees"] = {each: [t.parents, t.ranks] for each, t in trees.items()}
        about["rates"] = content_fingerprint(synthetic) if synthetic else None
        kept = journal(output, about, resume, max_seconds, force)
    with closing(kept):
        named = {
            each: _method(each, pair, trees, options, prompts, max_new_tokens, kept)
            for each in wanted
        }
        racing = {method.name: method for method in named.values()}  # two may be the same tree
        with console.progress("decoding") as advance:
            raced = benchmark.race(
                list(racing.values()),
                prompts,
                max_new_tokens,
                repeats,
                advance,
                note=console.note,
                journal=kept,
                world=pair.world,
            )
        results = raced.beside()
        if results[0].prompts < settings["prompts"]:
            _warn(results[0].prompts)
        settings["prompts"] = results[0].prompts
        shapes_of = {named[each].name: trees[each] for each in wanted if each in trees}
        settings["trees"] = {
            label: {"parents": list(each.parents), "ranks": list(each.ranks)}
            for label, each in shapes_of.items()
        }
        document = {"results": [asdict(result) for result in results], **settings}
        if sizes:
            document["sizes"] = budgets
        if output:
            _keep(output, document)
            kept.finish()
    if as_json or form is Format.json:
        print_json(document)
    elif form is Format.csv:
        console.race_csv(results, settings)
    if as_json or form in (Format.json, Format.csv):
        return
    show = console.race_markdown if form is Format.md else console.race_table
    compared = sampling.temperature == 0 and not synthetic
    show(results, console.settings_line(settings), greedy=compared)
    fitting = comparable(loaded, pair, sampling)
    if "tree" in wanted and fitting.tokens and _predicts(loaded, synthetic):
        times = fitting.times and wanted[0] == "plain"
        own = next(result for result in results if result.name == named["tree"].name)
        console.prediction_lines(own, loaded, times)


def _wanted(methods: str | None, chain: bool, planned: bool) -> list[str]:
    """The methods that are named, or all.

    Args:
        chain: whether a chain was given.
        planned: whether something to plan trees by was.
    """
    wanted = list(METHODS) if methods is None else names(methods)
    problem = ""
    if not wanted or not set(wanted) <= set(METHODS):
        problem = f"found {methods!r}, expected some of {', '.join(METHODS)}"
    elif chain and "chain" not in wanted:
        problem = "has no chain, which --chain is for"
    elif planned and not set(wanted) & set(PLANNED):
        problem = f"has none of {', '.join(PLANNED)}, which --profile and --acceptance are for"
    if problem:
        raise typer.BadParameter(problem, param_hint="--methods")
    return wanted


def _calibrate(
    pair: Pair,
    profile: Path,
    seen: Sequence[Document],
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    settings: dict[str, Any],
    form: Format,
    output: Path | None,
    template: Template,
) -> None:
    """Estimate from the documents that may be seen, decode the prompts, and print both."""
    from sequoia_opt.cli import console
    from sequoia_opt.measure import calibration
    from sequoia_opt.measure.estimator import EstimateOptions, check_sampled, estimate
    from sequoia_opt.plan.latency import LatencyProfile, overhead_name

    latencies = LatencyProfile.load(profile)
    for sampling in samplings:  # before anything that takes long
        check_sampled(sampling)
        latencies.overhead_for(overhead_name(sampling))
    options = EstimateOptions(max_new_tokens=settings["max_new_tokens"], template=template)
    found = []
    for sampling in samplings:
        with console.progress("estimating") as advance:
            (rates,) = estimate(
                pair, seen, settings["dataset"], [sampling], options, advance, console.note
            )
        with console.progress("decoding") as advance:
            checked = calibration.calibrate(
                pair,
                latencies,
                rates,
                prompts,
                settings["max_new_tokens"],
                settings["repeats"],
                advance,
            )
        found.append((sampling, checked))
    rows = [
        {**asdict(sampling), "trees": [each.document() for each in checked]}
        for sampling, checked in found
    ]
    document = {"calibration": rows, **settings}
    if output:
        _keep(output, document)
    if form is Format.json:
        print_json(document)
        return
    if form is Format.csv:
        console.calibration_csv(found, settings)
        return
    for sampling, checked in found:
        line = console.settings_line(settings | asdict(sampling))
        console.calibration(checked, line, form.value)


def _keep(path: Path, document: dict[str, Any]) -> None:
    """Write results to a file."""
    from sequoia_opt.cli import console
    from sequoia_opt.files.documents import plain, write_document
    from sequoia_opt.report.bench_results import FORMAT, VERSION

    write_document(path, {"format": FORMAT, "version": VERSION, **plain(document)})
    console.written(path)


def _by_size(
    tree: TokenTree, budgets: Sequence[int], acceptance: Path | None
) -> dict[str, TokenTree]:
    """At each size the tree of most tokens and those of other shapes, whatever a step takes."""
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.scaling import of_size
    from sequoia_opt.repository import paths

    rates = Acceptance.load(acceptance or paths.input_of(tree, "acceptance"))
    return {
        f"{name.replace('k-seq', 'k seq')} ({shape.size} nodes)": shape
        for size in budgets
        for name, shape in of_size(rates, size).items()
    }


def _rivals(
    tree: TokenTree, wanted: Sequence[str], profile: Path | None, acceptance: Path | None
) -> dict[str, TokenTree]:
    """The trees that the solved one is set beside, each at its best by prediction; the blind
    ones have the most tokens for their size, whatever a step takes."""
    from sequoia_opt.plan import shapes, solve_options, solver
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.best_trees import best_trees
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.repository import paths

    rates = Acceptance.load(acceptance or paths.input_of(tree, "acceptance"))
    latencies = LatencyProfile.load(profile or paths.input_of(tree, "profile"))
    plan = solver.solve(latencies, rates)
    # Where the profile prices no other, the smallest.
    found = {"chain": shapes.chain(2), "k-sequences": shapes.k_sequences(2, 1)}
    found |= {candidate.name: candidate.tree for candidate in plan.baselines}
    depth = solve_options.DEFAULT_MAX_DEPTH
    for name in wanted:
        if name in BLIND:
            found[name] = best_trees(rates.table(depth), BLIND[name]).tree(BLIND[name], depth)
    return {name: found[name] for name in wanted}


def _method(
    name: str,
    pair: Pair,
    trees: dict[str, TokenTree],
    options: dict[str, Any],
    prompts: Sequence[list[int]],
    new_tokens: int,
    journal: Journal,
) -> Method:
    """The method of that name.

    Args:
        options: of the decoder.
        journal: keeps what was found out for it.
    """
    from sequoia_opt.cli import console
    from sequoia_opt.measure import methods

    warm = {key: options[key] for key in ("temperature", "top_p", "top_k", "min_p")}
    if name == "generate":
        return methods.with_generate(pair, **warm)
    if name == "lookup":
        return methods.with_prompt_lookup(pair, **warm)
    if name == "assisted":
        return methods.with_assistant(pair, **warm)
    if name == "assisted-best":
        guesses = journal.recall("guesses")
        if guesses is None:
            with console.waiting("finding assisted generation's best number of guesses"):
                guesses = methods.best_guesses(pair, prompts[:TUNED], new_tokens, **warm)
            journal.record("guesses", guesses)
        return methods.with_assistant(pair, f"assisted, {guesses} guesses", **warm, guesses=guesses)
    own = dict(options)
    if name in (*SAMPLED, "k-sequences"):
        own["verifier"] = "specinfer" if name == "k-sequences" else name
    shape = trees.get(name, trees["tree"])
    labels = {
        "chain": "best chain",
        "k-sequences": "best k sequences",
        "tree": "solved tree",
        **dict.fromkeys(BLIND, "most tokens"),
        **{each: f"solved tree, {each}" for each in SAMPLED},
    }
    label = f"{labels[name]} ({shape.size} nodes)" if name in labels else name
    marked = ", synthetic" if "rates" in options and name != "plain" else ""
    return methods.with_tree(pair, label + marked, shape, **own)


def _predicts(tree: TokenTree, synthetic: Path | None) -> bool:
    """Whether the tree's predictions are for what is accepted here: drawn at given rates, nothing
    depends on what came before, as replay does."""
    from sequoia_opt.files.names import content_fingerprint

    if synthetic is None:
        return True
    source = tree.metadata.get("provenance", {}).get("acceptance", {})
    same = source.get("fingerprint") == content_fingerprint(synthetic)
    return same and "replayed_tokens" not in tree.metadata


def _random_prompts(pair: Pair, count: int) -> list[list[int]]:
    """Token ids, the same every time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (count, min(RANDOM_PROMPT, pair.target.positions // 2))
    prompts: list[list[int]] = torch.randint(
        pair.target.vocabulary, shape, generator=generator
    ).tolist()
    return prompts


def _usable(
    pair: Pair, documents: Sequence[Document], limit: int, new_tokens: int, template: Template
) -> list[list[int]]:
    """Prompts that the models can go on from, spread over the documents; in the place of those
    that they cannot there are others, and it says so.

    Raises:
        SequoiaError: there are none.
    """
    from sequoia_opt.cli import console
    from sequoia_opt.engine.stream import check_prompt
    from sequoia_opt.measure.dataset import spread_over, tell_left_out
    from sequoia_opt.measure.encoding import opening

    first = spread_over(documents, limit)
    taken = set(map(id, first))
    usable: list[list[int]] = []
    problems: list[str] = []
    reason = "half of the dataset's documents are estimated from, and there is no other"
    for document in [*first, *(each for each in documents if id(each) not in taken)]:
        if len(usable) == limit:
            break
        try:
            prompt = opening(pair, document, template)
            check_prompt(pair, prompt, new_tokens)
        except SequoiaError as error:
            reason = str(error)
            problems.append(f"{document.where}: {error}")
        else:
            usable.append(prompt)
    if not usable:
        raise SequoiaError(f"no prompt is usable: {reason}")
    if len(problems) > 1:
        tell_left_out(problems, console.note)
    if problems:
        total = len(problems) + len(usable)
        console.note(f"{len(problems)} of {total} prompts left out: {reason}")
    return usable


def _warn(prompts: int) -> None:
    """Say what makes the results less than they seem."""
    from sequoia_opt.cli import console

    if prompts < FEW_PROMPTS:
        few = (
            "prompts are few: their intervals say little"
            if prompts > 1
            else ("prompt is not enough for an interval")
        )
        console.note(f"{prompts} {few}; raise --limit")
