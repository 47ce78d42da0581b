"""The commands: options in, the library's functions, files and summaries out."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from sequoia_opt import __version__
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.engine.models import Pair
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.solver import Candidate
    from sequoia_opt.plan.tree import TokenTree

BUDGETS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # nodes, of `solve --compare`
USAGE = 2  # exit status of a usage error
INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="sequoia-opt",
    help="Find the token tree that decodes fastest on this machine, and decode with it. "
    "The steps: profile, estimate, solve, decode. Without options each runs on a small pair of "
    "models that comes along.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Target = Annotated[
    str | None, typer.Option(help="Target model: a hub id or a folder.", show_default="bundled")
]
Draft = Annotated[
    str | None, typer.Option(help="Draft model: a hub id or a folder.", show_default="bundled")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, …", show_default="cuda, if there is one")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 or float64.",
        show_default="bfloat16 on cuda, else float32",
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write.", show_default="by name")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Temperature = Annotated[float, typer.Option(help="0 for greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus of the target, in (0, 1].")]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help=".jsonl with `prompt` or `text`, .txt, .parquet, or a hub dataset id.",
        show_default="bundled",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: sequoia-opt profile --contexts 128,1024 --tokens 1,2,4,8,16,32")
def profile(
    target: Target = None,
    draft: Draft = None,
    device: Device = None,
    dtype: Dtype = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Query tokens of a forward, 1,2,4,…", show_default="1 to 64; 512 on cuda"
        ),
    ] = None,
    contexts: Annotated[str, typer.Option(help="Cached tokens.")] = "128,512,1024",
    batches: Annotated[
        str, typer.Option(help="Sequences of a forward, 1,4,16: what serving needs to know.")
    ] = "1",
    repeats: Annotated[int, typer.Option(min=5, help="Rounds that are timed.")] = 25,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure how long a forward of each model takes here, by number of tokens."""
    counts = _integers("--tokens", tokens) if tokens else []
    lengths = _integers("--contexts", contexts)
    sequences = _integers("--batches", batches)
    _check_output(output)
    from sequoia_opt import console, paths
    from sequoia_opt.measure import profiler
    from sequoia_opt.measure.hardware import hardware

    pair = _load(target, draft, device, dtype)
    slug = hardware(pair.device)["slug"]
    path = output or paths.profile_path(slug, pair.target_name, pair.draft_name, pair.dtype)
    _check_output(path)
    options = profiler.Options(tokens=counts, contexts=lengths, batches=sequences, repeats=repeats)
    with console.progress("profiling") as advance:
        measured = profiler.profile(pair, options, advance)
    measured.save(path)
    if as_json:
        _print_json(measured.document())
    else:
        console.profile_summary(measured)
    console.written(path)


