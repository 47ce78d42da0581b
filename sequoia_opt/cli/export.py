"""The command that writes a tree in another engine's format: export."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sequoia_opt import demo
from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import STANDARD, Force, Json, any_tree, check_output, print_json
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import export
from sequoia_opt.plan.draft_names import model_of
from sequoia_opt.plan.tree import TokenTree

BINARY = ".pt"  # ends the names of the research code's files


def _formats_help() -> str:
    """The formats by what they can hold, for --help."""
    names = {kind: ", ".join(formats) for kind, formats in export.names_by_kind().items()}
    return (
        f"Format: {names['chains']} (chains); {names['trees']} (trees); {names['dynamic']} (depth, "
        "width and node budget of a tree that the engine builds itself)."
    )


@app.command("export", epilog="Example: sequoia-opt export tree.json --to sglang")
def export_tree(
    tree: Annotated[Path, typer.Argument(help="Tree file.")],
    to: Annotated[str, typer.Option(help=_formats_help())],
    draft: Annotated[
        str | None,
        typer.Option(help="Draft model as the engine should load it.", show_default="the tree's"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write.", show_default="standard output"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a tree in the format of another engine."""
    from sequoia_opt.cli.output import note, plain, written

    output = None if output == STANDARD else output
    check_output(output, inputs=[tree])
    loaded = TokenTree.load(tree)
    name = model_of(str(loaded.metadata.get("draft", "")))
    if draft is not None or demo.resolve(name) != name:
        draft_path = {"draft_path": draft or demo.resolve(name)}
        loaded = TokenTree(
            loaded.parents, loaded.ranks, loaded.metadata | draft_path, loaded.policy
        )
    text, notes = export.export(loaded, to)
    if output is not None:
        check_replaceable(output, text, force)
    for line in notes:
        note(f"note: {line}")
    if output is not None:
        _write(loaded, to, text, output)
        written(output)
    if as_json:
        print_json({"to": to, "text": text, "notes": notes})
    elif output is None:
        plain(text, end="")


def check_replaceable(output: Path, text: str, force: bool) -> None:
    """Refuse to replace a file that is not such an export: it differs in more than values.

    Raises:
        SequoiaError: the file holds something else.
    """
    from sequoia_opt.files.atomic import is_stream
    from sequoia_opt.files.reading import read_bytes
    from sequoia_opt.repository.kinds import kind_of

    if force or is_stream(output) or not os.path.exists(output):
        return
    kind = kind_of(output)
    if kind == "":
        return
    if kind is None:
        if form_of(read_bytes(output).decode(errors="replace")) == form_of(text):
            return
        if output.suffix == BINARY:  # a tree and nothing else
            with suppress(SequoiaError):
                any_tree(output)
                return
    raise SequoiaError(
        f"{output}: holds something else than such an export; name another file with -o, or "
        "replace it with --force"
    )


def form_of(text: str) -> str:
    """What exports in one format have in common: all but values, numbers and how many there are.

    Values are quoted texts behind a key, models behind a flag, and lists of numbers behind a key;
    a list by itself is a tree only if its numbers are whole.
    """
    for pattern, form in (
        (r"(-md|--draft-model|--speculative-draft-model-path) ('[^']*'|\S+)", r"\1 model"),
        (r'([:=] ?)"[^"\n]*"', r"\1text"),
        (r"(: )[\[(][\d\s.,eE+()\[\]-]*[\])]", r"\1list"),
        (r"[\[(](?:[\s,()\[\]]|\d+(?![.\d]))*[\])]", "list"),
        (r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", "number"),
        (r"([^,{}]+: [^,{}]+|[^,{}]+: \{[^{}]*\})(?:, \1)+", r"\1"),
    ):
        text = re.sub(pattern, form, text)
    return text.strip()


def _write(tree: TokenTree, to: str, text: str, output: Path) -> None:
    """Write an export; the research code's as a binary file where its name ends in .pt."""
    from sequoia_opt.files.atomic import write_text

    if to == "sequoia" and output.suffix == BINARY:
        from sequoia_opt.files import growmap_pt
        from sequoia_opt.plan.tree_formats import growmap

        growmap_pt.save_growmap(growmap(tree), output)
    else:
        write_text(output, text)
