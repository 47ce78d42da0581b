"""Commands that decode: decode and bench."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import (
    DatasetOption,
    Device,
    Draft,
    Dtype,
    Graphs,
    Json,
    Target,
    load,
    print_json,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Sampling

if TYPE_CHECKING:
    from sequoia_opt.engine.models import Pair
    from sequoia_opt.plan.tree import TokenTree


Tree = Annotated[Path | None, typer.Argument(help="Tree file.", show_default="of the bundled pair")]
TreeTemperature = Annotated[
    float | None, typer.Option(help="0 for greedy.", show_default="the tree's")
]
TreeTopP = Annotated[
    float | None,
    typer.Option("--top-p", help="Nucleus of the target.", show_default="the tree's"),
]
TreeVerifier = Annotated[
    str | None,
    typer.Option(
        help="Above temperature 0: sequoia, specinfer, topk or traversal.",
        show_default="the tree's",
    ),
]
TreeCompile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the forwards: takes a minute.",
        show_default="as the tree was solved for",
    ),
]
GREEDY, DEFAULT_VERIFIER = "greedy", "sequoia"
METHODS = ("plain", "generate", "chain", "tree")  # of `bench`


@app.command(epilog='Example: sequoia-opt decode tree.json --prompt "def main():" --compare')
def decode(
    tree: Tree = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from.", show_default="bundled")
    ] = None,
    target: Target = None,
    draft: Draft = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 128,
    temperature: TreeTemperature = None,
    top_p: TreeTopP = None,
    verifier: TreeVerifier = None,
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
    compile: TreeCompile = None,
    graphs: Graphs = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Decode a prompt with a tree, losslessly, and say how fast it was."""
    from sequoia_opt import console, demo, paths
    from sequoia_opt.plan.tree import TokenTree

    if compare and max_new_tokens < 2:
        raise typer.BadParameter("--compare needs at least 2", param_hint="--max-new-tokens")
    path = tree or paths.bundled_tree(temperature or 0.0, bool(compile))
    loaded = TokenTree.load(path)
    sampling = _sampling(loaded, temperature, top_p, verifier)
    target, draft = _models_of(loaded, target, draft)
    from sequoia_opt.engine.decoder import Decoder, check_sampling

    check_sampling(**asdict(sampling))
    pair = load(target, draft, device, dtype, _compiled(loaded, compile), graphs)
    texts = [prompt] if prompt is not None else demo.prompts()
    prompts = [pair.encode(text) for text in texts]
    decoder = Decoder(pair, loaded, **asdict(sampling), seed=seed)
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
        **asdict(sampling),
    }
    comparable = _comparable(loaded, pair, sampling)
    if not as_json:
        console.out.print()
        console.generation_summary(
            generation, loaded if comparable.tokens else None, comparable.times
        )
    if compare:
        document["compare"] = _compare(
            pair, loaded, prompts, max_new_tokens, sampling, seed, repeats, comparable, as_json
        )
    if as_json:
        print_json(document)


def _compare(
    pair: Pair,
    tree: TokenTree,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    repeats: int,
    comparable: Comparable,
    quiet: bool,
) -> dict[str, Any]:
    """Plain decoding beside the tree's, on all prompts."""
    from sequoia_opt import console
    from sequoia_opt.measure import bench
    from sequoia_opt.plan.tree import AUTOREGRESSIVE

    methods = [
        bench.with_tree(pair, name, shape, **asdict(sampling), seed=seed)
        for name, shape in (("plain", AUTOREGRESSIVE), ("tree", tree))
    ]
    temperature = sampling.temperature
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
        console.race_table(results, title, greedy=temperature == 0)
        if comparable.tokens:
            console.prediction_lines(results[1], tree, comparable.times)
        if temperature == 0:
            console.divergences(found, len(prompts))
    return document


