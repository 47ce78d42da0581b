"""The command that decodes one prompt: decode."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.decode_comparison import compare_with_plain, print_comparison
from sequoia_opt.cli.decoding_options import Decoding, DecodingOptions, check_stats, prepare
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import TEMPLATE, Json, System, TemplateOption, print_json, template_of
from sequoia_opt.cli.text_input import read_prompts
from sequoia_opt.cli.tree_defaults import Comparable, Tree, comparable
from sequoia_opt.cli.typewriter import Typewriter
from sequoia_opt.processes import is_one_of_several

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Generation


@app.command(epilog='Example: sequoia-opt decode tree.json --prompt "def main():" --compare')
@with_option_groups
def decode(
    tree: Tree = None,
    *,
    prompt: Annotated[
        str | None,
        typer.Option(help="Text to continue; - reads standard input.", show_default="bundled"),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with the text to continue.")
    ] = None,
    options: DecodingOptions,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Put the prompt into the tokenizer's chat template.",
            rich_help_panel=TEMPLATE,
        ),
    ] = False,
    system: System = None,
    template_option: TemplateOption = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Decode plainly too, and report the measured speedup."),
    ] = False,
    repeats: Annotated[
        int, typer.Option(min=1, help="With --compare, decode this many times.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Decode a prompt with a tree, losslessly, and show the speed."""
    from sequoia_opt.cli.decode_summary import generation_summary, growth_summary
    from sequoia_opt.cli.output import out
    from sequoia_opt.measure.encoding import prompt_tokens
    from sequoia_opt.measure.records import Document

    _check_sources(prompt, prompt_file)
    if compare and options.max_new_tokens < 2:
        raise typer.BadParameter("--compare needs at least 2", param_hint="--max-new-tokens")
    for option, value in (("--system", system), ("--template-option", template_option)):
        if value is not None and not chat:
            raise typer.BadParameter("goes with --chat", param_hint=option)
    template = template_of(chat, system, template_option)
    check_stats(options, [tree, prompt_file])
    texts = read_prompts(prompt, prompt_file)
    decoding = prepare(tree, options, template, compare=compare)
    prompts = [prompt_tokens(decoding.pair, Document(text, ""), template) for text in texts]
    generation = _generate(decoding, prompts[0], quiet=as_json)
    decoding.keep_statistics(len(prompts[0]), generation)

    predicts = _predictions(decoding)
    if not as_json:
        out.print()
        generation_summary(generation, decoding.tree if predicts.tokens else None, predicts.times)
        if decoding.tree.policy is not None:
            growth_summary(generation)
    comparison = None
    if compare:
        comparison = compare_with_plain(decoding, prompts, options, repeats)
        if not as_json:
            print_comparison(comparison, decoding, options.max_new_tokens, predicts)
    if as_json:
        document = _document(decoding, generation)
        print_json(document | ({} if comparison is None else {"compare": comparison.document()}))


def _check_sources(prompt: str | None, prompt_file: Path | None) -> None:
    """Refuse two prompts, and standard input that several processes would share.

    Raises:
        typer.BadParameter: one of these is asked for.
    """
    if prompt is not None and prompt_file is not None:
        raise typer.BadParameter(
            "found --prompt and --prompt-file, expected one", param_hint="--prompt-file"
        )
    if is_one_of_several() and prompt == "-":
        raise typer.BadParameter(
            "several processes cannot share standard input; use --prompt-file",
            param_hint="--prompt",
        )


def _generate(decoding: Decoding, tokens: list[int], quiet: bool) -> Generation:
    """Decode a prompt, and print the text while it grows unless `quiet`."""
    stream = decoding.decoder.stream(tokens, **decoding.limits)
    typewriter = Typewriter(None if quiet else sys.stdout)
    for _ in stream:
        if not quiet:
            typewriter.write(stream.text())
    typewriter.write(stream.generation.text)
    return stream.generation


def _predictions(decoding: Decoding) -> Comparable:
    """The predictions of the tree that apply to this decoding."""
    if decoding.logits_options.change_anything:  # the tree's rates are of texts without them
        return Comparable(tokens=False, times=False)
    return comparable(decoding.tree, decoding.pair, decoding.sampling)


def _document(decoding: Decoding, generation: Generation) -> dict[str, Any]:
    """What --json prints of a generation."""
    document: dict[str, Any] = {
        "text": generation.text,
        "tokens": generation.tokens,
        "steps": generation.steps,
        "tokens_per_step": generation.tokens_per_step,
        "tokens_per_second": generation.tokens_per_second,
        "seconds": generation.seconds,
        "prefill_seconds": generation.prefill_seconds,
        "stopped": generation.stopped,
        "tree": str(decoding.tree_path),
        **asdict(decoding.sampling),
    }
    if decoding.tree.policy is not None:
        document["sizes"] = dict(sorted(generation.sizes.items()))
        document["levels"] = dict(sorted(generation.levels.items()))
        if decoding.tree.looks_up_first:
            document["looked_up"] = generation.looked_up
    return document | (
        decoding.logits_options.document() if decoding.logits_options.change_anything else {}
    )
