"""The command that completes every prompt of a dataset into a file of JSON lines: complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt import demo
from sequoia_opt.cli.app import app
from sequoia_opt.cli.decoding_options import Decoding, DecodingOptions, check_stats, prepare
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import (
    Chat,
    Json,
    System,
    TemplateOption,
    check_output,
    print_json,
    template_of,
)
from sequoia_opt.cli.tree_defaults import Tree
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.measure.records import Document
    from sequoia_opt.measure.template import Template
    from sequoia_opt.plan.sampling import Sampling


@app.command(epilog="Example: sequoia-opt complete prompts.jsonl tree.json -o completions.jsonl")
@with_option_groups
def complete(
    prompts: Annotated[
        Path | None,
        typer.Argument(
            help="Dataset of prompts or conversations: .jsonl, .json, .txt or .parquet.",
            show_default="the bundled prompts",
        ),
    ] = None,
    tree: Tree = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write, one line of JSON per prompt; an unfinished one is continued.",
            show_default="the prompts' name, .completions.jsonl",
        ),
    ] = None,
    options: DecodingOptions,
    chat: Chat = False,
    system: System = None,
    template_option: TemplateOption = None,
    as_json: Json = False,
) -> None:
    """Complete a dataset's prompts into a file of JSON lines.

    Decoding is lossless. After an interruption, the same command continues where it stopped.
    """
    from sequoia_opt.cli.output import note, written
    from sequoia_opt.files.jsonl import check_free
    from sequoia_opt.measure.dataset import load_prompts

    template = template_of(chat, system, template_option)
    prompts = prompts or demo.PROMPTS
    check_stats(options, [tree, prompts, output])
    documents = load_prompts(prompts)
    output = output or Path(f"{prompts.stem}.completions.jsonl")
    check_output(output, inputs=[tree, prompts])
    check_free(output)
    decoding = prepare(tree, options, template, documents)
    summary = _complete_all(decoding, documents, template, options.seed, output)
    if summary["failed"]:
        note(
            f"{summary['failed']} of {summary['prompts']} prompts could not be completed; the "
            "field `error` of their lines says why"
        )
    if as_json:
        print_json(summary)
    else:
        written(output)


def _complete_all(
    decoding: Decoding, documents: Sequence[Document], template: Template, seed: int, output: Path
) -> dict[str, Any]:
    """Complete the prompts that the output does not have yet; the counts and the speed.

    A prompt that cannot be completed has a line too, which says why.
    """
    from sequoia_opt.cli.completions import Completions
    from sequoia_opt.cli.output import note, progress
    from sequoia_opt.engine.decoder import Generation
    from sequoia_opt.measure.encoding import prompt_tokens

    prompts = [document.asked for document in documents]
    settings = _settings(decoding, template, seed)
    seconds, tokens, done_before, failed = 0.0, 0, 0, 0
    with Completions(output, prompts, settings) as file, progress("decoding") as advance:
        done_before = file.done
        if done_before:
            note(f"resuming {output}: {done_before} of {len(prompts)} completions already done")
        for index, document in list(enumerate(documents))[done_before:]:
            advance(index, len(prompts))
            decoding.decoder.reseed(seed + index)  # as if this prompt were decoded alone
            prompt: list[int] = []
            error_field: dict[str, str] = {}
            try:
                prompt = prompt_tokens(decoding.pair, document, template)
                generation = decoding.decoder.generate(prompt, **decoding.limits)
            except SequoiaError as error:
                generation = Generation(stopped="error")
                error_field = {"error": str(error)}
                note(f"prompt {index + 1}: {_location(document)}{error}")
                failed += 1
            completion = {
                "completion": generation.text,
                "stopped": generation.stopped,
                **error_field,
                "tokens": len(generation.tokens),
                "steps": generation.steps,
                "seconds": generation.seconds,
            }
            file.add_completion(prompts[index], completion, document.fields)
            if not error_field:
                decoding.keep_statistics(len(prompt), generation)
            seconds += generation.seconds
            tokens += max(0, len(generation.tokens) - 1)
    return {
        "output": output,
        "prompts": len(prompts),
        "completed": len(prompts) - done_before - failed,
        "failed": failed,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }


def _settings(decoding: Decoding, template: Template, seed: int) -> dict[str, Any]:
    """What each line says about how it was decoded; other settings do not continue its file."""
    pair = decoding.pair
    return {
        "target": pair.target_name,
        "draft": pair.draft_name,
        "fingerprints": pair.fingerprints,
        "dtype": pair.dtype,
        **_sampling_fields(decoding.sampling),
        "seed": seed,
        "tree": decoding.tree.fingerprint,
        **decoding.limits,
        **decoding.logits_options.document(),
        **template.document(),
    }


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """The fields of a sampling; those that older files lack only where they are used."""
    newer = ("top_k", "min_p")
    fields = asdict(sampling)
    return {name: value for name, value in fields.items() if name not in newer or value}


def _location(document: Document) -> str:
    """The file and line of a record that cannot be used; a usable one is known by its number."""
    return f"{document.where}: " if document.problem else ""