@app.command(epilog="Example: sequoia-opt bench tree.json --dataset prompts.jsonl --limit 16")
def bench(
    tree: Tree = None,
    dataset: DatasetOption = None,
    target: Target = None,
    draft: Draft = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 128,
    temperature: TreeTemperature = None,
    top_p: TreeTopP = None,
    verifier: TreeVerifier = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to use.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of each prompt.")] = 3,
    methods: Annotated[
        str, typer.Option(help="What to run, of all; the first is what the others are set beside.")
    ] = ",".join(METHODS),
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
    compile: TreeCompile = None,
    graphs: Graphs = None,
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

    wanted = [name.strip() for name in methods.split(",")]
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(METHODS):
        raise typer.BadParameter(
            f"found {methods!r}, expected some of {','.join(METHODS)}", param_hint="--methods"
        )
    if "chain" not in wanted and (chain or profile or acceptance):
        raise typer.BadParameter(
            "has no chain, which --chain, --profile and --acceptance are for",
            param_hint="--methods",
        )
    path = tree or paths.bundled_tree(temperature or 0.0, bool(compile))
    loaded = TokenTree.load(path)
    sampling = _sampling(loaded, temperature, top_p, verifier)
    if "chain" not in wanted:
        best = AUTOREGRESSIVE
    elif chain is None:
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

    check_sampling(**asdict(sampling))
    name, documents = load_dataset(dataset)
    models = _models_of(loaded, target, draft)
    pair = load(*models, device, dtype, _compiled(loaded, compile), graphs)
    spread = spread_over(documents, limit)
    prompts = [pair.encode(d.prompt or d.text[: len(d.text) // 2]) for d in spread]
    for prompt in prompts:
        check_prompt(pair, prompt, max_new_tokens)
    trees = {
        "plain": ("plain", AUTOREGRESSIVE),
        "chain": (f"best chain ({best.size} nodes)", best),
        "tree": (f"solved tree ({loaded.size} nodes)", loaded),
    }
    racing = [
        benchmark.with_generate(pair, temperature=sampling.temperature, top_p=sampling.top_p)
        if name == "generate"
        else benchmark.with_tree(pair, *trees[name], **asdict(sampling))
        for name in wanted
    ]
    with console.progress("decoding") as advance:
        results = benchmark.race(racing, prompts, max_new_tokens, repeats, advance)
    if as_json:
        print_json(
            {
                "results": [asdict(result) for result in results],
                "dataset": name,
                "prompts": len(prompts),
                "max_new_tokens": max_new_tokens,
                "repeats": repeats,
                "tree": str(path),
                **asdict(sampling),
            }
        )
        return
    if markdown:
        console.race_markdown(results)
    else:
        title = f"{name}: {len(prompts)} prompts, {max_new_tokens} tokens each"
        console.race_table(results, title, greedy=sampling.temperature == 0)
    comparable = _comparable(loaded, pair, sampling)
    if "tree" in wanted and comparable.tokens:
        times = comparable.times and wanted[0] == "plain"
        console.prediction_lines(results[wanted.index("tree")], loaded, times)


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
    tree: TokenTree, temperature: float | None, top_p: float | None, verifier: str | None
) -> Sampling:
    """The tree's temperature, top-p and verifier, unless others are asked for.

    Raises:
        SequoiaError: the tree was solved for another verifier, whose guesses are accepted at
            other rates.
    """
    own = tree.metadata
    warm = float(own.get("temperature", 0.0) if temperature is None else temperature)
    nucleus = float(own.get("top_p", 1.0) if top_p is None else top_p)
    planned = own.get("verifier", GREEDY)
    chosen = verifier or (DEFAULT_VERIFIER if planned == GREEDY else planned)
    # Traversal has no acceptance of its own: it is planned with that of its drafting.
    fitting = (GREEDY, chosen, *([DEFAULT_VERIFIER] if chosen == "traversal" else []))
    if warm > 0 and planned not in fitting:
        raise SequoiaError(
            f"the tree was solved for verifier {planned}, found --verifier {chosen}; solve with "
            "an acceptance estimated for it, or drop the option"
        )
    return Sampling(warm, nucleus, chosen)


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


def _compiled(tree: TokenTree, wanted: bool | None) -> Collection[str]:
    """The roles to compile: by default those that were when the tree's profile was measured."""
    from sequoia_opt.engine.models import ROLES

    own = tree.metadata.get("engine", {}).get("compile")
    roles = [role for role in ROLES if own is True or (isinstance(own, list) and role in own)]
    return [] if wanted is False else roles or (ROLES if wanted else [])


def _comparable(tree: TokenTree, pair: Pair, sampling: Sampling) -> Comparable:
    """Which of the tree's predictions are for what is run here."""
    from sequoia_opt.measure.hardware import hardware

    own = tree.metadata
    models = (own.get("target"), own.get("draft")) == (pair.target_name, pair.draft_name)
    verifier = GREEDY if sampling.temperature == 0 else sampling.verifier
    wanted = (sampling.temperature, sampling.top_p, verifier)
    same = (own.get("temperature"), own.get("top_p"), own.get("verifier", verifier)) == wanted
    machine = own.get("hardware", {}).get("slug") == hardware(pair.device)["slug"]
    settings = own.get("engine", {}).get("dtype"), _compiled(tree, None)
    engine = settings == (pair.dtype, pair.compiled)
    engine = engine and own.get("engine", {}).get("graphs", pair.graphs) == pair.graphs
    return Comparable(tokens=models and same, times=models and same and machine and engine)
