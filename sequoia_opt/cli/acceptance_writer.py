"""Where acceptance rates are written, and the recorded drafts that lie beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sequoia_opt.cli.options import check_output
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import is_stream
from sequoia_opt.plan import acceptance, recording
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.recording import LOOKUP_ENVELOPE, Envelope, recording_path
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.verifiers import verifier_at

EnvelopeOption = Annotated[
    str | None,
    typer.Option(
        help="Record this much of the draft at each position, for adaptive plans: levels x nodes "
        "per level x guesses per node.",
        show_default=f"{Envelope()}, of a lookup {LOOKUP_ENVELOPE}",
    ),
]
NoEnvelope = Annotated[
    bool,
    typer.Option(
        "--no-envelope",
        help="Record nothing of the draft; only adaptive plans need it.",
    ),
]


@dataclass(frozen=True)
class AcceptanceWriter:
    """Where acceptance rates are written: to the named file, or under names that follow from them.

    Attributes:
        output: the file that the user named, if any.
        force: whether other files may be replaced.
    """

    output: Path | None
    force: bool

    def check(self, count: int, inputs: Sequence[Path]) -> None:
        """Refuse a file that cannot be written or cannot hold `count` estimates.

        Args:
            inputs: files that the command reads.
        """
        self.check_count(count, f"{count} estimates are to be written")
        self.check_file(inputs)

    def no_recording(self, teacher_forced: bool) -> str:
        """Why no recording can be written beside the rates; "" where it can."""
        if teacher_forced:
            return "they are recorded along the target's continuations, not a dataset's text"
        if self.output is not None and is_stream(self.output):
            return f"{self.output} is no file that a recording could lie beside"
        return ""

    def check_count(self, count: int, problem: str) -> None:
        """Refuse one file for several estimates."""
        if self.output is not None and count > 1:
            raise typer.BadParameter(f"names one file, but {problem}", param_hint="--output")

    def check_file(self, inputs: Sequence[Path]) -> None:
        """Refuse a file that cannot be written."""
        check_output(self.output, acceptance.FORMAT, inputs, self.force)

    def check_recordings(self, paths: Sequence[Path]) -> None:
        """Refuse to write recordings beside these files over something else."""
        for path in paths:
            check_output(recording_path(path), recording.FORMAT, (), self.force)

    def save(
        self, paths: Sequence[Path], estimates: Sequence[Acceptance], **extent: Any
    ) -> list[Path]:
        """Write estimates, with their recordings; the files that were written.

        Args:
            paths: a usual name for each.
            extent: options that say how much the estimates cover.
        """
        from sequoia_opt.cli.output import note
        from sequoia_opt.repository.outputs import settled
        from sequoia_opt.repository.provenance import Provenance

        written = []
        for path, rates in zip(paths, estimates, strict=True):
            if self.output is None:
                maker = Provenance.of(rates.document(), **extent)
                path = settled(path, maker, self.force, note)
            else:
                path = self.output
            rates.save(path)
            written.append(path)
            if rates.recording is not None:
                written.append(recording_path(path))
        return written


def envelope_of(named: str | None, is_left_out: bool, of_lookup: bool = False) -> Envelope | None:
    """What to record; None for nothing.

    Args:
        of_lookup: whether a lookup drafts, which goes deeper.

    Raises:
        typer.BadParameter: it is malformed or out of range, or named and left out.
    """
    if is_left_out and named is not None:
        raise typer.BadParameter("contradicts --no-envelope", param_hint="--envelope")
    if is_left_out:
        return None
    try:
        if named is None:
            return LOOKUP_ENVELOPE if of_lookup else Envelope()
        return Envelope.parse(named)
    except SequoiaError as error:
        reason = str(error).removeprefix("envelope: ")
        raise typer.BadParameter(reason, param_hint="--envelope") from None


def usual_path(target: str, draft: str, dataset: str, sampling: Sampling) -> Path:
    """The file of the rates of that name, where no other is named."""
    from sequoia_opt.repository import paths

    return paths.acceptance_path(
        target,
        draft,
        dataset,
        verifier_at(sampling.temperature, sampling.verifier),
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
    )
