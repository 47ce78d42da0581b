"""The command that solves or checks every tree of a repository: solve-all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import Force, Json, print_json
from sequoia_opt.cli.solving_options import SolvingOptions, Static

if TYPE_CHECKING:
    from sequoia_opt.plan.tree import TokenTree


@app.command("solve-all", epilog="Example: sequoia-opt solve-all --check")
@with_option_groups
def solve_all(
    options: SolvingOptions,
    static: Static = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Write nothing; list the trees that differ from what their inputs give, or "
            "whose inputs are gone, and exit with 1 if there are any.",
        ),
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Solve for every profile with each acceptance file of its pair.

    The command reads `profiles/` and writes each tree where it belongs in `trees/`.
    """
    from sequoia_opt.cli.output import note, plain, progress
    from sequoia_opt.repository import solve_all as repository
    from sequoia_opt.repository.outputs import set_apart, settled
    from sequoia_opt.repository.provenance import Provenance

    def settle(path: Path, tree: TokenTree) -> Path:
        provenance = Provenance.of(tree.document())
        if not check:
            return settled(path, provenance, force, note)
        distinguished = set_apart(path, provenance)
        return distinguished if distinguished.exists() else path

    asked = options.keywords()
    if static:
        asked["static"] = True
    with progress("solving") as advance:
        trees = list(repository.solve_all(Path(), asked, advance, settle))
    paths = [path for path, _ in trees]
    if not check:
        for path, tree in trees:
            tree.save(path)
        if as_json:
            print_json({"trees": list(map(str, paths))})
        note(f"wrote {len(trees)} trees")
        return
    lines = (repository.difference(path, tree) for path, tree in trees)
    different = [line for line in lines if line] + repository.left_over(Path(), paths)
    if as_json:
        print_json({"trees": list(map(str, paths)), "different": different})
    else:
        for line in different:
            plain(line)
    if different:
        note("these trees do not follow from their inputs; `sequoia-opt solve-all` solves them")
        raise typer.Exit(1)
    note(f"all {len(trees)} trees follow from their inputs")
