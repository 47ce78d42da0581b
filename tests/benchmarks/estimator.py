"""The cost of teacher-forced estimation: `python tests/benchmarks/estimator.py`.

Times the estimate, for one sampling setting and for several in one pass, interleaved with the two
models' batched forward passes over the same tokens. Then prints the expected tokens per step of a
few trees by one vector of rates, by rates for each depth, and by replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
import torch
import typer

from sequoia_opt.api import load_dataset, load_pair
from sequoia_opt.engine.model import reserved
from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.measure.sample_texts import prepare_texts
from sequoia_opt.plan import shapes
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree

FORWARDS = "forward passes alone"
SETTINGS = {
    "greedy": [Sampling()],
    "sequoia at 0.6": [Sampling(0.6)],
    "greedy, sequoia at 0.6 and 1": [Sampling(), Sampling(0.6), Sampling(1.0)],
    "greedy, three temperatures, two verifiers": [
        Sampling(),
        *(
            Sampling(temperature, 1.0, verifier)
            for temperature in (0.3, 0.6, 1.0)
            for verifier in ("sequoia", "topk")
        ),
    ],
}
TREES: dict[str, TokenTree] = {
    "chain of 6": shapes.chain(6),
    "binary, 3 deep": shapes.k_ary(2, 3),
    "4 sequences of 8": shapes.k_sequences(4, 8),
}


@torch.inference_mode()
def forwards(pair: Pair, batches: list[list[list[int]]]) -> None:
    """Run both models over the texts, in the estimator's batches and chunks."""
    for rows in batches:
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        for runner in (pair.target, pair.draft):
            with reserved(runner, longest, len(rows)) as cache:
                for _ in runner.read(cache, tokens.to(pair.device), keep=0):
                    pass


def main(
    repeats: Annotated[int, typer.Option(help="Timed rounds; medians are printed.")] = 5,
    new_tokens: Annotated[int, typer.Option(help="Tokens to take from each document.")] = 256,
) -> None:
    """Print the times of the estimates and the trees' expected tokens per step."""
    pair = load_pair()
    name, documents = load_dataset()
    options = EstimateOptions(max_new_tokens=new_tokens, teacher_forced=True, depths=8)
    prepared = prepare_texts(
        pair,
        documents,
        max_new_tokens=new_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        teacher_forced=True,
    )
    texts = sorted(prepared, key=lambda text: len(text.prompt))
    rows = [text.prompt + text.text for text in texts]
    batches = [rows[i : i + options.batch] for i in range(0, len(rows), options.batch)]
    runs: dict[str, Callable[[], object]] = {FORWARDS: lambda: forwards(pair, batches)}
    for label, settings in SETTINGS.items():
        runs[label] = partial(estimate, pair, documents, name, settings, options)
    times: dict[str, list[float]] = {label: [] for label in runs}
    for round_index in range(repeats + 1):
        for label, run in runs.items():
            started = time.perf_counter()
            run()
            if round_index > 0:  # the first round warms up
                times[label].append(time.perf_counter() - started)
    print(f"{sum(map(len, rows))} tokens of {len(rows)} documents\n")
    print("| teacher-forced | seconds | ratio |\n| --- | ---: | ---: |")
    forwards_seconds = float(np.median(times[FORWARDS]))
    for label, samples in times.items():
        seconds = float(np.median(samples))
        print(f"| {label} | {seconds:.2f} | {seconds / forwards_seconds:.2f} |")

    (measured,) = estimate(pair, documents, name, [Sampling()], options)
    by_depth, measured.by_depth = measured.by_depth, None
    print("\n| tokens per step | one vector | by depth | replayed |\n| --- | ---: | ---: | ---: |")
    for label, tree in TREES.items():
        by_one_vector = measured.expected_tokens(tree)
        measured.by_depth = by_depth
        print(
            f"| {label} | {by_one_vector:.3f} | {measured.expected_tokens(tree):.3f} "
            f"| {measured.replayed_tokens(tree):.3f} |"
        )
        measured.by_depth = None


if __name__ == "__main__":
    typer.run(main)
