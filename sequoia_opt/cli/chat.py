"""The command that holds a conversation on standard input and output: chat."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.decoding_options import Decoding, DecodingOptions, check_stats, prepare
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import Json, System, TemplateOption, print_json, template_of
from sequoia_opt.cli.text_input import read_turns
from sequoia_opt.cli.tree_defaults import Tree
from sequoia_opt.cli.typewriter import Typewriter
from sequoia_opt.processes import is_one_of_several

if TYPE_CHECKING:
    from sequoia_opt.measure.template import Template

Turn = dict[str, Any]


@app.command(epilog='Example: sequoia-opt chat tree.json --target T --draft D --system "Be brief."')
@with_option_groups
def chat(
    tree: Tree = None,
    *,
    options: DecodingOptions,
    system: System = None,
    template_option: TemplateOption = None,
    as_json: Json = False,
) -> None:
    """Converse with the target, losslessly.

    Each line of standard input is a turn, put into the target's chat template.

    The bundled pair has no such template: name models with one, --target and --draft.

    The conversation ends with the input, or with Ctrl-C.
    """
    if is_one_of_several():
        raise typer.TyperException(
            "chat: several processes cannot share standard input; use `decode --prompt-file`"
        )
    template = template_of(True, system, template_option)
    check_stats(options, [tree])
    decoding = prepare(tree, options, template)
    turns: list[Turn] = []
    try:
        _converse(decoding, template, as_json, turns)
    finally:
        if as_json:
            print_json({"turns": turns})


def _converse(decoding: Decoding, template: Template, quiet: bool, turns: list[Turn]) -> None:
    """Answer standard input line by line.

    Args:
        quiet: print nothing.
        turns: each turn is added to this list, so that a failure later loses none.
    """
    from sequoia_opt.cli.output import note, out

    pair = decoding.pair
    messages = template.conversation([])
    # Refuse a template that fails before the first question is asked.
    pair.encode_chat([*messages, {"role": "user", "content": ""}], template.options)
    session = decoding.decoder.session()
    for line in read_turns("> "):
        messages.append({"role": "user", "content": line})
        prompt = pair.encode_chat(messages, template.options)
        stream = session.stream(prompt, **decoding.limits)
        typewriter = Typewriter(None if quiet else sys.stdout)
        for _ in stream:
            typewriter.write(stream.text())
        generation = stream.generation
        typewriter.write(generation.text)
        decoding.keep_statistics(len(prompt), generation)
        messages.append({"role": "assistant", "content": generation.text})
        turns.append({
            "user": line,
            "assistant": generation.text,
            "prompt_tokens": len(prompt),
            "tokens": generation.tokens,
            "steps": generation.steps,
            "tokens_per_second": generation.tokens_per_second,
            "prefill_seconds": generation.prefill_seconds,
        })  # fmt: skip
        if not quiet:
            out.print()
            note(f"[{len(generation.tokens)} tokens, {generation.tokens_per_second:.1f} tokens/s]")
