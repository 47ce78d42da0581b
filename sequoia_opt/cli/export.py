"""Commands that exchange trees and measurements with other programs: export and import."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import (
    STANDARD,
    Force,
    Json,
    MinP,
    Output,
    Temperature,
    TopK,
    TopP,
    any_tree,
    check_output,
    print_json,
)
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.tree import TokenTree


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
    draft: Annotated[
        str | None,
        typer.Option(help="The draft as the engine is to load it.", show_default="the tree's"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write.", show_default="standard output"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a tree as another engine takes it."""
    output = None if output == STANDARD else output
    check_output(output, inputs=[tree])
    from sequoia_opt import demo
    from sequoia_opt.cli import console
    from sequoia_opt.plan import export as formats
    from sequoia_opt.plan.tree import TokenTree

    loaded = TokenTree.load(tree)
    name = str(loaded.metadata.get("draft", ""))
    if draft is not None or demo.resolve(name) != name:
        known = {"draft_path": draft or demo.resolve(name)}
        loaded = TokenTree(loaded.parents, loaded.ranks, loaded.metadata | known)
    text, notes = formats.export(loaded, to)
    if output is not None:
        _check_export(output, text, force)
    for line in notes:
        console.note(f"note: {line}")
    if output is not None:
        _write_export(loaded, to, text, output)
        console.written(output)
    if as_json:
        print_json({"to": to, "text": text, "notes": notes})
    elif output is None:
        console.plain(text, end="")


def _check_export(output: Path, text: str, force: bool) -> None:
    """Refuse to replace what is no export: of one what is before the first number is the same, or
    it can be imported.

    Raises:
        SequoiaError: it holds something else.
    """
    from sequoia_opt.files.atomic import is_stream
    from sequoia_opt.files.reading import read_bytes
    from sequoia_opt.repository.kinds import kind_of

    if force or is_stream(output) or not os.path.exists(output):
        return
    there = kind_of(output)
    if there == "":
        return
    if there is None:
        before = read_bytes(output).decode(errors="replace")
        if re.split(r"\d", before)[0] == re.split(r"\d", text)[0]:
            return
        with suppress(SequoiaError):
            any_tree(output)
            return
    raise SequoiaError(
        f"{output}: holds something else than an export; name another file with -o, or replace it "
        "with --force"
    )


def _write_export(loaded: TokenTree, to: str, text: str, output: Path) -> None:
    """Write it; for the research code, as a file that it loads."""
    from sequoia_opt.files.atomic import write_text
    from sequoia_opt.plan.tree_formats import growmap

    if to == "sequoia" and output.suffix == ".pt":
        from sequoia_opt.files import growmap_pt

        growmap_pt.save_growmap(growmap(loaded), output)
    else:
        write_text(output, text)


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
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    verifier: Annotated[str, typer.Option(help="For temperatures above 0.")] = "sequoia",
    hardware: Annotated[str, typer.Option(help="What latencies were measured on.")] = "imported",
    name: Annotated[
        str | None,
        typer.Option(
            help="Take the list of this name for the tree, or the number of this setting for the "
            "length of a chain."
        ),
    ] = None,
    first_rank: Annotated[
        int, typer.Option(min=0, max=1, help="Count the ranks of paths from 0 or from 1.")
    ] = 0,
    rates_by: Annotated[
        str | None,
        typer.Option(help="Read a row or a column of rates by rank, or by depth."),
    ] = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Take over a tree, acceptance rates or latencies that were made elsewhere."""
    check_output(output, inputs=[file], force=force)
    from sequoia_opt.cli import console
    from sequoia_opt.files.names import short_name
    from sequoia_opt.files.reading import read_text
    from sequoia_opt.plan import csv_import, import_settings, tree_formats
    from sequoia_opt.plan.tree import TokenTree
    from sequoia_opt.repository import paths
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance, source_of

    if rates_by not in (None, *csv_import.BY):
        raise typer.BadParameter(
            f"found {rates_by!r}, expected {' or '.join(csv_import.BY)}", param_hint="--rates-by"
        )
    rates = None
    imported: TokenTree | Acceptance | LatencyProfile | None = None
    path = output
    if file.suffix == ".csv":
        rows = csv_import.read_csv(file)
        if csv_import.is_latency_table(rows):
            imported = csv_import.profile_of(rows, str(file), target, draft, hardware)
            path = output or paths.profile_path(hardware, target, draft, "imported")
            if others := csv_import.other_columns(rows):
                console.note(f"note: left out: column{'s' * (len(others) > 1)} {', '.join(others)}")
        else:
            rates = csv_import.acceptance_rates(rows, str(file), rates_by)
    elif file.suffix == ".pt":
        from sequoia_opt.files import growmap_pt

        found = growmap_pt.load(file)
        if isinstance(found, dict):
            imported = tree_formats.of_growmap(found, str(file))
        else:
            rates = found[None]
    else:
        imported = import_settings.read(
            read_text(file), str(file), name, first_rank, lambda line: console.note(f"note: {line}")
        )
    if rates is not None:
        used = "greedy" if temperature == 0 else verifier
        imported = csv_import.acceptance_of(
            rates,
            str(file),
            target=target,
            draft=draft,
            dataset=dataset,
            temperature=temperature,
            top_p=top_p,
            verifier=used,
            top_k=top_k,
            min_p=min_p,
        )
        path = output or paths.acceptance_path(
            target, draft, dataset, used, temperature, top_p, top_k, min_p
        )
        depths, ranks = rates.shape
        console.note(
            f"note: read as rates of {ranks} rank{'s' * (ranks > 1)}, "
            + ("the same at every depth" if depths == 1 else f"at {depths} depths")
            + f", for temperature {temperature:g}"
            + (f" and verifier {used}" if temperature else "")
        )
    if isinstance(imported, TokenTree):
        names = {"target": target, "draft": draft}
        known = {role: name for role, name in names.items() if name != "unknown"}
        imported = TokenTree(imported.parents, imported.ranks, known)
        path = output or Path("trees") / "imported" / f"{short_name(file.stem)}.json"
    assert path is not None
    assert imported is not None
    provenance = {"imported": source_of(file) or str(file)}
    if isinstance(imported, TokenTree):
        imported.metadata["provenance"] = provenance
    else:
        imported.extra["provenance"] = provenance
    maker = Provenance.of(imported.document())
    if output is None:
        path = settled(path, maker, force, console.note)
    check_output(path, maker.kind, [file], force)
    imported.save(path)
    if as_json:
        print_json(imported.document())
    console.written(path)
