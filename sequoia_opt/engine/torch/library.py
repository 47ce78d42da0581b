"""The same models as transformers itself runs them: what people would use instead.

Knows transformers' `generate`, and a forward pass with the library's own attention and masks.
Shares nothing with this program's engine but the weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from sequoia_opt.engine.pair import Pair


@dataclass(frozen=True)
class LibraryGeneration:
    """One prompt decoded by the library.

    Attributes:
        tokens: the new tokens.
        steps: forward passes of the target after prefill.
        timed: how many of the tokens came in `seconds`; prefill yields the first ones.
        seconds: time of these steps.
    """

    tokens: list[int]
    steps: int
    timed: int
    seconds: float


def generate(
    pair: Pair,
    prompt: list[int],
    new_tokens: int,
    options: dict[str, Any],
    assistant_options: dict[str, Any] | None = None,
) -> LibraryGeneration:
    """Decode a prompt with transformers' `generate`, past end-of-text tokens.

    Args:
        options: passed to `generate`.
        assistant_options: generation options of the draft as an assistant; None to decode without
            a draft.
    """
    tokens = torch.tensor([prompt], device=pair.device)
    clock, forward_passes = _Clock(), 0

    def count(*_: object) -> None:
        nonlocal forward_passes
        forward_passes += 1

    with ExitStack() as stack:
        model: Any = stack.enter_context(_as_loaded(pair, "target"))
        stack.enter_context(_generation_config(model, GenerationConfig()))
        drafting: dict[str, Any] = {}
        if assistant_options is not None:
            draft = stack.enter_context(_as_loaded(pair, "draft"))
            stack.enter_context(_generation_config(draft, GenerationConfig(**assistant_options)))
            drafting["assistant_model"] = draft
        hook = model.register_forward_pre_hook(count)
        stack.callback(hook.remove)
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new_tokens,
            pad_token_id=0,
            streamer=clock,
            **drafting,
            **options,
        )
    new = output[0, len(prompt) :].tolist()
    timed = len(new) - clock.counts[1]
    return LibraryGeneration(new, forward_passes - 1, timed, clock.times[-1] - clock.times[1])


@torch.inference_mode()
def text_logits(pair: Pair, text: list[int], keep: int) -> Tensor:
    """The target's logits [keep, vocabulary] after the last tokens of a text, in one forward pass
    over the whole text."""
    tokens = torch.tensor([text], device=pair.device)
    with _as_loaded(pair, "target") as model:
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0]
    return logits[-keep:].double()


@contextmanager
def _as_loaded(pair: Pair, role: str) -> Iterator[Any]:
    """One of the models, as transformers loads it."""
    runner: Any = pair.models[role]
    with runner.native() as model:
        yield model


class _Clock(BaseStreamer):
    """Records when tokens came, and how many each time; the first ones are the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        pass


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Replace the model's generation configuration, penalties and end-of-text tokens included."""
    original = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = original
