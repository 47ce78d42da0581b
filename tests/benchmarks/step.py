"""Where a step's time goes: `python tests/benchmarks/step.py`.

Decodes held-out prompts with the bundled pair and its trees, with a clock around each part of a
step: the draft's forwards, the target's, drawing guesses, verification, moving keys and values;
the rest is the loop, its masks and positions. Prints a row for each verifier, and what of a step
is no forward.
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
        """The function, its time added to the part's."""

        def timed(*arguments: Any, **options: Any) -> Any:
            started = self.now()
            found = function(*arguments, **options)
            self.seconds[part] += self.now() - started
            return found

        return timed

    def now(self) -> float:
        """The time, once the device has done what it was given."""
        if self._on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def parts_of_a_step(
    decoder: Decoder, prompts: list[list[int]], new_tokens: int
) -> dict[str, float]:
    """Milliseconds of a step's parts and of the whole, on average over all prompts."""
    clock, verifier = Clock(decoder.pair.device), decoder.verifier
    target_pass, draft_passes = decoder.step._target_pass, decoder.step._drafter._passes
    watched: list[tuple[str, Any, str]] = [
        ("draft", draft_passes, "run"),
        ("target", target_pass, "score"),
        ("drawing", verifier, "noise"),
        ("drawing", verifier, "draft"),
        ("verification", verifier, "verify"),
        ("cache", target_pass, "accept"),
        ("cache", draft_passes, "accept"),
    ]
    for part, owner, name in watched:
        setattr(owner, name, clock.around(part, getattr(owner, name)))
    steps, sums = 0, dict.fromkeys((*PARTS, "step"), 0.0)
    for place, prompt in enumerate([prompts[0], *prompts]):
        with decoder.session(conversing=False) as session:
            session.start(prompt, new_tokens)
            clock.seconds.clear()
            started = clock.now()
            while session.length < len(prompt) + new_tokens:
                session.advance()
                steps += place > 0  # the first prompt is for warming up
        if place:
            clock.seconds["step"] = clock.now() - started
            sums = {part: sums[part] + clock.seconds[part] for part in sums}
    for _, owner, name in watched:
        delattr(owner, name)
    return {part: 1000 * seconds / steps for part, seconds in sums.items()}


def main(
    count: Annotated[int, typer.Option(help="Prompts.")] = 8,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each.")] = 128,
    temperature: Annotated[float, typer.Option(help="Of the sampling verifiers.")] = 0.6,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the forwards.")] = False,
) -> None:
    """Print the table: milliseconds, and the share of a step that is no forward."""
    pair = load_pair(graphs=False)  # what is replayed as a whole has no parts to time
    if compiled:
        pair.compile()
    prompts = [pair.encode(text) for text in demo.prompts()[:count]]
    print("| verifier | " + " | ".join((*PARTS, "loop", "step")) + " | no forward |")
    print("| --- |" + " ---: |" * (len(PARTS) + 3))
    for name in ("greedy", *VERIFIERS):
        own = 0.0 if name == "greedy" else temperature
        tree = TokenTree.load(paths.bundled_tree(own, compiled))
        verifier = DEFAULT_VERIFIER if name == "greedy" else name
        decoder = Decoder(pair, tree, own, verifier=verifier)
        times = parts_of_a_step(decoder, prompts, new_tokens)
        loop = times["step"] - sum(times[part] for part in PARTS)
        rest = 1 - (times["draft"] + times["target"]) / times["step"]
        cells = [f"{times[part]:.2f}" for part in PARTS] + [f"{loop:.2f}", f"{times['step']:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + f" | {100 * rest:.1f} % |")


if __name__ == "__main__":
    typer.run(main)
