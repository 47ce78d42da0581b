"""Options that several commands share, and what they do with them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.journal import Journal
    from sequoia_opt.measure.template import Template
    from sequoia_opt.plan.tree import TokenTree

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
Compile = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Compile the forwards: takes a minute.")
]
Graphs = Annotated[
    bool | None,
    typer.Option(
        "--graphs/--no-graphs",
        help="Record steps as CUDA graphs.",
        show_default="on cuda",
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights", help="Make the models up from their config.json: they are as fast."
    ),
]
STANDARD = Path("-")  # standard output, where a command can write to it
OFFLOAD_HELP = "Where layers of the target stay that do not fit onto the device: cpu or disk."
Offload = Annotated[str, typer.Option("--offload", help=OFFLOAD_HELP)]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        help="What the target may take there, 8GB, with a short text's keys and values; the "
        "buffers of two layers apart.",
        show_default="most of what is free",
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write.", show_default="by name")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where a run that was cut off stopped.")
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace what is at the output, also an unfinished measurement."),
]
MaxSeconds = Annotated[
    float | None,
    typer.Option(min=1, help="Begin nothing new after that, and write what was measured."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Temperature = Annotated[float, typer.Option(help="0 for greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus of the target, in (0, 1].")]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k", min=0, help="Draw from the target's k most likely tokens; 0: from all."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        min=0,
        max=1,
        help="Draw no token less probable than this share of the most likely one's.",
    ),
]
Seed = Annotated[int, typer.Option(min=-(2**63) + 1, max=2**63 - 1, help="Random seed.")]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help=".jsonl, .json (or .gz) or .parquet with `prompt`, `messages`, `turns`, "
        "`instruction`, `question` or `text`, .txt, or a hub dataset id.",
        show_default="bundled",
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Put each prompt into the tokenizer's chat template; conversations always are.",
    ),
]
System = Annotated[
    str | None, typer.Option("--system", help="System message, where a conversation has none.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        help="Set a switch of the chat template, as enable_thinking=false; may be repeated.",
    ),
]


def load(
    target: str | None,
    draft: str | None,
    device: str | None,
    dtype: str | None,
    compiled: Collection[str] = (),
    graphs: bool | None = None,
    random_weights: bool = False,
    offload: str = "none",
    memory_budget: int | None = None,
    spread: bool = True,
) -> Pair:
    """The pair of models that the options name, the forwards of these roles compiled."""
    from sequoia_opt.api import load_pair
    from sequoia_opt.cli import console

    with console.waiting("loading the models"):
        pair = load_pair(
            target, draft, device, dtype, graphs, random_weights, offload, memory_budget, spread
        )
    if pair.draft.parameters >= pair.target.parameters:
        console.note("the draft is no smaller than the target: speculation can hardly pay")
    for role in compiled:
        if role == "target" and pair.world.size > 1:
            console.note("the target is not compiled: it is spread over processes")
            continue
        if getattr(pair, role).stream is not None:
            console.note(f"the {role} is not compiled: its layers are brought in as they are used")
            continue
        with console.waiting(f"compiling the {role}'s forwards"):
            pair.compile([role])
    return pair


def template_of(chat: bool, system: str | None, options: list[str] | None) -> Template:
    """How prompts are put to the models.

    Args:
        options: like enable_thinking=false.
    """
    from sequoia_opt.measure.template import Template

    switches: dict[str, Any] = {}
    for text in options or []:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise typer.BadParameter(
                f"found {text!r}, expected a name and its value, as enable_thinking=false",
                param_hint="--template-option",
            )
        switches[name.strip()] = _value(value)
    return Template(chat, system, switches)


def tell_unused_settings(pair: Pair) -> None:
    """Say which penalties of the target's generation_config.json a measurement leaves out."""
    from sequoia_opt.cli import console
    from sequoia_opt.engine.own_settings import own_settings

    if own_settings(pair).logits.change_anything:
        console.note(
            f"generation_config.json of {pair.target_name}: its penalties and suppressed tokens "
            "are not applied here; decode applies them"
        )


def _value(text: str) -> Any:
    """A value as JSON has it, or Python; else text."""
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def check_output(
    path: Path | None,
    kind: str | None = None,
    inputs: Sequence[Path | None] = (),
    force: bool = False,
) -> None:
    """Find out before long work that a named file cannot be written, or holds something else.

    Args:
        kind: format of what is to be written; None where it has none.
        inputs: files that the command reads.
        force: replace whatever is there.
    """
    from sequoia_opt.repository.outputs import check_named

    refuse_standard(path)
    if path is not None:
        check_named(path, kind, inputs, force)


def refuse_standard(path: Path | None) -> None:
    """Refuse to write to standard output, where what is shown goes."""
    if path == STANDARD:
        raise typer.BadParameter(
            "found - for a file to write, expected its name; --json prints to standard output",
            param_hint="--output",
        )


def journal(
    output: Path,
    about: dict[str, Any],
    resume: bool,
    max_seconds: float | None,
    restart: bool = False,
) -> Journal:
    """What keeps the parts of a measurement beside its output until that is written.

    Args:
        about: all that another run must have in common to be taken up.
        restart: drop the parts of a run that was cut off.
    """
    from sequoia_opt import __version__
    from sequoia_opt.cli import console
    from sequoia_opt.files.atomic import is_stream
    from sequoia_opt.measure.journal import Journal

    if is_stream(output):  # there is no folder of ours beside it
        return Journal(max_seconds=max_seconds)
    path = output.with_name(f"{output.name}.partial")
    kept = Journal(path, {"program": __version__, **about}, resume, max_seconds, restart)
    if kept.resumed:
        parts = f"{kept.resumed} part{'s' if kept.resumed > 1 else ''}"
        console.note(f"resuming {path}: {parts} already done")
    return kept


def byte_count(option: str, text: str | None) -> int | None:
    """The bytes of an option like 8GB or 512MiB."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not found:
        raise typer.BadParameter(
            f"found {text!r}, expected a size like 8GB or 512MiB", param_hint=option
        )
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))


def integers(option: str, text: str) -> list[int]:
    """The numbers of an option like 1,2,4."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"found {text!r}, expected whole numbers with commas between them", param_hint=option
        ) from None


def numbers(option: str, text: str) -> list[float]:
    """The numbers of an option like 0,0.6,1, each once."""
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(
            f"found {text!r}, expected numbers with commas between them", param_hint=option
        ) from None


def names(text: str) -> list[str]:
    """The names of an option like a,b, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def any_tree(path: Path) -> TokenTree:
    """A tree file of this program's or of any engine that `import` reads."""
    from sequoia_opt.cli import console
    from sequoia_opt.files.reading import read_text
    from sequoia_opt.plan import import_settings, tree, tree_formats

    if path.suffix == ".pt":
        from sequoia_opt.files import growmap_pt

        found = growmap_pt.load(path)
        if not isinstance(found, dict):
            raise SequoiaError(f"{path}: found acceptance rates, expected a tree")
        return tree_formats.of_growmap(found, str(path))
    text = read_text(path)
    if tree.FORMAT in text:
        return tree.TokenTree.load(path)
    return import_settings.read(
        text, str(path), note=lambda line: console.note(f"note: {path}: {line}")
    )


def print_json(document: dict[str, Any]) -> None:
    """A command's only line on standard output with --json."""
    from sequoia_opt.cli.terminal import is_unicode, json_printable
    from sequoia_opt.files.documents import plain

    ascii_only = not is_unicode(sys.stdout.encoding)
    text = json.dumps(plain(document), ensure_ascii=ascii_only, allow_nan=False)
    print(json_printable(text))
