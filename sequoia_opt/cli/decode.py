"""The command that decodes."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import (
    Device,
    Draft,
    Dtype,
    Graphs,
    Json,
    Seed,
    System,
    Target,
    TemplateOption,
    check_output,
    load,
    print_json,
    template_of,
)
from sequoia_opt.cli.prompts_io import (
    Typewriter,
    complete,
    converse,
    keeper,
    stops_of,
    tell_own_settings,
    texts_of,
    with_own,
)
from sequoia_opt.cli.tree_defaults import (
    Comparable,
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
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.processes import is_one_of_several

if TYPE_CHECKING:
    from sequoia_opt.engine.logits_processors import LogitsOptions
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.records import Document
    from sequoia_opt.plan.tree import TokenTree


@app.command(epilog='Example: sequoia-opt decode tree.json --prompt "def main():" --compare')
def decode(
    tree: Tree = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Text to go on from; - reads standard input.", show_default="bundled"),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with the text to go on from.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Dataset of prompts or conversations (.jsonl, .json, .txt, .parquet): complete "
            "each, into -o."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="With --prompts: a line of JSON each; one that was cut off is continued.",
            show_default="the prompts' name, .completions.jsonl",
        ),
    ] = None,
    target: Target = None,
    draft: Draft = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Put the prompt, or each of the dataset's, into the tokenizer's chat template; "
            "without any, converse: a turn for each line of standard input.",
        ),
    ] = False,
    system: System = None,
    template_option: TemplateOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 128,
    temperature: TreeTemperature = None,
    top_p: TreeTopP = None,
    top_k: TreeTopK = None,
    min_p: TreeMinP = None,
    verifier: TreeVerifier = None,
    seed: Seed = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="End the text at this string, which may be a special token; may be repeated.",
            show_default="the target's own",
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            help="Above 1: make tokens of the prompt and the text so far less likely.",
            show_default="the target's own",
        ),
    ] = None,
    presence_penalty: Annotated[
        float, typer.Option(help="Take this from the logits of tokens that the new text has.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="Take this from them for each time that the new text has them.")
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(help="Added to a token's logit: 42=-5; may be repeated."),
    ] = None,
    generation_config: Annotated[
        bool,
        typer.Option(
            "--generation-config/--no-generation-config",
            help="Apply the penalties and suppressed tokens of the target's "
            "generation_config.json; options for the same come first.",
        ),
    ] = True,
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
    stats: Annotated[
        Path | None,
        typer.Option(
            help="File to add to what was tried and accepted, for `estimate --from-stats`."
        ),
    ] = None,
    compile: TreeCompile = None,
    graphs: Graphs = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: TreeOffload = None,
    memory_budget: TreeMemoryBudget = None,
    as_json: Json = False,
) -> None:
    """Decode a prompt with a tree, losslessly, and say how fast it was."""
    from sequoia_opt.cli import console
    from sequoia_opt.files.jsonl import check_free
    from sequoia_opt.plan import decode_stats
    from sequoia_opt.plan.tree import TokenTree

    if compare and max_new_tokens < 2:
        raise typer.BadParameter("--compare needs at least 2", param_hint="--max-new-tokens")
    conversing = chat and prompt is None and prompt_file is None and prompts is None
    _check_sources(prompt, prompt_file, prompts, output, compare, conversing)
    for option, wanted in (("--system", system), ("--template-option", template_option)):
        if wanted is not None and not chat and prompts is None:
            raise typer.BadParameter("goes with --chat or --prompts", param_hint=option)
    template = template_of(chat, system, template_option)
    check_output(stats, inputs=[tree, prompt_file, prompts, output])
    if stats is not None and os.path.exists(stats):
        decode_stats.check(stats)
    texts: list[str] = []
    documents: list[Document] = []
    if prompts is not None:  # a file that is not there, or cannot be written, before the models
        from sequoia_opt.measure.dataset import load_prompts

        documents = load_prompts(prompts)
        output = output or Path(f"{prompts.stem}.completions.jsonl")
        check_output(output, inputs=[tree, prompts])
        check_free(output)
    elif not conversing:
        texts = texts_of(prompt, prompt_file)
    path = tree or bundled_tree(temperature, compile, device)
    loaded = TokenTree.load(path)
    check_world(loaded)
    sampling = sampling_of(loaded, temperature, top_p, verifier, top_k, min_p)
    target, draft = models_of(loaded, target, draft)
    from sequoia_opt.engine.decoder import Decoder, check_seed
    from sequoia_opt.engine.logits_processors import LogitsOptions
    from sequoia_opt.engine.own_settings import OwnSettings, own_settings
    from sequoia_opt.measure.encoding import check_template, prompt_tokens
    from sequoia_opt.measure.records import Document

    check_seed(seed)
    rules = LogitsOptions(
        1.0 if repetition_penalty is None else repetition_penalty,
        _biases(logit_bias or []),
        frequency_penalty,
        presence_penalty,
    )
    for option, given in (("--compare", compare), ("--stats", stats is not None)):
        if given and rules.change_anything:
            raise typer.BadParameter(
                "is for the models as they are: drop --repetition-penalty, --presence-penalty, "
                "--frequency-penalty and --logit-bias",
                param_hint=option,
            )
    place, budget = offload_of(loaded, offload, memory_budget)
    roles = compiled_roles(loaded, compile)
    pair = load(target, draft, device, dtype, roles, graphs, offload=place, memory_budget=budget)
    if chat or template.options or documents:
        check_template(pair, documents, template, console.note)
    own = own_settings(pair) if generation_config else OwnSettings()
    rules = with_own(rules, own, chosen=repetition_penalty is not None)
    if stats is not None and rules.change_anything:
        raise typer.BadParameter(
            f"is for the models as they are, and generation_config.json of {pair.target_name} has "
            "penalties; add --no-generation-config",
            param_hint="--stats",
        )
    stops = stops_of(stop, own)
    tell_own_settings(pair, own, rules, sampling, stops)
    decoder = Decoder(pair, loaded, **asdict(sampling), seed=seed, rules=rules)
    keep = keeper(stats, pair, loaded, sampling)
    limits: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "ignore_eos": ignore_eos,
        "stop": stops,
    }
    if conversing:
        turns: list[dict[str, Any]] = []
        try:
            converse(decoder, template, limits, keep, as_json, turns)
        finally:
            if as_json:
                print_json({"turns": turns})
        return
    if output is not None:
        settings = {
            "target": pair.target_name,
            "draft": pair.draft_name,
            "fingerprints": pair.fingerprints,
            "dtype": pair.dtype,
            **_named(sampling),
            "seed": seed,
            "tree": loaded.fingerprint,
            **limits,
            **rules.document(),
            **template.document(),
        }
        done = complete(decoder, documents, template, output, seed, limits, settings, keep)
        if done["failed"]:
            console.note(
                f"{done['failed']} of {done['prompts']} prompts could not be completed; their "
                "lines say why, as `error`"
            )
        print_json(done) if as_json else console.written(output)
        return
    encoded = [prompt_tokens(pair, Document(text, ""), template) for text in texts]
    stream = decoder.stream(encoded[0], **limits)
    shown = Typewriter(sys.stdout if not as_json else None)
    for _ in stream:
        if not as_json:
            shown.write(stream.text())
    generation = stream.generation
    keep(len(encoded[0]), generation)
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
    if rules.change_anything:
        document |= rules.document()
        fitting = Comparable(tokens=False, times=False)  # the rates are of other texts
    if not as_json:
        console.out.print()
        console.generation_summary(generation, loaded if fitting.tokens else None, fitting.times)
    if compare:
        document["compare"] = _compare(
            pair, loaded, encoded, max_new_tokens, sampling, seed, rules, repeats, fitting, as_json
        )
    if as_json:
        print_json(document)


def _check_sources(
    prompt: str | None,
    file: Path | None,
    dataset: Path | None,
    output: Path | None,
    compare: bool,
    conversing: bool,
) -> None:
    """Refuse options that do not go together."""
    sources = {"prompt": prompt, "prompt-file": file, "prompts": dataset}
    named = [f"--{name}" for name, given in sources.items() if given is not None]
    if len(named) > 1:
        raise typer.BadParameter(f"found {' and '.join(named)}, expected one", param_hint=named[1])
    if is_one_of_several() and (conversing or prompt == "-"):
        raise typer.BadParameter(
            "several processes cannot share standard input; use --prompt-file",
            param_hint="--chat" if conversing else "--prompt",
        )
    if compare and (dataset is not None or conversing):
        raise typer.BadParameter("goes with one prompt; see `bench`", param_hint="--compare")
    if output is not None and dataset is None:
        raise typer.BadParameter("goes with --prompts", param_hint="--output")


def _named(sampling: Sampling) -> dict[str, Any]:
    """How tokens are chosen, for a file: what is newer only where it is used."""
    newer = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    values = {key: value for key, value in asdict(sampling).items() if key not in newer}
    return values | {key: value for key, value in newer.items() if value}


def _biases(options: list[str]) -> dict[int, float]:
    """Tokens and what is added to their logits, of options like 42=-5."""
    found = {}
    for text in options:
        token, _, bias = text.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError:
            raise typer.BadParameter(
                f"found {text!r}, expected a token's number and its bias, as 42=-5",
                param_hint="--logit-bias",
            ) from None
    return found


def _compare(
    pair: Pair,
    tree: TokenTree,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    rules: LogitsOptions,
    repeats: int,
    fitting: Comparable,
    quiet: bool,
) -> dict[str, Any]:
    """Plain decoding beside the tree's, on all prompts."""
    from sequoia_opt.cli import console
    from sequoia_opt.measure import bench, methods
    from sequoia_opt.plan.tree import AUTOREGRESSIVE

    racing = [
        methods.with_tree(pair, name, shape, **asdict(sampling), seed=seed, rules=rules)
        for name, shape in (("plain", AUTOREGRESSIVE), ("tree", tree))
        if name == "plain" or tree.size > 1  # a tree of one node is the same
    ]
    temperature = sampling.temperature
    with console.progress("comparing") as advance:
        raced = bench.race(racing, prompts, max_new_tokens, repeats, advance)
    results = raced.beside()
    if temperature == 0:
        texts = [run.tokens for run in raced.runs[-1]]
    else:  # one that is decoded greedily, for this alone
        greedy = methods.with_tree(pair, "greedy", tree, temperature=0.0, rules=rules)
        texts = [greedy.run(prompts[0], max_new_tokens).tokens]
    by_library = [
        (i, bench.library_divergence(pair, prompt, text, rules))
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=False))
    ]
    document: dict[str, Any] = {"results": [asdict(result) for result in results]}
    found = []
    if temperature == 0 and results[-1].agreement < 1:
        for i, prompt in enumerate(prompts):
            plain, treed = (method.run(prompt, max_new_tokens).tokens for method in racing)
            parted = bench.divergence(pair, prompt, plain, treed, rules)
            if parted is not None:
                found.append((i, parted))
    if temperature == 0:
        document["divergences"] = [{"prompt": i, **asdict(parted)} for i, parted in found]
    apart = [(i, parted) for i, parted in by_library if parted is not None]
    document["library"] = {
        "prompts": len(by_library),
        "divergences": [{"prompt": i, **asdict(parted)} for i, parted in apart],
    }
    if not quiet:
        title = f"{len(prompts)} prompts, {max_new_tokens} tokens each, temperature {temperature:g}"
        console.race_table(results, title, greedy=temperature == 0)
        if tree.size == 1:
            console.out.print("the tree has one node: plain decoding, with nothing beside it")
        elif fitting.tokens:
            console.prediction_lines(results[1], tree, fitting.times)
        if temperature == 0 and tree.size > 1:
            console.divergences(found, len(prompts))
        console.library_divergences(apart, len(by_library))
    return document