@app.command(epilog="Example: sequoia-opt estimate --dataset prompts.jsonl --temperature 0.6")
def estimate(
    target: Target = None,
    draft: Draft = None,
    dataset: DatasetOption = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    verifier: Annotated[str, typer.Option(help="For temperatures above 0.")] = "sequoia",
    width: Annotated[int, typer.Option(min=1, help="Ranks to sample.")] = 32,
    teacher_forced: Annotated[
        bool,
        typer.Option(
            "--teacher-forced", help="On the dataset's text, not the target's continuations."
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents to use.", show_default="all")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each document.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Documents run together.")] = 16,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Sample how often the target accepts the draft's 1st, 2nd, 3rd … guess."""
    _check_output(output)
    from sequoia_opt import console, paths
    from sequoia_opt.engine.decoder import check_sampling
    from sequoia_opt.measure import estimator
    from sequoia_opt.measure.dataset import load_dataset

    check_sampling(temperature, top_p, verifier)
    name, documents = load_dataset(dataset)
    pair = _load(target, draft, device, dtype)
    used = "greedy" if temperature == 0 else verifier
    sampled = f"{name}-teacher-forced" if teacher_forced else name
    path = output or paths.acceptance_path(
        pair.target_name, pair.draft_name, sampled, used, temperature, top_p
    )
    _check_output(path)
    options = estimator.Options(
        temperature=temperature,
        top_p=top_p,
        verifier=verifier,
        width=width,
        max_new_tokens=max_new_tokens,
        limit=limit,
        batch=batch,
        teacher_forced=teacher_forced,
        seed=seed,
    )
    with console.progress("sampling") as advance:
        acceptance = estimator.estimate(pair, documents, sampled, options, advance)
    acceptance.save(path)
    if as_json:
        _print_json(acceptance.document())
    else:
        console.acceptance_summary(acceptance)
    console.written(path)


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
        typer.Option("--check", help="With --all: write nothing, list the trees that differ."),
    ] = False,
    output: Output = None,
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
        if profile or acceptance or output or compare or scaling:
            raise typer.BadParameter(
                "takes every profile and acceptance and writes each tree where it belongs; "
                "drop --profile, --acceptance, -o, --compare and --scaling",
                param_hint="--all",
            )
        _solve_all(options, check, as_json)
        return
    _check_output(output)
    from sequoia_opt import console, fleet, paths
    from sequoia_opt.plan import scaling as growth
    from sequoia_opt.plan import solver
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile

    profile = profile or paths.bundled_profile()
    latencies = LatencyProfile.load(profile)
    acceptance = acceptance or paths.bundled_acceptance()
    rates = Acceptance.load(acceptance)
    for role in ("target", "draft"):
        names = getattr(latencies, role).model, getattr(rates, role)
        if names[0] != names[1] and names[1] != "unknown":
            console.note(f"note: the profile's {role} is {names[0]}, the acceptance's {names[1]}")
    plan = solver.solve(latencies, rates, **options)
    tree = fleet.planned_tree(plan, fleet.Source(profile, acceptance), options)
    path = output or paths.tree_path(str(latencies.hardware.get("slug", "unknown")), profile, rates)
    _check_output(path)
    tree.save(path)
    document: dict[str, Any] = tree.document()
    if not as_json:
        console.plan_summary(plan)
    if compare:
        largest = max_size or plan.expected.shape[1] - 1
        plans = {
            budget: solver.solve(latencies, rates, **(options | {"max_size": budget, "size": None}))
            for budget in BUDGETS
            if budget <= largest
        }
        document["compare"] = {
            budget: {c.name: _prediction(c) for c in (*found.baselines, found.fastest)}
            for budget, found in plans.items()
        }
        if not as_json:
            console.comparison(plans)
    if scaling:
        grown = growth.scaling(rates)
        document["scaling"] = grown.document()
        if not as_json:
            console.scaling_summary(grown)
    if as_json:
        _print_json(document)
    console.written(path)


def _prediction(candidate: Candidate) -> dict[str, Any]:
    return {
        "size": candidate.tree.size,
        "depth": candidate.tree.depth,
        "tokens": float(candidate.tokens[0]),
        "speedup": float(candidate.speedup[0]),
    }


def _solve_all(options: dict[str, Any], check: bool, as_json: bool) -> None:
    """Solve every profile with every acceptance of its pair, or say which trees are not that."""
    from sequoia_opt import console, fleet

    with console.progress("solving") as advance:
        trees = list(fleet.solve_all(Path(), options, advance))
    done = [str(path) for path, _ in trees]
    lines = (fleet.difference(path, tree) for path, tree in trees if check)
    different = [line for line in lines if line]
    for path, tree in trees:
        if not check:
            tree.save(path)
    if as_json:
        _print_json({"trees": done} | ({"different": different} if check else {}))
    elif check:
        for line in different:
            print(line)
    console.note(
        f"{len(done) - len(different)} of {len(done)} trees are what their inputs give"
        if check
        else f"wrote {len(done)} trees"
    )
    if different:
        raise typer.Exit(1)


