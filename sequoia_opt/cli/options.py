"""Options that several commands share, and what their values mean.

Knows option names, help texts and the values that people type. Knows nothing of what a command
does with them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_names import LOOKUP, LOOKUP_FIRST
from sequoia_opt.plan.verifiers import VERIFIERS

if TYPE_CHECKING:
    from sequoia_opt.measure.journal import Journal
    from sequoia_opt.measure.template import Template
    from sequoia_opt.plan.tree import TokenTree


def alternatives(names: Collection[str]) -> str:
    """Names for a sentence: a, b or c."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


# Panels of --help.
MODELS, SAMPLING, TEMPLATE = "Models and device", "Sampling", "Chat template"
SERVER = "Server"

OWN_FORMAT = re.compile(r'^[\s{]*"?format"?: "?sequoia-opt/')
OWN_HEAD = 80  # characters, in which a document says its format
STANDARD = Path("-")  # standard output, where a command can write to it
OFFLOAD_HELP = "Where to keep target layers that do not fit on the device: cpu or disk."
MEMORY_BUDGET_HELP = (
    "Device memory for the target, e.g. 8GB: weights and a short text's KV cache, not the two "
    "layer buffers."
)
TOP_K_HELP = "Draw from the target's k most likely tokens; 0: from all."
MIN_P_HELP = "Draw no token less probable than this fraction of the most likely token's."
VERIFIER_HELP = f"Verifier above temperature 0: {alternatives(VERIFIERS)}."


def _checked_seed(seed: int) -> int:
    """The seed, which has to fit random generators: more than -2**63 and less than 2**63."""
    if not -(2**63) < seed < 2**63:
        raise typer.BadParameter(f"found {seed}, expected less than 2**63 in size")
    return seed


Target = Annotated[
    str | None,
    typer.Option(
        help="Target model: a hub id, a folder or a .gguf file.",
        show_default="bundled",
        rich_help_panel=MODELS,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        help=f"Draft model: a hub id, a folder or a .gguf file; or {LOOKUP}, to propose what "
        f"followed the last tokens earlier (n-gram); or {LOOKUP_FIRST}MODEL, to try the lookup "
        "first and otherwise draft with the model.",
        show_default="bundled",
        rich_help_panel=MODELS,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        help="Send this API key to the server.",
        envvar="SEQUOIA_OPT_API_KEY",
        show_default="none",
        show_envvar=True,
        rich_help_panel=SERVER,
    ),
]
Corpus = Annotated[
    Path | None,
    typer.Option(
        "--corpus",
        help=f"Also search this text file or folder of text files, with --draft {LOOKUP}.",
        show_default="none",
        rich_help_panel=MODELS,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device: cpu, cuda, cuda:1, …",
        show_default="cuda if available",
        rich_help_panel=MODELS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Number type: float32, bfloat16, float16 or float64.",
        show_default="bfloat16 on cuda, else float32",
        rich_help_panel=MODELS,
    ),
]
TokenCounts = Annotated[
    str | None,
    typer.Option(
        "--tokens",
        help="Numbers of tokens in a forward pass, e.g. 1,2,4,8.",
        show_default="1 to 64, on CUDA 1 to 512",
    ),
]
Contexts = Annotated[
    str | None,
    typer.Option(
        help="Context lengths, in cached tokens.",
        show_default="128,512,1024 (llama.cpp: 128,384,896), as far as the models allow",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the forward passes, which takes a minute.",
        rich_help_panel=MODELS,
    ),
]
Graphs = Annotated[
    bool | None,
    typer.Option(
        "--graphs/--no-graphs",
        help="Record steps as CUDA graphs.",
        show_default="on cuda",
        rich_help_panel=MODELS,
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Build the models from their config.json with random weights; timings are the same.",
        rich_help_panel=MODELS,
    ),
]
Offload = Annotated[str, typer.Option("--offload", help=OFFLOAD_HELP, rich_help_panel=MODELS)]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        help=MEMORY_BUDGET_HELP,
        show_default="most of the free memory",
        rich_help_panel=MODELS,
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write.", show_default="by name")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace the output file, or its unfinished measurement."),
]
MaxSeconds = Annotated[
    float | None,
    typer.Option(min=1, help="Start nothing new after this time, and write the results so far."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature; 0 is greedy.", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        help="Draw from the target's nucleus of this probability, in (0, 1].",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[int, typer.Option("--top-k", min=0, help=TOP_K_HELP, rich_help_panel=SAMPLING)]
MinP = Annotated[
    float, typer.Option("--min-p", min=0, max=1, help=MIN_P_HELP, rich_help_panel=SAMPLING)
]
Seed = Annotated[
    int, typer.Option(help="Random seed.", callback=_checked_seed, rich_help_panel=SAMPLING)
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="Dataset: a hub id, a .txt file, or a .jsonl, .json (also .gz) or .parquet file with "
        "`prompt`, `messages`, `turns`, `instruction`, `question` or `text`.",
        show_default="bundled",
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Put each prompt into the tokenizer's chat template, as conversations always are.",
        rich_help_panel=TEMPLATE,
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="System message for conversations that have none.",
        rich_help_panel=TEMPLATE,
    ),
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        help="Set a switch of the chat template: enable_thinking=false; may be repeated.",
        rich_help_panel=TEMPLATE,
    ),
]


