"""The command that decodes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import Device, Draft, Dtype, Graphs, Json, Target, load, print_json
from sequoia_opt.cli.running import (
    Comparable,
    Tree,
    TreeCompile,
    TreeMemoryBudget,
    TreeOffload,
    TreeTemperature,
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
from sequoia_opt.plan.acceptance import Sampling

if TYPE_CHECKING:
    from sequoia_opt.engine.models import Pair
    from sequoia_opt.plan.tree import TokenTree


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
    offload: TreeOffload = None,
    memory_budget: TreeMemoryBudget = None,
    as_json: Json = False,
) -> None:
    """Decode a prompt with a tree, losslessly, and say how fast it was."""
    from sequoia_opt import console, demo
    from sequoia_opt.plan.tree import TokenTree

    if compare and max_new_tokens < 2:
        raise typer.BadParameter("--compare needs at least 2", param_hint="--max-new-tokens")
    path = tree or bundled_tree(temperature, compile, device)
    loaded = TokenTree.load(path)
    check_world(loaded)
    sampling = sampling_of(loaded, temperature, top_p, verifier)
    target, draft = models_of(loaded, target, draft)
    from sequoia_opt.engine.decoder import Decoder

    place, budget = offload_of(loaded, offload, memory_budget)
    roles = compiled_roles(loaded, compile)
    pair = load(target, draft, device, dtype, roles, graphs, offload=place, memory_budget=budget)
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
    fitting = comparable(loaded, pair, sampling)
    if not as_json:
        console.out.print()
        console.generation_summary(generation, loaded if fitting.tokens else None, fitting.times)
    if compare:
        document["compare"] = _compare(
            pair, loaded, prompts, max_new_tokens, sampling, seed, repeats, fitting, as_json
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
    fitting: Comparable,
    quiet: bool,
) -> dict[str, Any]:
    """Plain decoding beside the tree's, on all prompts."""
    from sequoia_opt import console
    from sequoia_opt.measure import bench, methods
    from sequoia_opt.plan.tree import AUTOREGRESSIVE

    racing = [
        methods.with_tree(pair, name, shape, **asdict(sampling), seed=seed)
        for name, shape in (("plain", AUTOREGRESSIVE), ("tree", tree))
    ]
    temperature = sampling.temperature
    with console.progress("comparing") as advance:
        results = bench.race(racing, prompts, max_new_tokens, repeats, advance)
    document: dict[str, Any] = {"results": [asdict(result) for result in results]}
    found = []
    if temperature == 0 and results[1].agreement < 1:
        for i, prompt in enumerate(prompts):
            plain, treed = (method.run(prompt, max_new_tokens).tokens for method in racing)
            parted = bench.divergence(pair, prompt, plain, treed)
            if parted is not None:
                found.append((i, parted))
    if temperature == 0:
        document["divergences"] = [{"prompt": i, **asdict(parted)} for i, parted in found]
    if not quiet:
        title = f"{len(prompts)} prompts, {max_new_tokens} tokens each, temperature {temperature:g}"
        console.race_table(results, title, greedy=temperature == 0)
        if fitting.tokens:
            console.prediction_lines(results[1], tree, fitting.times)
        if temperature == 0:
            console.divergences(found, len(prompts))
    return document


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
