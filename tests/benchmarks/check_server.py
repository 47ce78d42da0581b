"""How often `check` passes a healthy llama.cpp server, and whether it finds planted faults.

    python tests/benchmarks/check_server.py --runs 20
    python tests/benchmarks/check_server.py --target big.gguf --draft small.gguf --other other.gguf

Starts servers of llama.cpp (a native `llama-server` on the PATH, or the wheel `xllamacpp`) and
checks them with a seed of its own each time. Faults: a draft that never loads, a draft of another
tokenizer (--other), and a verifier that accepts too much (`--spec-synth-len`, which a native server
has: it accepts guesses by lot). The speed is shown and not judged, since a small pair need not pay.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llama_server_process import llama_server

from sequoia_opt import demo
from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.server_program import ServerOptions, program
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.measure.check.checks import CHECKS, CheckSpec, Report, check
from sequoia_opt.measure.check.server import Server

LOSSLESS = tuple(name for name in CHECKS if name != "speed")


@contextmanager
def started(
    arguments: argparse.Namespace, draft: str | None, extra: Sequence[str] = ()
) -> Iterator[Server]:
    """A server of the target, with a draft or without.

    Args:
        extra: options of a native server, which the wheel does not take.
    """
    speculation = NO_SPECULATION if draft is None else Speculation(DRAFT, arguments.guesses)
    settings = Settings(arguments.threads)
    options = ServerOptions(arguments.target, draft or "", settings, 2048, speculation)
    with llama_server(options, extra) as server:
        yield server


def checked(
    server: Server, baseline: Server | None, arguments: argparse.Namespace, seed: int
) -> Report:
    spec = CheckSpec(
        prompts=demo.prompts()[: arguments.limit],
        samples=arguments.samples,
        seed=seed,
        repeats=1,
        checks=CHECKS if baseline is not None else LOSSLESS,
    )
    return check(server, baseline, spec)


def show(title: str, report: Report, seconds: float) -> None:
    print(f"\n{title} ({seconds:.0f} s), compared with {report.reference or 'nothing'}")
    for finding in report.findings:
        print(f"  {finding.check:<12}{finding.status:<21}{finding.sentence}", flush=True)


def healthy(arguments: argparse.Namespace) -> None:
    """Check a healthy server again and again, in turn against itself and against a baseline."""
    passed: Counter[str] = Counter()
    with started(arguments, arguments.draft) as server, started(arguments, None) as plain:
        for seed in range(arguments.runs):
            baseline = plain if seed % 2 else None
            began = time.monotonic()
            report = checked(server, baseline, arguments, seed)
            if seed < 2:
                show("healthy server", report, time.monotonic() - began)
            judged = [f for f in report.findings if f.check != "speed"]
            passed["all"] += all(f.status == "ok" for f in judged)
            passed.update(f.check for f in report.findings if f.status == "ok")
            for finding in judged:
                if finding.status != "ok":
                    print(f"seed {seed}: {finding.check}: {finding.sentence}", flush=True)
    print(f"\npassed {passed['all']} of {arguments.runs}: {dict(passed)}")


def faulty(arguments: argparse.Namespace) -> None:
    """Check a server with each planted fault, against itself."""
    faults: dict[str, tuple[str | None, Sequence[str]]] = {"a draft that never loads": (None, ())}
    if arguments.other:
        faults["a draft of another tokenizer"] = (arguments.other, ())
    if program().path is not None and "--spec-synth-len" in program().options:
        longer = f"{1 + arguments.guesses * 0.75:g}"
        faults["a verifier that accepts too much"] = (arguments.draft, ("--spec-synth-len", longer))
    else:
        print("no native llama-server with --spec-synth-len: no verifier that accepts too much")
    for title, (draft, extra) in faults.items():
        with started(arguments, draft, extra) as server:
            began = time.monotonic()
            report = checked(server, None, arguments, seed=0)
            found = "found" if report.fails(is_strict=False) else "NOT FOUND"
            show(f"{title}: {found}", report, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default=demo.resolve(demo.TARGET_NAME, "llama.cpp"))
    parser.add_argument("--draft", default=demo.resolve(demo.DRAFT_NAME, "llama.cpp"))
    parser.add_argument("--other", help="a draft of another tokenizer")
    parser.add_argument("--guesses", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--limit", type=int, default=8)
    arguments = parser.parse_args()
    print(
        f"{program().name} {program().version} ({shutil.which('llama-server') or sys.executable})"
    )
    faulty(arguments)
    healthy(arguments)


if __name__ == "__main__":
    main()
