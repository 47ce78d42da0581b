"""The time of a step outside llama.cpp: `python tests/benchmarks/llama_cpp_overhead.py`.

Decodes held-out prompts with plain decoding, a chain of 5 guesses and 6 sequences of 2, and takes
the time of `llama_decode` off each step's. It counts the processor time of the thread that decodes,
which takes part in llama.cpp's work, so that other work on the machine hardly matters; the forward
passes are real, so that they leave the processor's caches as in use. Prints a row for each plan.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sequoia_opt import demo
from sequoia_opt.demo.gguf import gguf_of
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.llama_cpp.library import bindings
from sequoia_opt.engine.load import load_pair
from sequoia_opt.plan import shapes

PLANS = {
    "plain": shapes.chain(1),
    "chain of 5": shapes.chain(6),
    "6 sequences of 2": shapes.k_sequences(6, 2),
}


class Forwards:
    """`llama_decode`, and the milliseconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.ms = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Run a forward pass."""
        started = time.thread_time_ns()
        code = self._function(*arguments)
        self.ms += (time.thread_time_ns() - started) / 1e6
        return code


def step_times(
    decoder: Decoder, forwards: Forwards, prompts: list[list[int]], new_tokens: int
) -> tuple[list[float], list[float]]:
    """Each step's milliseconds outside of `llama_decode`, and in it."""
    outside, inside = [], []
    for prompt in prompts:
        stream = iter(decoder.stream(prompt, new_tokens, ignore_eos=True))
        next(stream)  # the prompt's
        forwards.ms, started = 0.0, time.thread_time_ns()
        for _ in stream:
            elapsed = (time.thread_time_ns() - started) / 1e6
            outside.append(elapsed - forwards.ms)
            inside.append(forwards.ms)
            forwards.ms, started = 0.0, time.thread_time_ns()
    return outside, inside


def main(
    target: Annotated[Path | None, typer.Option(help="GGUF file; by default bundled.")] = None,
    draft: Annotated[Path | None, typer.Option(help="GGUF file; by default bundled.")] = None,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 4,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode for each prompt.")] = 64,
    temperatures: Annotated[str, typer.Option(help="Temperatures.")] = "0,0.6",
    verifier: Annotated[str, typer.Option(help="Verifier above temperature 0.")] = "sequoia",
    threads: Annotated[int, typer.Option(help="Threads of llama.cpp.")] = 1,
) -> None:
    """Print the milliseconds of a step outside of `llama_decode`, as medians, and their share."""
    forwards = Forwards(bindings().llama_decode)
    bindings().llama_decode = forwards
    files = (target or gguf_of("target"), draft or gguf_of("draft"))
    pair = load_pair(*files, engine_options={"threads": threads})
    prompts = [pair.encode(text)[:100] for text in demo.prompts()[:count]]
    print("| temperature | plan | outside, ms | llama_decode, ms | share |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for temperature in map(float, temperatures.split(",")):
        for name, tree in PLANS.items():
            decoder = Decoder(pair, tree, temperature, verifier=verifier)
            step_times(decoder, forwards, prompts[:1], new_tokens)  # warm up
            outside, inside = map(
                statistics.median, step_times(decoder, forwards, prompts, new_tokens)
            )
            share = outside / (outside + inside)
            cells = [f"{temperature:g}", name, f"{outside:.3f}", f"{inside:.2f}", f"{share:.1%}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
