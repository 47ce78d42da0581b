"""Measures the user's pair: its profile, its acceptance at several temperatures, and its plans."""

from __future__ import annotations

import subprocess
import sys

from record import Record

TEMPERATURES = ("0", "0.6", "1")
BATCHES = "1,4,16"


def measure(record: Record, device: str, target: str, draft: str, dataset: str | None) -> None:
    """Run `profile`, `estimate` and `solve-all` in the folder of the entries."""
    pair = ["--target", target, "--draft", draft, "--device", device]
    with record.stage("profile"):
        run(record, "profile", *pair, "--batches", BATCHES)
    for temperature in TEMPERATURES:
        with record.stage(f"estimate, temperature {temperature}"):
            options = ["--dataset", dataset] if dataset else []
            run(record, "estimate", *pair, *options, "--temperature", temperature)
    with record.stage("solve"):
        run(record, "solve-all")


def run(record: Record, *arguments: str) -> None:
    """Run a command of this program.

    Raises:
        RuntimeError: it failed; its messages are in the part's log.
    """
    command = [sys.executable, "-m", "sequoia_opt", *arguments]
    print("$ sequoia-opt", *arguments, flush=True)
    if subprocess.run(command, cwd=record.entries, check=False).returncode:
        raise RuntimeError(f"sequoia-opt {arguments[0]} failed")
