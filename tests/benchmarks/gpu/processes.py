"""Runs a part as a separate process with a log and a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from parts import OWN, Options, Part
from summary import Outcome

TERMINATION_SECONDS = 5  # that a part has to end after a signal
SHORTEST_PART_SECONDS = 15  # no part starts with less time left
REHEARSAL_FACTOR = 2  # on the limits: the machine of a rehearsal may be busy


def run_in_time(part: Part, options: Options, output: Path, scratch: Path, left: float) -> Outcome:
    """Run a part as a process with a log, until it ends or reaches its time limit.

    Args:
        left: seconds left to the whole run.
    """
    if left < SHORTEST_PART_SECONDS:
        return Outcome(options.title(part), "not started: the time is up", 0, {})
    limit = min(part.limit * (REHEARSAL_FACTOR if options.tiny else 1), left)
    print(f"{part.name} ({part.title}): at most {limit:.0f} s …", flush=True)
    command = [sys.executable, str(Path(__file__).parent), "--part", part.name]
    command += ["--scratch", str(scratch), "--device", options.device, "--shapes", options.shapes]
    for name in ("target", "draft", "dataset"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", value]
    started = time.monotonic()
    with (output / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(part, options),
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
    return Outcome(
        options.title(part), state, time.monotonic() - started, document.get("values", {})
    )


def environment(part: Part, options: Options) -> dict[str, str]:
    """The environment variables of a part's process."""
    changes = {}
    if part.name != OWN:  # models are made locally, so do not wait for a network
        changes["HF_HUB_OFFLINE"] = "1"
    if options.tiny:  # tiny models gain nothing from more threads, which wait for one another
        changes["OMP_NUM_THREADS"] = "1"
    return os.environ | changes


def state_of(status: int | None, document: dict[str, Any], limit: float) -> str:
    """The outcome of a part: "done", or what stopped it and in which stage.

    Args:
        status: the exit status of its process; None if it exceeded its limit.
        document: the part's record.
        limit: its time limit in seconds.
    """
    stage = document.get("under_way") or "between stages"
    if status is None:
        return f"stopped at its limit of {limit:.0f} s, stage: {stage}"
    if status:
        reason = document.get("values", {}).get("error", f"status {status}")
        return f"failed ({stage}): {reason}"
    return "done"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, if they are still running."""
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop_signal)
        except ProcessLookupError:
            break
        try:
            process.wait(TERMINATION_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def read(path: Path) -> dict[str, Any]:
    """A part's record; empty if the part has not written one."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return document
