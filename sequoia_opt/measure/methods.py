"""Ways to decode, to be set side by side: this program's engine, and transformers' own.

Each takes the tokens of a prompt and how many new ones are wanted, goes on past end-of-text
tokens, and counts in the same way. Knows nothing of how they are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.pair import Pair
from sequoia_opt.plan.tree import TokenTree

GUESSES = (2, 3, 4, 5, 6, 8, 10, 14)  # of assisted generation, to find the best number among
LOOKED_UP = 10  # tokens that prompt lookup guesses, as in the library's documentation


@dataclass(frozen=True)
class Run:
    """One prompt decoded once.

    Attributes:
        tokens: the new ones.
        steps: target forwards after the prompt's.
        verified: tokens that these steps yielded, those past the wanted length included.
        seconds: time of these steps.
        timed: how many of the tokens came in that time: the prompt's forward yields the first.
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
        run: prompt ids and number of new tokens -> Run.
        nodes: of its tree; 0 where it has none.
    """

    name: str
    run: Callable[[list[int], int], Run]
    nodes: int = 0


def with_tree(
    pair: Pair, name: str, tree: TokenTree, endless: bool = False, **options: Any
) -> Method:
    """Decoding with this program's engine.

    Args:
        endless: count the tokens of the last step that are past the wanted length too, as in a
            text that goes on.
    """
    decoder = Decoder(pair, tree, **options)

    def run(prompt: list[int], new_tokens: int) -> Run:
        found = decoder.generate(prompt, new_tokens, ignore_eos=True)
        timed = found.verified if endless else len(found.tokens) - 1
        return Run(found.tokens, found.steps, found.verified, found.seconds, timed)

    return Method(name, run, tree.size)


def with_generate(
    pair: Pair,
    name: str = "transformers generate",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Method:
    """Decoding with transformers' own `generate`, on the target as the library loads it."""
    return _by_library(pair, name, _sampled(temperature, top_p, top_k, min_p))


def with_prompt_lookup(
    pair: Pair,
    name: str = "prompt lookup",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Method:
    """transformers' speculation without a draft: what followed the last words before."""
    sampling = _sampled(temperature, top_p, top_k, min_p)
    return _by_library(pair, name, sampling, prompt_lookup_num_tokens=LOOKED_UP)


def with_assistant(
    pair: Pair,
    name: str = "assisted generation",
    temperature: float = 0.0,
    top_p: float = 1.0,
    guesses: int | None = None,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Method:
    """transformers' own speculation, with the same draft.

    Args:
        guesses: of each step; by default the library's own number, and where the draft is not
            confident, fewer.
    """
    own: dict[str, Any] = {}
    if guesses is not None:
        own = dict(
            num_assistant_tokens=guesses,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
    sampling = _sampled(temperature, top_p, top_k, min_p)
    return _by_library(pair, name, sampling, GenerationConfig(**own))


def best_guesses(pair: Pair, prompts: Sequence[list[int]], new_tokens: int, **options: Any) -> int:
    """The number of guesses that assisted generation is fastest with on these prompts."""
    seconds = {}
    for guesses in GUESSES:
        method = with_assistant(pair, guesses=guesses, **options)
        runs = [method.run(prompt, new_tokens) for prompt in prompts]
        seconds[guesses] = sum(run.seconds / run.timed for run in runs if run.timed)
    found: int = pair.world.agree_on(min(seconds, key=seconds.__getitem__))
    return found


class _Clock(BaseStreamer):
    """Notes when tokens came, and how many; the first ones that it is given are the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        pass


def _sampled(temperature: float, top_p: float, top_k: int, min_p: float) -> dict[str, Any]:
    """The library's options for sampling so."""
    if temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        **({"min_p": min_p} if min_p else {}),
    }


def _by_library(
    pair: Pair,
    name: str,
    sampling: dict[str, Any],
    assisted: GenerationConfig | None = None,
    **options: Any,
) -> Method:
    """Decoding with transformers; with the draft as assistant, if that has a configuration."""

    def run(prompt: list[int], new_tokens: int) -> Run:
        tokens = torch.tensor([prompt], device=pair.device)
        clock, forwards = _Clock(), 0

        def count(*_: object) -> None:
            nonlocal forwards
            forwards += 1

        with ExitStack() as stack:
            model: Any = stack.enter_context(pair.target.native())
            stack.enter_context(_generation(model, GenerationConfig()))
            if assisted is not None:
                draft = stack.enter_context(pair.draft.native())
                stack.enter_context(_generation(draft, assisted))
                options["assistant_model"] = draft
            hook = model.register_forward_pre_hook(count)
            stack.callback(hook.remove)
            output = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                pad_token_id=0,
                streamer=clock,
                **sampling,
                **options,
            )
        new = output[0, len(prompt) :].tolist()
        timed = len(new) - clock.counts[1]
        return Run(new, forwards - 1, timed, clock.times[-1] - clock.times[1], timed)

    return Method(name, run)


@contextmanager
def _generation(model: Any, config: GenerationConfig) -> Iterator[None]:
    """The configuration in place of the model's own: no penalties, no end-of-text token."""
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept
