"""The time of each part of a step: `python tests/benchmarks/step.py`.

Decodes held-out prompts with the bundled pair and its trees, and times the parts of a step: the
forward passes of draft and target, drawing guesses, verification, and moving keys and values. The
rest of the step is the loop with its masks and positions. Prints a row for each verifier, with the
share of a step that is overhead.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

from sequoia_opt import demo, load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, VERIFIERS
from sequoia_opt.repository import paths

PARTS = ("draft", "target", "drawing", "verification", "cache")


class Clock:
    """Seconds spent in each part, by name."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._on_cuda = device.type == "cuda"

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, wrapped so that its time is added to the part's."""

        def timed(*arguments: Any, **options: Any) -> Any:
            started = self.now()
            result = function(*arguments, **options)
            self.seconds[part] += self.now() - started
            return result

        return timed

    def now(self) -> float:
        """The time in seconds, after the device has finished its queued work."""
        if self._on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def parts_of_a_step(
    decoder: Decoder, prompts: list[list[int]], new_tokens: int
) -> dict[str, float]:
    """The mean milliseconds of each part of a step and of the whole step, over all prompts."""
    clock, verifier = Clock(decoder.pair.device), decoder.verifier
    target_pass, draft_passes = decoder.step._target_pass, decoder.step._drafter._passes
    methods: list[tuple[str, Any, str]] = [
        ("draft", draft_passes, "run"),
        ("target", target_pass, "score"),
        ("drawing", verifier, "noise"),
        ("drawing", verifier, "draft"),
        ("verification", verifier, "verify"),
        ("cache", target_pass, "accept"),
        ("cache", draft_passes, "accept"),
    ]
    for part, owner, name in methods:
        setattr(owner, name, clock.around(part, getattr(owner, name)))
    steps, sums = 0, dict.fromkeys((*PARTS, "step"), 0.0)
    for run, prompt in enumerate([prompts[0], *prompts]):
        is_warm_up = run == 0
        with decoder.session(conversing=False) as session:
            session.start(prompt, new_tokens)
            clock.seconds.clear()
            started = clock.now()
            while session.length < len(prompt) + new_tokens:
                session.advance()
                if not is_warm_up:
                    steps += 1
        if not is_warm_up:
            clock.seconds["step"] = clock.now() - started
            sums = {part: sums[part] + clock.seconds[part] for part in sums}
    for _, owner, name in methods:
        delattr(owner, name)
    return {part: 1000 * seconds / steps for part, seconds in sums.items()}


def main(
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 8,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode for each prompt.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the sampling verifiers.")
    ] = 0.6,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the forward passes.")
    ] = False,
) -> None:
    """Print the milliseconds of each part of a step and the overhead's share of the step."""
    pair = load_pair(graphs=False)  # a step replayed from a CUDA graph has no parts to time
    if compiled:
        pair.compile()
    prompts = [pair.encode(text) for text in demo.prompts()[:count]]
    print("| verifier | " + " | ".join((*PARTS, "loop", "step")) + " | overhead |")
    print("| --- |" + " ---: |" * (len(PARTS) + 3))
    for name in ("greedy", *VERIFIERS):
        is_greedy = name == "greedy"
        row_temperature = 0.0 if is_greedy else temperature
        tree = TokenTree.load(paths.bundled_tree(row_temperature, compiled))
        verifier = DEFAULT_VERIFIER if is_greedy else name
        decoder = Decoder(pair, tree, row_temperature, verifier=verifier)
        times = parts_of_a_step(decoder, prompts, new_tokens)
        loop = times["step"] - sum(times[part] for part in PARTS)
        overhead = 1 - (times["draft"] + times["target"]) / times["step"]
        cells = [f"{times[part]:.2f}" for part in PARTS] + [f"{loop:.2f}", f"{times['step']:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + f" | {overhead:.1%} |")


if __name__ == "__main__":
    typer.run(main)
