"""A part as a process of its own, with a log, that is ended when its time is up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from parts import OWN, Asked, Part
from summary import Outcome

PATIENCE = 5  # seconds that a part has to end in when it is asked to
LEAST = 15  # seconds, under which no part is begun
SLOWER = 2  # times the limit: a rehearsal's machine may be busy


def run_in_time(part: Part, asked: Asked, output: Path, scratch: Path, left: float) -> Outcome:
    """Run a part as a process, with its log, until it ends or its time is up."""
    if left < LEAST:
        return Outcome(asked.title(part), "not begun: the time is up", 0, {})
    limit = min(part.limit * (SLOWER if asked.tiny else 1), left)
    print(f"{part.name} ({part.title}): at most {limit:.0f} s …", flush=True)
    command = [sys.executable, str(Path(__file__).parent), "--part", part.name]
    command += ["--scratch", str(scratch), "--device", asked.device, "--shapes", asked.shapes]
    for name in ("target", "draft", "dataset"):
        if (value := getattr(asked, name)) is not None:
            command += [f"--{name}", value]
    started = time.monotonic()
    with (output / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(part, asked),
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
        document = read(scratch / f"{part.name}.json")
        state = state_of(status, document, limit)
        log.write(f"{time.monotonic() - started:6.1f} s  {state}\n")
    return Outcome(asked.title(part), state, time.monotonic() - started, document.get("values", {}))


def environment(part: Part, asked: Asked) -> dict[str, str]:
    """What a part's process is told besides its options."""
    changes = {}
    if part.name != OWN:  # models are made on the spot, and there may be no network to wait for
        changes["HF_HUB_OFFLINE"] = "1"
    if asked.tiny:  # tiny models gain nothing from more threads, which wait for one another
        changes["OMP_NUM_THREADS"] = "1"
    return os.environ | changes


def state_of(status: int | None, document: dict[str, Any], limit: float) -> str:
    """How a part went: "done", or why not and how far it came.

    Args:
        status: of its process; None where it outran its limit.
    """
    under_way = document.get("under_way") or "nothing"
    if status is None:
        return f"ended at its limit of {limit:.0f} s; under way: {under_way}"
    if status:
        reason = document.get("values", {}).get("error", f"status {status}")
        return f"failed ({under_way}): {reason}"
    return "done"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, if it has not ended by itself."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue


def read(path: Path) -> dict[str, Any]:
    """A part's record, if there is one."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return document
