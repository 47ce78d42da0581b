"""Measured and predicted step time by context length: `python tests/benchmarks/contexts.py`.

Profiles a pair to get the overhead, then times whole steps of a few trees, interleaved with the
forward passes of those steps. Prints the measured and the predicted time, the prediction error and
the overhead's share of a step. On CUDA it also prints how fast plain decoding reads the target's
weights, as a share of the memory bandwidth. The pair is the bundled one or, with `--shape 7b`, a
7B-shaped pair with random weights, since latency does not depend on their values.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from random_models import write_configs
from rates import memory_rate, weights_read

from sequoia_opt import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure import profiler
from sequoia_opt.measure.forwards import fill, forwards_to_time
from sequoia_opt.measure.repeated_step import RepeatedStep
from sequoia_opt.measure.timing import Rounds, Timed
from sequoia_opt.plan import shapes
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import AUTOREGRESSIVE

TREES = {
    "plain": AUTOREGRESSIVE,
    "chain, 6": shapes.chain(6),
    "4 x 5": shapes.k_sequences(4, 5),
    "binary, 5 deep": shapes.k_ary(2, 5),
}
TEMPERATURES = (0.0, 0.6)


def random_pair() -> Pair:
    """A 7B-shaped Llama target and a 68M-shaped draft with random weights, in bfloat16."""
    with TemporaryDirectory() as folder:
        folders = write_configs(Path(folder), "llama-2-7b", "llama-68m")
        return load_pair(*folders, dtype="bfloat16", random_weights=True)


@torch.inference_mode()
def print_steps(pair: Pair, profile: LatencyProfile, context: int, repeats: int) -> None:
    """Time whole steps, interleaved with their forward passes; print a row for each tree."""
    sizes = sorted({n for tree in TREES.values() for n in (tree.size, *draft_passes(tree))})
    filled = replace(fill(pair, context, sizes[-1]), tokens=sizes)
    forwards = forwards_to_time(pair, filled, [context])
    steps = {
        (temperature, name): Timed(
            RepeatedStep(Decoder(pair, tree, temperature), filled.as_text, context)
        )
        for temperature in TEMPERATURES
        for name, tree in TREES.items()
    }
    Rounds(pair.machine, repeats, warm_up=1).run([*forwards.values(), *steps.values()])
    forward_ms = {point: float(np.median(timed.times)) for point, timed in forwards.items()}
    for (temperature, name), timed in steps.items():
        tree = TREES[name]
        measured_ms = float(np.median(timed.times))
        forwards_ms = forward_ms["target", 1, context, tree.size]
        forwards_ms += sum(forward_ms["draft", 1, context, width] for width in draft_passes(tree))
        overhead = profile.overhead_for("greedy" if temperature == 0 else "sequoia")
        predicted_ms = forwards_ms + overhead.at(tree.size, len(draft_passes(tree)))
        print(
            f"| {context} | {temperature:g} | {name} | {measured_ms:.2f} | {predicted_ms:.2f} | "
            f"{predicted_ms / measured_ms - 1:+.1%} | {1 - forwards_ms / measured_ms:.1%} |"
        )


def print_bandwidth(pair: Pair, profile: LatencyProfile) -> None:
    """Print how fast plain decoding reads the target's weights, against the bandwidth of a copy."""
    weights, copy_rate = weights_read(pair.target), memory_rate(pair.device)
    context = profile.target.curves[0].context
    read_rate = weights / StepTimes(profile, "greedy", {context: 1}).plain_ms[0] / 1e6
    print(
        f"plain decoding reads {weights / 1e9:.2f} GB of weights per token at {read_rate:.0f} GB/s,"
        f" {read_rate / copy_rate:.0%} of the {copy_rate:.0f} GB/s of a copy within memory"
    )


def main(
    shape: Annotated[str, typer.Option(help="Pair to measure: bundled or 7b.")] = "bundled",
    contexts: Annotated[str, typer.Option(help="Context lengths.")] = "128,1024,4096",
    repeats: Annotated[int, typer.Option(help="Steps to time of each tree.")] = 15,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the forward passes.")
    ] = False,
) -> None:
    """Print measured and predicted step times by context length."""
    pair = load_pair() if shape == "bundled" else random_pair()
    if compiled:
        pair.compile()
    lengths = [int(length) for length in contexts.split(",")]
    sizes = [1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    options = profiler.ProfileOptions(tokens=sizes, contexts=lengths, repeats=repeats)
    profile = profiler.profile(pair, options)
    print(
        "| context | temperature | tree | measured, ms | predicted, ms | prediction error "
        "| overhead |"
    )
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for context in lengths:
        print_steps(pair, profile, context, repeats)
    if pair.device.type == "cuda":
        print_bandwidth(pair, profile)


if __name__ == "__main__":
    typer.run(main)
