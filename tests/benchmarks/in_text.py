"""What passes and steps take within texts, and what a profile says of them: `in_text.py PLAN`.

Decodes prompts with an adaptive plan and without one, and profiles the pair between the texts, so
that both meet the same state of the machine. Prints the mean milliseconds of the target's passes by
size, and of whole steps, with how far the profile is off.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from step import adaptive_methods, own_tree

from sequoia_opt import demo, load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.stream import Stream
from sequoia_opt.frames import with_room
from sequoia_opt.measure.interleaved import Interleaved
from sequoia_opt.measure.timing import clipped_mean
from sequoia_opt.plan.latency import LatencyProfile, overhead_name
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.repository import paths

TIMED_SIZES = 16  # nodes of the largest pass that is profiled


class Passes:
    """The forward passes of an adaptive plan's steps.

    Attributes:
        target_ms: milliseconds of the target's passes by size.
        widths: nodes of the draft's passes but the first of each step.
        lacked: tokens besides the root that each step's first draft pass read.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Note every pass that the decoder makes from now on."""
        self._decoder = decoder
        self.clear()
        for part, owner, name in adaptive_methods(decoder):
            if part in ("draft", "target"):
                setattr(owner, name, self._noting(part, getattr(owner, name)))

    def clear(self) -> None:
        """Forget what was noted."""
        self.target_ms: dict[int, list[float]] = defaultdict(list)
        self.widths: list[int] = []
        self.lacked: list[int] = []
        self._is_first = True

    def _noting(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tokens: list[int], parents: list[int], rows: int, *others: Any) -> Any:
            started = time.perf_counter()
            result = method(tokens, parents, rows, *others)
            if part == "target":
                self.target_ms[rows].append(1000 * (time.perf_counter() - started))
            elif self._is_first:
                self.lacked.append(len(tokens) - 1)
            else:
                self.widths.append(len(tokens))
            self._is_first = part == "target"
            return result

        return noted

    def predicted_ms(self, times: PolicyTimes) -> float:
        """What the steps take by a profile, all together."""
        sizes = [size for size, taken in self.target_ms.items() for _ in taken]
        return float(
            times.target_ms[0, sizes].sum()
            + times.draft_ms[0, self.widths].sum()
            + times.first_ms[0, self.lacked].sum()
        )


def step_ms(decoder: Decoder, prompt: list[int], new_tokens: int) -> tuple[float, int]:
    """Milliseconds of all steps of a text but its prompt, and how many they are."""
    with decoder.session(conversing=False) as session:
        steps = iter(Stream(decoder, session, prompt, new_tokens, ignore_eos=True, stop=()))
        next(steps)
        started = time.perf_counter()
        count = sum(1 for _ in steps)
        return 1000 * (time.perf_counter() - started), count


def main(
    plan: Annotated[
        Path | None, typer.Argument(help="An adaptive plan; by default the machine's bundled one.")
    ] = None,
    *,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 40,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode for each prompt.")] = 96,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the forward passes.")
    ] = False,
) -> None:
    """Print what passes and steps take in texts and by a profile, and how far that is off."""
    pair = load_pair(graphs=False)
    if compiled:
        pair.compile()
    verifier, tree = own_tree(plan or paths.bundled_tree(0.0, compiled))
    if tree.policy is None:
        raise typer.BadParameter(f"{plan}: is no adaptive plan")
    sampling = (
        Sampling(0.0)
        if verifier == "greedy"
        else Sampling(tree.metadata["temperature"], verifier=verifier)
    )
    compare(
        pair, tree, sampling, [pair.encode(text) for text in demo.prompts()[:count]], new_tokens
    )


@with_room
def compare(
    pair: Pair, tree: TokenTree, sampling: Sampling, prompts: list[list[int]], new_tokens: int
) -> None:
    """Decode and profile in turn, and print the table."""
    adaptive, plain = (Decoder(pair, shape, **asdict(sampling)) for shape in (tree, AUTOREGRESSIVE))
    passes = Passes(adaptive)
    context = round(float(np.mean([len(prompt) for prompt in prompts])) + new_tokens / 2)
    largest = max(TIMED_SIZES, tree.largest_size)
    between = Interleaved(pair, range(1, largest + 1), context, sampling, adaptive=True)
    taken = dict.fromkeys(("adaptive", "plain"), (0.0, 0))
    for number, prompt in enumerate([prompts[0], *prompts]):
        for name, decoder in (("adaptive", adaptive), ("plain", plain)):
            with torch.inference_mode():
                milliseconds, steps = step_ms(decoder, prompt, new_tokens)
            taken[name] = taken[name][0] + milliseconds, taken[name][1] + steps
        if number == 0:  # warms up
            passes.clear()
            taken = dict.fromkeys(taken, (0.0, 0))
            continue
        between.round()
    like = LatencyProfile.load(paths.bundled_profile())
    profile, overhead = between.profile(like), overhead_name(sampling)
    times = PolicyTimes(profile, overhead, {context: 1.0})
    plain_ms = float(StepTimes(profile, overhead, {context: 1.0}).plain_ms[0])
    curve = profile.target.of_batch(1)[0]
    print("| | count | in texts, ms | by the profile | off by |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for size, milliseconds in sorted(passes.target_ms.items()):
        row(f"target pass of {size}", len(milliseconds), clipped_mean(milliseconds),
            float(np.interp(size, curve.tokens, curve.mean_ms)))  # fmt: skip
    total_ms, steps = taken["adaptive"]
    row("adaptive step", steps, total_ms / steps, passes.predicted_ms(times) / steps)
    total_ms, steps = taken["plain"]
    row("plain step", steps, total_ms / steps, plain_ms)


def row(name: str, count: int, measured: float, predicted: float) -> None:
    """Print a row of the table."""
    off = predicted / measured - 1
    print(f"| {name} | {count} | {measured:.3f} | {predicted:.3f} | {off:+.1%} |")


if __name__ == "__main__":
    typer.run(main)
