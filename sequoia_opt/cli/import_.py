"""The command that reads trees, counts, rates and latencies of other programs: import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import (
    VERIFIER_HELP,
    Force,
    Json,
    MinP,
    Output,
    Temperature,
    TopK,
    TopP,
    check_output,
    is_own_document,
    print_json,
)
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, verifier_at

if TYPE_CHECKING:
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.tree import TokenTree
    from sequoia_opt.types import FloatArray

UNKNOWN, IMPORTED = "unknown", "imported"


@dataclass(frozen=True)
class ImportOptions:
    """What the file to import does not say about itself, as the command line says it."""

    target: Annotated[str, typer.Option(help="Name of the target model.")] = UNKNOWN
    draft: Annotated[str, typer.Option(help="Name of the draft model.")] = UNKNOWN
    dataset: Annotated[str, typer.Option(help="Name of the dataset of the rates.")] = IMPORTED
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    verifier: Annotated[
        str | None,
        typer.Option(help=VERIFIER_HELP, show_default=f"the engine's, else {DEFAULT_VERIFIER}"),
    ] = None
    hardware: Annotated[str, typer.Option(help="Name of the machine of the latencies.")] = IMPORTED
    name: Annotated[
        str | None,
        typer.Option(
            help="Read the tree from the list of this name, a chain's length from the number of "
            "this setting, or the counts of this model."
        ),
    ] = None
    first_rank: Annotated[
        int, typer.Option(min=0, max=1, help="Count the ranks of paths from 0 or from 1.")
    ] = 0
    rates_by: Annotated[
        str | None,
        typer.Option(help="Read a single row or column of rates by rank or by depth."),
    ] = None


@app.command(
    "import", epilog="Example: sequoia-opt import latencies.csv --target big --draft small"
)
@with_option_groups
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A tree as any engine of `export` writes it, what an engine counted (its log, "
            "metrics or answers), rates or latencies (role, batch, context, tokens, ms, "
            "perhaps round_ms) as .csv, or the research code's .pt."
        ),
    ],
    *,
    options: ImportOptions,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Import a tree, counts, rates or latencies from another program."""
    check_output(output, inputs=[file], force=force)
    from sequoia_opt.cli.output import note, written
    from sequoia_opt.plan import csv_import
    from sequoia_opt.plan.tree import TokenTree
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance, source_of

    if options.rates_by not in (None, *csv_import.BY):
        raise typer.BadParameter(
            f"found {options.rates_by!r}, expected {' or '.join(csv_import.BY)}",
            param_hint="--rates-by",
        )
    imported, path = _read(file, options)
    origin = {"imported": source_of(file) or str(file)}
    if isinstance(imported, TokenTree):
        imported.metadata["provenance"] = origin
    else:
        imported.extra["provenance"] = origin
    provenance = Provenance.of(imported.document())
    path = settled(path, provenance, force, note) if output is None else output
    check_output(path, provenance.kind, [file], force)
    imported.save(path)
    if as_json:
        print_json(imported.document())
    written(path)


def _read(
    file: Path, options: ImportOptions
) -> tuple[TokenTree | Acceptance | LatencyProfile, Path]:
    """What a file holds, and the path where this program keeps it by default."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.files.reading import read_text
    from sequoia_opt.plan import csv_import, engine_counters, import_settings, tree_formats

    if file.suffix == ".csv":
        rows = csv_import.read_csv(file)
        if csv_import.is_latency_table(rows):
            return _profile(rows, file, options)
        return _acceptance(
            csv_import.acceptance_rates(rows, str(file), options.rates_by), file, options
        )
    if file.suffix == ".pt":
        from sequoia_opt.files import growmap_pt

        content = growmap_pt.load(file)
        if isinstance(content, dict):
            return _tree(tree_formats.of_growmap(content, str(file)), file, options)
        return _acceptance(content[None], file, options)
    text = read_text(file)
    if is_own_document(text):
        from sequoia_opt.plan.tree import TokenTree

        return _tree(TokenTree.load(file), file, options)
    if (counts := engine_counters.read(text, str(file), options.name)) is not None:
        for line in counts.warnings():
            note(f"note: {line}")
        return _acceptance(
            counts.rates(str(file)), file, options, counts.verifier, positions=counts.steps
        )
    tree = import_settings.read(
        text,
        str(file),
        options.name,
        options.first_rank,
        lambda line: note(f"note: {line}"),
    )
    return _tree(tree, file, options)


def _tree(tree: TokenTree, file: Path, options: ImportOptions) -> tuple[TokenTree, Path]:
    """The tree with the names of its models, as far as options name them."""
    from sequoia_opt.files.names import short_name
    from sequoia_opt.plan.tree import TokenTree

    models = {"target": options.target, "draft": options.draft}
    metadata = {role: name for role, name in models.items() if name != UNKNOWN}
    path = Path("trees") / IMPORTED / f"{short_name(file.stem)}.json"
    return TokenTree(tree.parents, tree.ranks, metadata, tree.policy), path


def _profile(
    rows: list[list[str]], file: Path, options: ImportOptions
) -> tuple[LatencyProfile, Path]:
    """The latency profile in a table."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.plan import csv_import, round_times
    from sequoia_opt.repository import paths

    profile = csv_import.profile_of(
        rows, str(file), options.target, options.draft, options.hardware
    )
    if round_times.COLUMN in rows[0]:
        note(f"note: {round_times.COLUMN}: {round_times.EXPLANATION}")
    if unused := csv_import.other_columns(rows):
        columns = "column" if len(unused) == 1 else "columns"
        note(f"note: ignoring {columns} {', '.join(unused)}")
    return profile, paths.profile_path(options.hardware, options.target, options.draft, IMPORTED)


def _acceptance(
    rates: FloatArray,
    file: Path,
    options: ImportOptions,
    verifier: str = DEFAULT_VERIFIER,
    positions: int = 0,
) -> tuple[Acceptance, Path]:
    """Acceptance rates [depths, ranks] with what the options say of them.

    Args:
        verifier: whose rates they are above temperature 0, unless the options name another.
        positions: how many steps they were counted in.
    """
    from sequoia_opt.cli.output import note
    from sequoia_opt.plan import csv_import
    from sequoia_opt.repository import paths

    temperature = options.temperature
    verifier = verifier_at(temperature, options.verifier or verifier)
    acceptance = csv_import.acceptance_of(
        rates,
        str(file),
        target=options.target,
        draft=options.draft,
        dataset=options.dataset,
        temperature=temperature,
        top_p=options.top_p,
        verifier=verifier,
        top_k=options.top_k,
        min_p=options.min_p,
        positions=positions,
    )
    depths, ranks = rates.shape
    note(
        f"note: read as rates of {ranks} rank{'' if ranks == 1 else 's'}, "
        + ("the same at every depth" if depths == 1 else f"at {depths} depths")
        + f", for temperature {temperature:g}"
        + (f" and verifier {verifier}" if temperature else "")
    )
    path = paths.acceptance_path(
        options.target,
        options.draft,
        options.dataset,
        verifier,
        temperature,
        options.top_p,
        options.top_k,
        options.min_p,
    )
    return acceptance, path