def template_of(chat: bool, system: str | None, options: list[str] | None) -> Template:
    """How prompts are formatted for the models.

    Args:
        chat: put every prompt into the chat template, not only conversations.
        options: switches of the template, like enable_thinking=false.

    Raises:
        typer.BadParameter: a switch has no name or no value.
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


def _value(text: str) -> Any:
    """The value of a JSON or Python literal; any other text as it is."""
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
    """Find out before long work that a file named by -o cannot be written or replaced.

    Args:
        kind: format of the document to write; None where it has none.
        inputs: files that the command reads.
        force: replace a file of any other kind too.

    Raises:
        SequoiaError: the file cannot be written, is an input, or holds something else.
        typer.BadParameter: it is standard output.
    """
    from sequoia_opt.repository.outputs import check_named

    refuse_standard(path)
    if path is not None:
        check_named(path, kind, inputs, force)


def refuse_standard(path: Path | None) -> None:
    """Refuse a file that is standard output, where the command prints.

    Raises:
        typer.BadParameter: it is.
    """
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
    """The journal that keeps a measurement's finished parts until its output is written.

    It is next to the output, named `<output>.partial`.

    Args:
        about: settings that an interrupted run must share to be resumed.
        resume: continue an interrupted run.
        restart: drop the parts of an interrupted run.
    """
    from sequoia_opt import __version__
    from sequoia_opt.cli.output import note
    from sequoia_opt.files.atomic import is_stream
    from sequoia_opt.measure.journal import Journal

    if is_stream(output):  # a pipe or device has no folder to keep a file in
        return Journal(max_seconds=max_seconds)
    path = output.with_name(f"{output.name}.partial")
    opened = Journal(path, {"program": __version__, **about}, resume, max_seconds, restart)
    if opened.resumed:
        parts = "1 part" if opened.resumed == 1 else f"{opened.resumed} parts"
        note(f"resuming {path}: {parts} already done")
    return opened


def byte_count(option: str, text: str | None) -> int | None:
    """The number of bytes in an option like 8GB or 512MiB."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not match:
        raise typer.BadParameter(
            f"found {text!r}, expected a size like 8GB or 512MiB", param_hint=option
        )
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))


def integers(option: str, text: str) -> list[int]:
    """The whole numbers in an option like 1,2,4."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"found {text!r}, expected whole numbers separated by commas", param_hint=option
        ) from None


def numbers(option: str, text: str) -> list[float]:
    """The numbers in an option like 0,0.6,1, without repetitions."""
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(
            f"found {text!r}, expected numbers separated by commas", param_hint=option
        ) from None


def names(text: str) -> list[str]:
    """The names in an option like a,b, without repetitions."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def is_own_document(text: str) -> bool:
    """Whether a text is a document of this program, which says its format at the beginning."""
    return OWN_FORMAT.search(text[:OWN_HEAD]) is not None


def any_tree(path: Path) -> TokenTree:
    """The tree in a file of this program, or of any engine that `import` reads."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.files.reading import read_text
    from sequoia_opt.plan import import_settings, tree, tree_formats

    if path.suffix == ".pt":
        from sequoia_opt.files import growmap_pt

        growmap = growmap_pt.load(path)
        if not isinstance(growmap, dict):
            raise SequoiaError(f"{path}: found acceptance rates, expected a tree")
        return tree_formats.of_growmap(growmap, str(path))
    text = read_text(path)
    if tree.FORMAT in text or is_own_document(text):
        return tree.TokenTree.load(path)
    return import_settings.read(text, str(path), note=lambda line: note(f"note: {path}: {line}"))


def print_json(document: dict[str, Any]) -> None:
    """Print the one document that a command writes to standard output with --json."""
    from sequoia_opt.cli.terminal import is_unicode, json_printable
    from sequoia_opt.files.documents import plain

    ascii_only = not is_unicode(sys.stdout.encoding)
    text = json.dumps(plain(document), ensure_ascii=ascii_only, allow_nan=False)
    print(json_printable(text))
