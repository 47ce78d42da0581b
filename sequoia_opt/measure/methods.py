"""The methods that a benchmark compares: this program's engine, and the engine's own library.

Each takes a prompt's tokens and a number of new tokens, ignores end-of-text tokens, and counts in
the same way. Knows nothing of how methods are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.progress import Progress, no_progress
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree

GREEDY = Sampling()
ASSISTED_GUESSES = (2, 3, 4, 5, 6, 8, 10, 14)  # per step; the fastest is looked for among these


@dataclass(frozen=True)
class Run:
    """One prompt decoded once.

    Attributes:
        tokens: the new tokens.
        steps: forward passes of the target after prefill.
        verified: tokens that these steps yielded, including those past the requested length.
        seconds: time of these steps.
        timed: number of tokens that came in that time; prefill yields the first token.
    """

    tokens: list[int]
    steps: int
    verified: int
    seconds: float
    timed: int


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        run: takes a prompt's tokens and the number of new tokens.
        nodes: size of its tree, of an adaptive plan's largest one; 0 without a tree.
    """

    name: str
    run: Callable[[list[int], int], Run]
    nodes: int = 0


def with_tree(
    pair: Pair, name: str, tree: TokenTree, endless: bool = False, **options: Any
) -> Method:
    """Decoding with this program's engine.

    Args:
        endless: also count the tokens that the last step yields past the requested length, as if
            the text went on.
        options: passed to `Decoder`.
    """
    decoder = Decoder(pair, tree, **options)

    def run(prompt: list[int], new_tokens: int) -> Run:
        generation = decoder.generate(prompt, new_tokens, ignore_eos=True)
        timed = generation.verified if endless else len(generation.tokens) - 1
        return Run(
            generation.tokens, generation.steps, generation.verified, generation.seconds, timed
        )

    return Method(name, run, tree.largest_size)


def with_library(
    pair: Pair,
    name: str,
    speculation: Speculation = NO_SPECULATION,
    sampling: Sampling = GREEDY,
) -> Method:
    """Decoding with the engine's own library, see `Library.generate`."""

    def run(prompt: list[int], new_tokens: int) -> Run:
        decoded = pair.library.generate(prompt, new_tokens, sampling, speculation)
        return Run(decoded.tokens, decoded.steps, decoded.timed, decoded.seconds, decoded.timed)

    return Method(name, run)


def best_guesses(
    pair: Pair,
    prompts: Sequence[list[int]],
    new_tokens: int,
    progress: Progress = no_progress,
    sampling: Sampling = GREEDY,
) -> int:
    """The number of guesses per step with which the library's speculation with the draft is
    fastest on these prompts."""
    seconds = {}
    for number, guesses in enumerate(ASSISTED_GUESSES, start=1):
        method = with_library(pair, "draft", Speculation(DRAFT, guesses), sampling)
        runs = [method.run(prompt, new_tokens) for prompt in prompts]
        seconds[guesses] = sum(run.seconds / run.timed for run in runs if run.timed)
        progress(number, len(ASSISTED_GUESSES))
    best: int = pair.world.agree_on(min(seconds, key=seconds.__getitem__))
    return best
