"""The recording that an acceptance file names: found beside it, and checked to belong to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.names import same_fingerprint
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.recording import Recording

AGAIN = "estimate both again with `sequoia-opt estimate`"
SHARED = ("target", "draft", "temperature", "top_p", "top_k", "min_p", "verifier")


def named_file(acceptance: Acceptance, path: str | Path) -> Path | None:
    """The recording's file that an acceptance file names, or None if it names none.

    Args:
        path: of the acceptance file.
    """
    name = _named(acceptance, str(path))[0]
    return Path(path).parent / Path(name).name if name else None


def recording_of(acceptance: Acceptance, path: str | Path) -> Recording | None:
    """The recording that an acceptance file names; None if it names none, or one that is gone.

    Args:
        path: of the acceptance file.

    Raises:
        SequoiaError: the recording is cut off, malformed, or not the one that is named.
    """
    file = named_file(acceptance, path)
    if file is None or not file.exists():
        return None
    recording = Recording.load(file)
    fingerprint = _named(acceptance, str(path))[1]
    if fingerprint and recording.fingerprint != fingerprint:
        raise SequoiaError(
            f"{file}: found the fingerprint {recording.fingerprint}, expected {fingerprint}, which "
            f"{Path(path).name} names; {AGAIN}"
        )
    try:
        check_recording(recording, acceptance)
    except SequoiaError as error:
        raise SequoiaError(f"{file}: {error}") from None
    return recording


def check_recording(recording: Recording, acceptance: Acceptance) -> None:
    """Refuse a recording of another pair or another sampling than the acceptance's.

    Raises:
        SequoiaError: it names what differs.
    """
    for name in SHARED:
        stated = getattr(acceptance, name)
        if name in recording.about and stated != "unknown" and recording.about[name] != stated:
            raise SequoiaError(
                f"recording: {name}: found {recording.about[name]}, expected {stated}, as the "
                f"acceptance has it; {AGAIN}"
            )
    recorded, measured = (
        about.get("fingerprints") for about in (recording.about, acceptance.extra)
    )
    if recorded and measured and not same_fingerprint(recorded, measured):
        raise SequoiaError(
            f"recording: fingerprints: found other models than the acceptance was measured with; "
            f"{AGAIN}"
        )
    fitted = acceptance.confidence
    if fitted is not None and fitted.fingerprint not in ("", recording.fingerprint):
        raise SequoiaError(
            f"recording: found the fingerprint {recording.fingerprint}, expected "
            f"{fitted.fingerprint}, which the acceptance was fitted to; {AGAIN}"
        )


def _named(acceptance: Acceptance, where: str) -> tuple[str, str]:
    """Name and fingerprint of the recording that the acceptance names; empty if it names none."""
    if acceptance.confidence is not None:
        return acceptance.confidence.recording, acceptance.confidence.fingerprint
    stated: Any = acceptance.extra.get("recording")
    if stated is None:
        return "", ""
    section = Fields({"recording": stated}, where).section("recording")
    return section.text("file", ""), section.text("fingerprint", "")
