"""Plain decoding in both engines beside llama-bench: `python tests/benchmarks/plain.py`.

Decodes 64 tokens behind 64 others, the engines taking turns, and prints each round's median
milliseconds of a token, and the ratios to llama.cpp's in this program. Takes llama-bench's
generation at the same depth with it where that is on the path.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sequoia_opt.demo.gguf import gguf_of
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.load import load_pair
from sequoia_opt.frames import with_room

TOKENS = 64
OURS = "llama.cpp, here"


def decoding(decoder: Decoder) -> Callable[[], float]:
    """What decodes a text, and returns the median milliseconds of a token."""
    prompt = list(range(5, 5 + TOKENS))

    @with_room
    def run() -> float:
        times = []
        with decoder.session(conversing=False) as session:
            session.start(prompt, TOKENS + 1)
            for _ in range(TOKENS):
                started = time.perf_counter()
                session.advance()
                times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)

    return run


def llama_bench(target: Path, threads: int) -> Callable[[], float]:
    """What runs llama-bench, and returns its milliseconds of a token."""
    options = {"-m": target, "-n": TOKENS, "-p": 0, "-d": TOKENS, "-t": threads, "-r": 3}
    command = ["llama-bench", *[str(part) for pair in options.items() for part in pair]]

    def run() -> float:
        output = subprocess.run([*command, "-o", "json"], capture_output=True, check=True).stdout
        [row] = json.loads(output)
        return statistics.median(ns / TOKENS / 1e6 for ns in row["samples_ns"])

    return run


def main(
    target: Annotated[Path | None, typer.Option(help="GGUF file; by default bundled.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of each engine.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 7,
    torch: Annotated[bool, typer.Option(help="Take torch along, compiled, in float32.")] = True,
) -> None:
    """Print a row for each round, and the medians."""
    file = target or gguf_of("target")
    options = {"threads": threads}
    pair = load_pair(file, "lookup", engine="llama.cpp", engine_options=options)
    runs = {OURS: decoding(Decoder(pair))}
    if torch:
        compiled = load_pair(
            file, "lookup", "cpu", "float32", engine="torch", engine_options=options
        )
        compiled.compile(["target"])
        runs["torch"] = decoding(Decoder(compiled))
    if shutil.which("llama-bench"):
        runs["llama-bench"] = llama_bench(file, threads)
    for run in runs.values():
        run()
    others = [name for name in runs if name != OURS]
    print("| round | " + " | ".join([*(f"{name}, ms" for name in runs), *others]) + " |")
    print("| --- |" + " ---: |" * (len(runs) + len(others)))
    rows = []
    for number in range(1, rounds + 1):
        times = {name: run() for name, run in runs.items()}
        rows.append([*times.values(), *(times[name] / times[OURS] for name in others)])
        print(row_of(str(number), rows[-1], len(runs)), flush=True)
    print(
        row_of(
            "median", [statistics.median(column) for column in zip(*rows, strict=True)], len(runs)
        )
    )


def row_of(name: str, numbers: list[float], times: int) -> str:
    """A row of the table: milliseconds, then ratios."""
    cells = [f"{number:.2f}" + ("" if i < times else "x") for i, number in enumerate(numbers)]
    return "| " + " | ".join([name, *cells]) + " |"


if __name__ == "__main__":
    typer.run(main)