@app.command(epilog='Example: sequoia-opt decode tree.json --prompt "def main():" --compare')
def decode(
    tree: Annotated[
        Path | None, typer.Argument(help="Tree file.", show_default="of the bundled pair")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from.", show_default="bundled")
    ] = None,
    target: Target = None,
    draft: Draft = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="0 for greedy.", show_default="the tree's")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Nucleus of the target.", show_default="the tree's"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past end-of-text tokens.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Decode plainly too, and report the measured speed-up."),
    ] = False,
    repeats: Annotated[
        int, typer.Option(min=1, help="Repetitions of each prompt with --compare.")
    ] = 3,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Decode a prompt with a tree, losslessly, and say how fast it was."""
    from sequoia_opt import console, demo, paths
    from sequoia_opt.plan.tree import TokenTree

    if compare and max_new_tokens < 2:
        raise typer.BadParameter("--compare needs at least 2", param_hint="--max-new-tokens")
    path = tree or paths.bundled_tree(temperature or 0.0)
    loaded = TokenTree.load(path)
    temperature, top_p = _sampling(loaded, temperature, top_p)
    target, draft = _models_of(loaded, target, draft)
    from sequoia_opt.engine.decoder import Decoder, check_sampling

    check_sampling(temperature, top_p)
    pair = _load(target, draft, device, dtype)
    texts = [prompt] if prompt is not None else demo.prompts()
    prompts = [pair.encode(text) for text in texts]
    decoder = Decoder(pair, loaded, temperature, top_p, seed)
    stream = decoder.stream(prompts[0], max_new_tokens, ignore_eos, stop or [])
    shown = Typewriter(sys.stdout if not as_json else None)
    for _ in stream:
        shown.write(stream.text())
    generation = stream.generation
    shown.write(generation.text)

    document: dict[str, Any] = {
        "text": generation.text,
        "tokens": generation.tokens,
        "steps": generation.steps,
        "tokens_per_step": generation.tokens_per_step,
        "tokens_per_second": generation.tokens_per_second,
        "seconds": generation.seconds,
        "prefill_seconds": generation.prefill_seconds,
        "stopped": generation.stopped,
        "tree": str(path),
        "temperature": temperature,
        "top_p": top_p,
    }
    comparable = _comparable(loaded, pair, temperature, top_p)
    if not as_json:
        console.out.print()
        console.generation_summary(
            generation, loaded if comparable.tokens else None, comparable.times
        )
    if compare:
        document["compare"] = _compare(
            pair, loaded, prompts, max_new_tokens, temperature, top_p, seed, repeats,
            comparable, as_json,
        )  # fmt: skip
    if as_json:
        _print_json(document)


def _compare(
    pair: Pair,
    tree: TokenTree,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    repeats: int,
    comparable: Comparable,
    quiet: bool,
) -> dict[str, Any]:
    """Plain decoding beside the tree's, on all prompts."""
    from sequoia_opt import console
    from sequoia_opt.measure import bench
    from sequoia_opt.plan.tree import AUTOREGRESSIVE

    sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    methods = [
        bench.with_tree(pair, "plain", AUTOREGRESSIVE, **sampling),
        bench.with_tree(pair, "tree", tree, **sampling),
    ]
    with console.progress("comparing") as advance:
        results = bench.race(methods, prompts, max_new_tokens, repeats, advance)
    document: dict[str, Any] = {"results": [asdict(result) for result in results]}
    found = []
    if temperature == 0 and results[1].agreement < 1:
        for i, prompt in enumerate(prompts):
            plain, treed = (method.run(prompt, max_new_tokens).tokens for method in methods)
            parted = bench.divergence(pair, prompt, plain, treed)
            if parted is not None:
                found.append((i, parted))
    if temperature == 0:
        document["divergences"] = [{"prompt": i, **asdict(parted)} for i, parted in found]
    if not quiet:
        title = f"{len(prompts)} prompts, {max_new_tokens} tokens each, temperature {temperature:g}"
        console.race_table(results, title)
        if comparable.tokens:
            console.prediction_lines(results[1], tree, comparable.times)
        if temperature == 0:
            console.divergences(found, len(prompts))
    return document


