"""The time of each part of a step: `python tests/benchmarks/step.py`.

Decodes held-out prompts with the bundled pair and its trees, or with a plan of yours, and times the
parts of a step: the forward passes of draft and target, drawing guesses, an adaptive plan's
decisions, verification, and moving keys and values. The rest of the step is the loop with its masks
and positions. Prints a row for each verifier, with the shares of a step that are decisions and
overhead, these included.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sequoia_opt import demo, load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.frames import with_room
from sequoia_opt.plan.growth import Growth
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, VERIFIERS
from sequoia_opt.repository import paths

PARTS = ("draft", "target", "drawing", "policy", "verification", "cache")
Method = tuple[str, Any, str]  # a part, an object or class, and the name of its method


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


@with_room
def parts_of_a_step(
    decoder: Decoder, prompts: list[list[int]], new_tokens: int
) -> dict[str, float]:
    """The mean milliseconds of each part of a step and of the whole step, over all prompts."""
    clock = Clock(decoder.pair.device)
    methods = fixed_methods(decoder) if decoder.tree.policy is None else adaptive_methods(decoder)
    untimed = [getattr(owner, name) for _, owner, name in methods]
    for (part, owner, name), method in zip(methods, untimed, strict=True):
        setattr(owner, name, clock.around(part, method))
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
    for (_, owner, name), method in zip(methods, untimed, strict=True):
        setattr(owner, name, method)
    return {part: 1000 * seconds / steps for part, seconds in sums.items()}


def fixed_methods(decoder: Decoder) -> list[Method]:
    """What to time in a step of a fixed tree."""
    target_pass, draft_passes = decoder.step._target_pass, decoder.step._drafter._passes
    return [
        ("draft", draft_passes, "run"),
        ("target", target_pass, "score"),
        ("drawing", decoder.verifier, "noise"),
        ("drawing", decoder.verifier, "draft"),
        ("verification", decoder.verifier, "verify"),
        ("cache", target_pass, "accept"),
        ("cache", draft_passes, "accept"),
    ]


def adaptive_methods(decoder: Decoder) -> list[Method]:
    """What to time in a step of a tree that grows."""
    step = decoder.step
    drafter, target_passes = step._drafter, step._target_passes
    draft_passes = drafter._source._passes
    draft = "likeliest" if drafter._source._matches else "run"
    return [
        ("draft", draft_passes, draft),
        ("target", target_passes, "run"),
        ("drawing", drafter.rule, "guess"),
        *(("policy", Growth, name) for name in ("__init__", "next_level", "add", "finish")),
        ("verification", step, "_verify"),
        ("cache", target_passes, "accept"),
        ("cache", draft_passes, "accept"),
    ]


def bundled_trees(temperature: float, compiled: bool) -> Iterator[tuple[str, TokenTree]]:
    """The machine's trees for the bundled pair: greedy, and with each verifier that runs them."""
    yield "greedy", TokenTree.load(paths.bundled_tree(0.0, compiled))
    for name, verifier in VERIFIERS.items():
        tree = TokenTree.load(paths.bundled_tree(temperature, compiled))
        if tree.policy is None or verifier.has_rates:
            yield name, tree


def own_tree(path: Path) -> tuple[str, TokenTree]:
    """A plan, and the verifier that it is for."""
    tree = TokenTree.load(path)
    is_greedy = tree.metadata.get("temperature", 0.0) == 0
    return "greedy" if is_greedy else tree.metadata.get("verifier", DEFAULT_VERIFIER), tree


def main(
    plan: Annotated[
        Path | None, typer.Argument(help="A plan of yours; by default the machine's bundled ones.")
    ] = None,
    *,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 8,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode for each prompt.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the sampling verifiers.")
    ] = 0.6,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the forward passes.")
    ] = False,
) -> None:
    """Print the milliseconds of each part of a step, and the shares that are overhead."""
    pair = load_pair(graphs=False)  # a step replayed from a CUDA graph has no parts to time
    if compiled:
        pair.compile()
    prompts = [pair.encode(text) for text in demo.prompts()[:count]]
    print("| verifier | " + " | ".join((*PARTS, "loop", "step")) + " | policy | overhead |")
    print("| --- |" + " ---: |" * (len(PARTS) + 4))
    for name, tree in bundled_trees(temperature, compiled) if plan is None else [own_tree(plan)]:
        is_greedy = name == "greedy"
        verifier = DEFAULT_VERIFIER if is_greedy else name
        own = temperature if plan is None else tree.metadata.get("temperature", 0.0)
        decoder = Decoder(pair, tree, 0.0 if is_greedy else own, verifier=verifier)
        times = parts_of_a_step(decoder, prompts, new_tokens)
        loop = times["step"] - sum(times[part] for part in PARTS)
        policy = times["policy"] / times["step"]
        overhead = 1 - (times["draft"] + times["target"]) / times["step"]
        cells = [f"{times[part]:.2f}" for part in PARTS] + [f"{loop:.2f}", f"{times['step']:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + f" | {policy:.1%} | {overhead:.1%} |")


if __name__ == "__main__":
    typer.run(main)
