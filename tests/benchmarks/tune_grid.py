"""Every setting of llama.cpp's own speculation, raced: what `tune` has to find with few runs.

Chains of the draft of 1 to 8 guesses at several thresholds, every n-gram kind and plain decoding
decode the same prompts, interleaved. With a JSON document of `tune` beside it, shows how far the
recommended setting is from the fastest one, and how far predictions are off.
Run `python tests/benchmarks/tune_grid.py --help`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sequoia_opt import demo
from sequoia_opt.api import load_dataset
from sequoia_opt.cli.bench_tables import race_table
from sequoia_opt.cli.output import note, progress
from sequoia_opt.engine.cpu import computing_threads
from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.engine.llama_cpp.started_servers import StartedServers
from sequoia_opt.measure.race import race
from sequoia_opt.measure.tune.prompts import prompts_for
from sequoia_opt.measure.tune.tuning import label_of, method_of

GUESSES, THRESHOLDS = range(1, 9), (0.0, 0.3, 0.6)
ENOUGH = 0.97  # of the best speed: what a recommendation has to reach
CLOSE = 0.08  # by which a prediction may be off


def grid(servers: StartedServers) -> list[Speculation]:
    """All settings, plain decoding first."""
    chains = [Speculation(DRAFT, n, t) for n in GUESSES for t in THRESHOLDS]
    return [NO_SPECULATION, *(chains if servers.has_draft else []), *servers.others]


def compare(tuned: dict[str, Any], settings: Sequence[Speculation], speedups: list[float]) -> None:
    """Print the recommended setting beside the best one, and the worst predictions."""
    by_setting = dict(zip(settings, speedups, strict=True))
    best = max(by_setting, key=by_setting.__getitem__)
    chosen = Speculation(**tuned["setting"])
    print(f"\nbest of the grid: {label_of(best)}, {by_setting[best]:.3f}x")
    if chosen in by_setting:
        share = by_setting[chosen] / by_setting[best]
        verdict = "enough" if share >= ENOUGH else f"less than {ENOUGH:.0%}"
        print(f"recommended: {label_of(chosen)}, {by_setting[chosen]:.3f}x, {share:.1%}: {verdict}")
    else:
        print(f"recommended: {label_of(chosen)}, which is not in the grid")
    errors = {}
    for predicted in tuned.get("predictions", []):
        setting = Speculation(DRAFT, predicted["guesses"], predicted["threshold"])
        if setting in by_setting:
            errors[setting] = predicted["speedup"] / by_setting[setting] - 1
    if errors:
        worst = max(errors, key=lambda setting: abs(errors[setting]))
        within = sum(abs(error) <= CLOSE for error in errors.values())
        print(
            f"predictions within {CLOSE:.0%}: {within} of {len(errors)}; the worst is "
            f"{errors[worst]:+.1%}, of {label_of(worst)}"
        )
        if chosen in errors:
            print(f"the recommended setting's prediction: {errors[chosen]:+.1%}")


def main(
    model: Annotated[str | None, typer.Option(help="GGUF file; by default bundled.")] = None,
    draft: Annotated[str | None, typer.Option(help="GGUF file of a draft.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Dataset; by default bundled.")] = None,
    limit: int = 8,
    max_new_tokens: int = 128,
    threads: Annotated[int, typer.Option(help="0 for one for each core.")] = 0,
    repeats: int = 3,
    tuned: Annotated[Path | None, typer.Option(help="What `tune --json` printed.")] = None,
    output: Annotated[Path | None, typer.Option("-o", help="JSON file to write.")] = None,
) -> None:
    """Race the grid, print it from fastest to slowest, and compare it with what `tune` found."""
    if model is None:
        model, draft = demo.TARGET_NAME, draft or demo.DRAFT_NAME
    named = {"target": model} | ({"draft": draft} if draft else {})
    files = {role: demo.resolve(name, "llama.cpp") for role, name in named.items()}
    _, documents = load_dataset(prompts, note)
    with StartedServers(files, Settings(threads or computing_threads())) as servers:
        texts = prompts_for(servers.client, documents, limit, None, note)
        servers.make_room(max(map(len, texts)) + max_new_tokens)
        settings = grid(servers)
        methods = [method_of(servers, setting, label_of(setting)) for setting in settings]
        with progress("racing the grid") as advance:
            results = race(methods, texts, max_new_tokens, repeats, advance).results()
    race_table(sorted(results, key=lambda result: -result.speedup), "the grid", True)
    if output is not None:
        rows = [
            {**asdict(result), "setting": asdict(setting)}
            for setting, result in zip(settings, results, strict=True)
        ]
        output.write_text(json.dumps(rows, indent=1))
    if tuned is not None:
        speedups = [result.speedup for result in results]
        compare(json.loads(tuned.read_text()), settings, speedups)


if __name__ == "__main__":
    typer.run(main)
