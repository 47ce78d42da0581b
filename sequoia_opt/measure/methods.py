"""The methods that a benchmark compares: this program's engine, and transformers' own.

Each takes a prompt's tokens and a number of new tokens, ignores end-of-text tokens, and counts in
the same way. Knows nothing of how methods are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.torch import library
from sequoia_opt.measure.progress import Progress, no_progress
from sequoia_opt.plan.tree import TokenTree

ASSISTED_GUESSES = (2, 3, 4, 5, 6, 8, 10, 14)  # per step; the fastest is looked for among these
LOOKUP_GUESSES = 10  # tokens that prompt lookup guesses, as in transformers' documentation


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
        nodes: size of its tree; 0 without a tree.
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

    return Method(name, run, tree.size)


def with_generate(
    pair: Pair,
    name: str = "transformers generate",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Method:
    """Decoding with transformers' own `generate`, on the unmodified target."""
    return _with_transformers(pair, name, _sampling_options(temperature, top_p, top_k, min_p))


def with_prompt_lookup(
    pair: Pair,
    name: str = "prompt lookup",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Method:
    """transformers' prompt lookup: guesses what followed the last tokens earlier in the text."""
    sampling = _sampling_options(temperature, top_p, top_k, min_p)
    options = {**sampling, "prompt_lookup_num_tokens": LOOKUP_GUESSES}
    return _with_transformers(pair, name, options)


def with_assistant(
    pair: Pair,
    name: str = "assisted generation",
    temperature: float = 0.0,
    top_p: float = 1.0,
    guesses: int | None = None,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Method:
    """transformers' assisted generation, with the same draft.

    Args:
        guesses: tokens drafted in each step; by default transformers' own number, and fewer where
            the draft is not confident.
    """
    assistant_options: dict[str, Any] = {}
    if guesses is not None:
        assistant_options = dict(
            num_assistant_tokens=guesses,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
    sampling = _sampling_options(temperature, top_p, top_k, min_p)
    return _with_transformers(pair, name, sampling, assistant_options)


def best_guesses(
    pair: Pair,
    prompts: Sequence[list[int]],
    new_tokens: int,
    progress: Progress = no_progress,
    **options: Any,
) -> int:
    """The number of guesses per step with which assisted generation is fastest on these prompts.

    Args:
        options: passed to `with_assistant`.
    """
    seconds = {}
    for number, guesses in enumerate(ASSISTED_GUESSES, start=1):
        method = with_assistant(pair, guesses=guesses, **options)
        runs = [method.run(prompt, new_tokens) for prompt in prompts]
        seconds[guesses] = sum(run.seconds / run.timed for run in runs if run.timed)
        progress(number, len(ASSISTED_GUESSES))
    best: int = pair.world.agree_on(min(seconds, key=seconds.__getitem__))
    return best


def _sampling_options(temperature: float, top_p: float, top_k: int, min_p: float) -> dict[str, Any]:
    """The options of transformers' `generate` for this sampling."""
    if temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        **({"min_p": min_p} if min_p else {}),
    }


def _with_transformers(
    pair: Pair,
    name: str,
    options: dict[str, Any],
    assistant_options: dict[str, Any] | None = None,
) -> Method:
    """Decoding with transformers; see `library.generate` for the options."""

    def run(prompt: list[int], new_tokens: int) -> Run:
        decoded = library.generate(pair, prompt, new_tokens, options, assistant_options)
        return Run(decoded.tokens, decoded.steps, decoded.timed, decoded.seconds, decoded.timed)

    return Method(name, run)
