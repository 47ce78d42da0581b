"""What `solve`, `solve-all` and `sweep` share: the options of solving, and the files to solve from.

Knows how options are written. Knows nothing of how a tree is found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.options import alternatives
from sequoia_opt.plan import shapes
from sequoia_opt.plan.solve_options import ANY_TREE

if TYPE_CHECKING:
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.recording import Recording

TREE = "Tree"  # panel of --help

ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", help="Latency profile.", show_default="the bundled pair's"),
]
AcceptanceFile = Annotated[
    Path | None,
    typer.Option("--acceptance", help="Acceptance file.", show_default="the bundled pair's"),
]
Static = Annotated[bool, typer.Option("--static", help="Leave adaptive plans out.")]


@dataclass(frozen=True)
class SolvingOptions:
    """What is asked of a tree. The fields are those of `plan.solver.solve`."""

    max_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest number of nodes.",
            show_default="largest measured",
            rich_help_panel=TREE,
        ),
    ] = None
    max_depth: Annotated[
        int | None,
        typer.Option(min=0, help="Largest depth.", show_default="32", rich_help_panel=TREE),
    ] = None
    size: Annotated[
        int | None, typer.Option(min=1, help="Fix the number of nodes.", rich_help_panel=TREE)
    ] = None
    depth: Annotated[
        int | None, typer.Option(min=0, help="Fix the depth limit.", rich_help_panel=TREE)
    ] = None
    context: Annotated[
        str | None,
        typer.Option(
            help="Context length in tokens: 512; several: 128,512,2048; or weighted: 128:3,2048:1.",
            show_default="as in the acceptance file",
            rich_help_panel=TREE,
        ),
    ] = None
    batch: Annotated[
        int, typer.Option(min=1, help="Sequences decoded together.", rich_help_panel=TREE)
    ] = 1
    shape: Annotated[
        str,
        typer.Option(
            help=f"Shape that the engine can run: {alternatives([ANY_TREE, *shapes.NAMES])}.",
            rich_help_panel=TREE,
        ),
    ] = ANY_TREE
    max_width: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most children of a node.",
            show_default="ranks measured",
            rich_help_panel=TREE,
        ),
    ] = None
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Maximise the speedup that is exceeded with this probability.",
            show_default="maximise the predicted speedup",
            rich_help_panel=TREE,
        ),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of `plan.solver.solve`.

        Raises:
            typer.BadParameter: the context lengths are malformed.
        """
        context = None if self.context is None else context_weights(self.context)
        return asdict(self) | {"context": context}


def context_weights(text: str) -> dict[float, float]:
    """The weight of each context length in an option like 128:3,2048:1.

    Raises:
        typer.BadParameter: it is malformed, or has a weight that is not above 0.
    """
    try:
        parts = [part.partition(":") for part in text.split(",")]
        weights = {float(length): float(weight or 1) for length, _, weight in parts}
    except ValueError:
        weights = {}
    if not weights or not all(
        length >= 0 and 0 < weight < inf for length, weight in weights.items()
    ):
        raise typer.BadParameter(
            f"found {text!r}, expected 512, 128,512,2048 or 128:3,2048:1", param_hint="--context"
        )
    return weights


def load_recording(rates: Acceptance, path: Path) -> Recording | None:
    """The recorded drafts that belong to acceptance rates; notes where their file is gone.

    Args:
        path: of the acceptance file.
    """
    from sequoia_opt.cli.output import note
    from sequoia_opt.plan import recorded

    recording = recorded.recording_of(rates, path)
    if recording is None and (file := recorded.named_file(rates, path)) is not None:
        note(f"note: {file}, the recorded drafts, is not there; only static plans are solved")
    return recording


def load_measurements(profile: Path, acceptance: Path) -> tuple[LatencyProfile, Acceptance]:
    """A profile and acceptance rates; notes where they are of different models."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile

    latencies, rates = LatencyProfile.load(profile), Acceptance.load(acceptance)
    for role in ("target", "draft"):
        profiled, sampled = getattr(latencies, role).model, getattr(rates, role)
        if sampled not in (profiled, "unknown"):
            note(f"note: the profile's {role} is {profiled}, the acceptance file's is {sampled}")
    return latencies, rates