@app.command(epilog="Example: sequoia-opt export tree.json --to sglang")
def export(
    tree: Annotated[Path, typer.Argument(help="Tree file.")],
    to: Annotated[
        str,
        typer.Option(
            help="vllm, llama.cpp, tensorrt-llm, sglang, transformers (chains); eagle, medusa, "
            "umbrella, sequoia, vllm-tree, tensorrt-llm-tree (trees); sglang-dynamic, "
            "tensorrt-llm-dynamic (the nearest that they can grow)."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write.", show_default="standard output"),
    ] = None,
) -> None:
    """Write a tree as another engine takes it."""
    _check_output(output)
    from sequoia_opt import console
    from sequoia_opt.plan import export as formats
    from sequoia_opt.plan.files import write_text
    from sequoia_opt.plan.tree import TokenTree

    loaded = TokenTree.load(tree)
    text, notes = formats.export(loaded, to)
    for line in notes:
        console.note(f"note: {line}")
    if output is None:
        print(text, end="")
        return
    if to == "sequoia" and output.suffix == ".pt":
        from sequoia_opt import torch_files

        torch_files.save_growmap(formats.growmap(loaded), output)
    else:
        write_text(output, text)
    console.written(output)


@app.command(
    "import", epilog="Example: sequoia-opt import latencies.csv --target big --draft small"
)
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A tree as any engine of `export` writes it, rates or latencies (role, batch, "
            "context, tokens, ms) as .csv, or the research code's .pt."
        ),
    ],
    target: Annotated[str, typer.Option(help="Name of the target model.")] = "unknown",
    draft: Annotated[str, typer.Option(help="Name of the draft model.")] = "unknown",
    dataset: Annotated[str, typer.Option(help="What rates were measured on.")] = "imported",
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    verifier: Annotated[str, typer.Option(help="For temperatures above 0.")] = "sequoia",
    hardware: Annotated[str, typer.Option(help="What latencies were measured on.")] = "imported",
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Take over a tree, acceptance rates or latencies that were made elsewhere."""
    _check_output(output)
    from sequoia_opt import console, paths
    from sequoia_opt.plan import export as formats
    from sequoia_opt.plan import tables
    from sequoia_opt.plan.files import read_text
    from sequoia_opt.plan.tree import TokenTree

    rates = None
    imported: TokenTree | Acceptance | LatencyProfile | None = None
    path = output
    if file.suffix == ".csv":
        rows = tables.read_csv(file)
        if tables.is_latency_table(rows):
            imported = tables.profile_of(rows, str(file), target, draft, hardware)
            path = output or paths.profile_path(hardware, target, draft, "imported")
        else:
            rates = tables.acceptance_rates(rows, str(file))
    elif file.suffix == ".pt":
        from sequoia_opt import torch_files

        found = torch_files.load(file)
        if isinstance(found, dict):
            imported = formats.of_growmap(found, str(file))
        else:
            rates = found[None]
    else:
        imported = formats.read(read_text(file), str(file))
    if rates is not None:
        used = "greedy" if temperature == 0 else verifier
        imported = tables.acceptance_of(
            rates,
            str(file),
            target=target,
            draft=draft,
            dataset=dataset,
            temperature=temperature,
            top_p=top_p,
            verifier=used,
        )
        path = output or paths.acceptance_path(target, draft, dataset, used, temperature, top_p)
    if isinstance(imported, TokenTree):
        names = {"target": target, "draft": draft}
        known = {role: name for role, name in names.items() if name != "unknown"}
        imported = TokenTree(imported.parents, imported.ranks, known)
        path = output or Path("trees") / "imported" / f"{file.stem}.json"
    assert path is not None
    _check_output(path)
    assert imported is not None
    imported.save(path)
    if as_json:
        _print_json(imported.document())
    console.written(path)


@app.command(epilog="Example: sequoia-opt bench tree.json --dataset prompts.jsonl --limit 16")
def bench(
    tree: Annotated[
        Path | None, typer.Argument(help="Tree file.", show_default="of the bundled pair")
    ] = None,
    dataset: DatasetOption = None,
    target: Target = None,
    draft: Draft = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="0 for greedy.", show_default="the tree's")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Nucleus of the target.", show_default="the tree's"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to use.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of each prompt.")] = 3,
    chain: Annotated[
        int | None,
        typer.Option(min=2, help="Nodes of the chain.", show_default="the best by prediction"),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Profile to choose the chain by.", show_default="the tree's")
    ] = None,
    acceptance: Annotated[
        Path | None, typer.Option(help="Acceptance file, likewise.", show_default="the tree's")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Plain decoding, transformers' generate, the best chain and the tree, side by side."""
    from sequoia_opt import console, paths
    from sequoia_opt.plan import shapes, solver
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

    path = tree or paths.bundled_tree(temperature or 0.0)
    loaded = TokenTree.load(path)
    temperature, top_p = _sampling(loaded, temperature, top_p)
    if chain is None:
        if profile is None or acceptance is None:
            profile, acceptance = paths.inputs_of(loaded)
        plan = solver.solve(LatencyProfile.load(profile), Acceptance.load(acceptance))
        chains = [c.tree for c in plan.baselines if c.name == "chain"]
        best = chains[0] if chains else shapes.chain(2)
    else:
        best = shapes.chain(chain)
    from sequoia_opt.engine.decoder import check_prompt, check_sampling
    from sequoia_opt.measure import bench as benchmark
    from sequoia_opt.measure.dataset import load_dataset, spread_over

    check_sampling(temperature, top_p)
    name, documents = load_dataset(dataset)
    pair = _load(*_models_of(loaded, target, draft), device, dtype)
    spread = spread_over(documents, limit)
    prompts = [pair.encode(d.prompt or d.text[: len(d.text) // 2]) for d in spread]
    for prompt in prompts:
        check_prompt(pair, prompt, max_new_tokens)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    methods = [
        benchmark.with_tree(pair, "plain", AUTOREGRESSIVE, **sampling),
        benchmark.with_generate(pair, **sampling),
        benchmark.with_tree(pair, f"best chain ({best.size} nodes)", best, **sampling),
        benchmark.with_tree(pair, f"solved tree ({loaded.size} nodes)", loaded, **sampling),
    ]
    with console.progress("decoding") as advance:
        results = benchmark.race(methods, prompts, max_new_tokens, repeats, advance)
    if as_json:
        _print_json(
            {
                "results": [asdict(result) for result in results],
                "dataset": name,
                "prompts": len(prompts),
                "max_new_tokens": max_new_tokens,
                "repeats": repeats,
                "tree": str(path),
                **sampling,
            }
        )
        return
    if markdown:
        console.race_markdown(results)
    else:
        console.race_table(results, f"{name}: {len(prompts)} prompts, {max_new_tokens} tokens each")
    comparable = _comparable(loaded, pair, temperature, top_p)
    if comparable.tokens:
        console.prediction_lines(results[-1], loaded, comparable.times)


@dataclass(frozen=True)
class Comparable:
    """Whether a tree's predicted tokens, and its predicted times, are for what is run."""

    tokens: bool
    times: bool


class Typewriter:
    """Writes a growing text as it comes."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._done = stream, 0

    def write(self, text: str) -> None:
        """Write what `text` adds to what has been written."""
        if self._stream is not None:
            self._stream.write(text[self._done :])
            self._stream.flush()
            self._done = max(self._done, len(text))


def _sampling(
    tree: TokenTree, temperature: float | None, top_p: float | None
) -> tuple[float, float]:
    """The tree's temperature and top-p, unless others are asked for."""
    own = float(tree.metadata.get("temperature", 0.0))
    nucleus = float(tree.metadata.get("top_p", 1.0))
    return own if temperature is None else temperature, nucleus if top_p is None else top_p


def _models_of(
    tree: TokenTree, target: str | None, draft: str | None
) -> tuple[str | None, str | None]:
    """The models to run: those named; else the bundled pair, if the tree is not for others."""
    from sequoia_opt import demo

    for role, given, bundled in (
        ("target", target, demo.TARGET_NAME), ("draft", draft, demo.DRAFT_NAME)
    ):  # fmt: skip
        own = tree.metadata.get(role, bundled)
        if given is None and own != bundled:
            raise SequoiaError(f"the tree was solved for {role} {own}; name it with --{role}")
    return target, draft


def _comparable(tree: TokenTree, pair: Pair, temperature: float, top_p: float) -> Comparable:
    """Which of the tree's predictions are for what is run here."""
    from sequoia_opt.measure.hardware import hardware

    own = tree.metadata
    models = (own.get("target"), own.get("draft")) == (pair.target_name, pair.draft_name)
    sampling = (own.get("temperature"), own.get("top_p")) == (temperature, top_p)
    machine = own.get("hardware", {}).get("slug") == hardware(pair.device)["slug"]
    dtype = own.get("engine", {}).get("dtype") == pair.dtype
    return Comparable(tokens=models and sampling, times=models and sampling and machine and dtype)


def _load(target: str | None, draft: str | None, device: str | None, dtype: str | None) -> Pair:
    from sequoia_opt.engine.models import load_pair

    return load_pair(target, draft, device, dtype)


def _check_output(path: Path | None) -> None:
    from sequoia_opt.plan.files import check_writable

    if path is not None:
        check_writable(path)


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"found {text!r}, expected whole numbers with commas between them", param_hint=option
        ) from None


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


def _print_json(document: dict[str, Any]) -> None:
    from sequoia_opt.plan.files import plain

    print(json.dumps(plain(document), ensure_ascii=False, allow_nan=False))


def main() -> None:
    """Run the command line; one line for an error, no traceback without --debug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, prog_name="sequoia-opt", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if not arguments and context is not None:
            print(context.get_help())
            sys.exit(USAGE)
        where = f" (see `{context.command_path} --help`)" if context else ""
        _fail(_message(error) + where, USAGE, debug)
    except SequoiaError as error:
        _fail(str(error), 1, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; there is nobody to tell
        sys.exit(1)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)
    if code == INTERRUPTED:
        _fail("interrupted; nothing was written", 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _message(error: Exception) -> str:
    """A usage error's text; typer's errors format themselves."""
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message else error)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
