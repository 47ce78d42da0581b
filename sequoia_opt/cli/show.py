"""The command that draws a tree, a profile, rates or statistics in the terminal: show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import Json, any_tree, print_json
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.tree import TokenTree

SHOWN_NODES = 40


@app.command(epilog="Example: sequoia-opt show tree.json --limit 20")
def show(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Tree in any format that `import` reads, profile, acceptance file, or statistics "
            "from `decode --stats`.",
            show_default="the bundled pair's tree",
        ),
    ] = None,
    acceptance: Annotated[
        Path | None,
        typer.Option(
            help="Compute the probabilities of a tree's nodes from this acceptance file.",
            show_default="the one it was solved from",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Nodes to show.")] = SHOWN_NODES,
    as_json: Json = False,
) -> None:
    """Show a tree, a profile, acceptance rates or statistics in the terminal."""
    from sequoia_opt.cli import charts
    from sequoia_opt.files.reading import read_text
    from sequoia_opt.plan import acceptance as rates
    from sequoia_opt.plan import decode_stats, latency
    from sequoia_opt.repository import paths

    file = file or paths.bundled_tree(0.0)
    text = "" if file.suffix == ".pt" else read_text(file)
    is_profile = latency.FORMAT in text
    is_acceptance = not is_profile and rates.FORMAT in text
    is_stats = text.startswith(decode_stats.BEGINS)
    if (is_profile or is_acceptance or is_stats) and acceptance is not None:
        raise typer.BadParameter("can only be used with a tree", param_hint="--acceptance")
    if is_stats:
        _show_statistics(file, as_json)
    elif is_profile:
        profile = latency.LatencyProfile.load(file)
        print_json(profile.document()) if as_json else charts.profile(profile)
    elif is_acceptance:
        shown_rates = rates.Acceptance.load(file)
        print_json(shown_rates.document()) if as_json else charts.acceptance(shown_rates)
    else:
        tree = any_tree(file)
        tree_rates = _rates_of(tree, acceptance, file.parent)
        print_json(_document(tree, tree_rates)) if as_json else charts.tree(tree, tree_rates, limit)


def _show_statistics(file: Path, as_json: bool) -> None:
    """Show the statistics of adaptive plans.

    Raises:
        SequoiaError: the file is malformed, or all its texts were decoded with fixed trees.
    """
    from sequoia_opt.cli.output import note, out
    from sequoia_opt.cli.stats_summary import stats_summary
    from sequoia_opt.plan import growth_stats

    plans, others = growth_stats.load(file)
    rates = f"`sequoia-opt estimate --from-stats {file}` makes rates of"
    if not plans:
        raise SequoiaError(f"{file}: its texts were decoded with fixed trees; {rates} them")
    if others:
        texts = "1 text that was" if others == 1 else f"{others} texts that were"
        note(f"note: {rates} {texts} decoded with fixed trees")
    if as_json:
        print_json({"plans": [growths.document() for growths in plans]})
        return
    for number, growths in enumerate(plans):
        if number:
            out.print()
        stats_summary(growths)


def _rates_of(tree: TokenTree, named: Path | None, folder: Path) -> Acceptance | None:
    """The acceptance rates that a tree's nodes are judged by, or None if their file is gone.

    Args:
        named: the file that an option names.
        folder: the tree's folder, from which its own acceptance file is looked for.
    """
    from sequoia_opt.cli.output import note
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.repository import paths

    try:
        return Acceptance.load(named or paths.input_of(tree, "acceptance", folder))
    except SequoiaError:
        if named is not None:
            raise
        note("note: the tree's acceptance file was not found; name one with --acceptance")
        return None


def _document(tree: TokenTree, acceptance: Acceptance | None) -> dict[str, Any]:
    """A tree's document, with the probability of each node where it is known."""
    document = tree.document()
    if acceptance is not None:
        values = acceptance.node_values(tree)
        document |= {"reached": values, "shares": values / values.sum()}
    return document
