"""Measures this program on a GPU in nine minutes: `make gpu`.

Runs the parts one after another, the most important first. Each is a separate process with a time
limit and a log, so that a part that fails does not stop the others. The output folder then holds
a log for each part, a table, and `entries.tar.gz`: profiles, plans and results, to be unpacked in
the repository's root and committed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import torch
import typer
from parts import FULL, LIMIT_MINUTES, OWN, PARTS, TINY, Options, Part, own_part
from processes import run_in_time
from record import Record
from summary import Outcome, table

from sequoia_opt.engine.devices import usable_device
from sequoia_opt.engine.hardware import hardware, software
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import profiler, timing

TABLE, ENTRIES, RESULTS = "table.md", "entries.tar.gz", "gpu.json"


def main(
    device: Annotated[str, typer.Option(help="Device: cuda, cuda:1, or cpu to rehearse.")] = "cuda",
    shapes: Annotated[str, typer.Option(help=f"Sizes of models: {FULL} or {TINY}.")] = FULL,
    output: Annotated[Path, typer.Option("-o", help="Folder for the results.")] = Path("build/gpu"),
    only: Annotated[
        str | None, typer.Option(help="Run only these parts: tests,7b.", show_default="all")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Stop after this time.")] = LIMIT_MINUTES,
    target: Annotated[str | None, typer.Option(help="Also measure this target.")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft of --target.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Estimate acceptance of --target on this dataset.")
    ] = None,
    part_name: Annotated[str | None, typer.Option("--part", hidden=True)] = None,
    scratch: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure this program on a GPU."""
    options = Options(device, shapes, *(absolute(name) for name in (target, draft, dataset)))
    if shapes not in (FULL, TINY):
        stop(f"shapes: found {shapes!r}, expected {FULL} or {TINY}", 2)
    if (target is None) != (draft is None):
        stop("found only one of --target and --draft, expected both; name the other too", 2)
    available = {part.name: part for part in [*PARTS, own_part(minutes)]}
    if part_name is not None and scratch is not None:
        run_part(available[part_name], options, scratch)
        return
    names = only.split(",") if only else [part.name for part in PARTS]
    if only is None and target is not None:
        names.append(OWN)
    if unknown := [name for name in names if name not in available]:
        stop(f"only: found {unknown[0]!r}, expected some of {', '.join(available)}", 2)
    if OWN in names and target is None:
        stop("only: found own without a pair; name it with --target and --draft", 2)
    check_device(device)
    check_folder(output)
    # When this run is terminated it ends its part, which would otherwise keep the GPU busy.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    measure_all([available[name] for name in names], options, output, 60 * minutes)


def measure_all(parts: list[Part], options: Options, output: Path, seconds: float) -> None:
    """Run the parts one after another; the output folder is complete after each of them."""
    # Count from the start of the process: importing torch takes up to a minute on a new machine.
    began = time.monotonic() - (time.time() - psutil.Process().create_time())
    if not options.tiny:
        for part in parts:
            print(f"{part.name}: expected {part.expected} s, at most {part.limit} s")
    outcomes: dict[str, Outcome] = {}
    with TemporaryDirectory() as scratch:
        for part in parts:
            left = seconds - (time.monotonic() - began)
            outcomes[part.name] = run_in_time(part, options, output, Path(scratch), left)
            print(f"{part.name}: {outcomes[part.name].state}", flush=True)
            write_results(outcomes, options, output, Path(scratch))
    print(f"\n{(output / TABLE).read_text()}")
    print(f"{time.monotonic() - began:.0f} s; logs, table and {ENTRIES} are in {output}")
    if not all(outcome.is_done for outcome in outcomes.values()):
        raise typer.Exit(1)


def run_part(part: Part, options: Options, scratch: Path) -> None:
    """Run a part in this process.

    Raises:
        typer.Exit: it failed; its record has the reason.
    """
    entries = scratch / "entries"
    entries.mkdir(exist_ok=True)
    record = Record(scratch / f"{part.name}.json", entries)
    if options.tiny:  # the times of a rehearsal do not matter
        timing.LONG_MS, profiler.MAX_MULTIPLE = 0, 1  # each piece of work runs once in a turn
    try:
        device = usable_device(options.device)
        record.note(hardware=hardware(device), software=software(device))
        part.run(record, options)
    except (SequoiaError, RuntimeError) as error:
        under_way = record.under_way
        record.note(error=" ".join(str(error).split())[:300])
        record.under_way = under_way
        if not isinstance(error, SequoiaError):
            raise
        raise typer.Exit(1) from None


def write_results(
    outcomes: dict[str, Outcome], options: Options, output: Path, scratch: Path
) -> None:
    """Write the table, and the archive of files to commit, for all parts so far."""
    rows = table(outcomes)
    (output / TABLE).write_text(rows)
    # From the parts' records: this process would hold GPU memory if it queried the GPU itself.
    machines = [outcome.values for outcome in outcomes.values() if "hardware" in outcome.values]
    if not machines:
        return
    machine = machines[-1]["hardware"]
    results = scratch / "entries" / "benchmarks" / str(machine["slug"])
    results.mkdir(parents=True, exist_ok=True)
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": machine,
        "software": machines[-1]["software"],
        "asked": asdict(options),
        "parts": {name: asdict(outcome) for name, outcome in outcomes.items()},
    }
    (results / RESULTS).write_text(json.dumps(document, indent=2) + "\n")
    (results / "gpu.md").write_text(rows)
    partial = output / f"{ENTRIES}.partial"
    with tarfile.open(partial, "w:gz") as archive:
        for path in sorted((scratch / "entries").rglob("*")):
            if path.is_file():
                archive.add(path, path.relative_to(scratch / "entries"))
    os.replace(partial, output / ENTRIES)


def check_device(device: str) -> None:
    """Stop if the device cannot be used."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        stop(
            f"no NVIDIA GPU: torch {torch.__version__} finds none; run this on a machine with one, "
            "or rehearse with DEVICE=cpu SHAPES=tiny"
        )
    try:
        torch.device(device)
    except RuntimeError:
        stop(f"device: found {device!r}, expected cuda, cuda:1, … or cpu", 2)


def check_folder(output: Path) -> None:
    """Stop if the output folder cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        stop(f"{output}: cannot be written ({error.strerror}); name another folder with OUT=")


def absolute(name: str | None) -> str | None:
    """The absolute path of a file or folder, since parts run in another folder.

    A hub id, which is not a path, is returned unchanged.
    """
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def stop(message: str, status: int = 1) -> None:
    """Print an error in one line and exit."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(main)
