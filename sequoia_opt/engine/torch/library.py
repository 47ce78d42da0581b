"""The same models as transformers itself runs them: what people would use instead.

Knows transformers' `generate`, and a forward pass with the library's own attention and masks.
Shares nothing with this program's engine but the weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from sequoia_opt.engine.library import (
    DRAFT,
    LOOKUP,
    NO_DRAFT,
    NO_SPECULATION,
    LibraryGeneration,
    Speculation,
)
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.plan.sampling import Sampling

LOOKUP_GUESSES = 10  # tokens that prompt lookup guesses, as in transformers' documentation


class TransformersLibrary:
    """See `Library`.

    Args:
        models: the pair's models, by role; without a draft if that is a head on the target.
    """

    reference = "transformers'"

    def __init__(self, models: Mapping[str, Runner]) -> None:
        self._models = models

    def description(self) -> dict[str, str]:
        """See `Library`; the engine names transformers' version."""
        return {}

    def remark(self) -> str:
        """See `Library`."""
        return ""

    def obstacle(self, speculation: Speculation, tokens: int) -> str:
        """See `Library`."""
        if speculation.kind != DRAFT:
            return ""
        target, draft = self._models["target"], self._models.get("draft")
        if draft is None:
            return NO_DRAFT
        if tokens > draft.positions:
            return (
                f"the draft has {draft.positions} positions, a prompt and its new tokens take "
                f"{tokens}"
            )
        if target.vocabulary != draft.vocabulary:
            return (
                f"transformers takes the target's {target.vocabulary} and the draft's "
                f"{draft.vocabulary} logits for different tokenizers"
            )
        return ""

    def generate(
        self,
        prompt: list[int],
        new_tokens: int,
        sampling: Sampling,
        speculation: Speculation = NO_SPECULATION,
    ) -> LibraryGeneration:
        """See `Library`: transformers' `generate` on the unmodified target."""
        tokens = torch.tensor([prompt], device=self._models["target"].device)
        clock, forward_passes = _Clock(), 0

        def count(*_: object) -> None:
            nonlocal forward_passes
            forward_passes += 1

        with ExitStack() as stack:
            model: Any = stack.enter_context(self._as_loaded("target"))
            stack.enter_context(_generation_config(model, GenerationConfig()))
            drafting: dict[str, Any] = {}
            if speculation.kind == DRAFT:
                draft = stack.enter_context(self._as_loaded("draft"))
                options = _assistant_options(speculation.guesses)
                stack.enter_context(_generation_config(draft, GenerationConfig(**options)))
                drafting["assistant_model"] = draft
            if speculation.kind == LOOKUP:
                drafting["prompt_lookup_num_tokens"] = speculation.guesses or LOOKUP_GUESSES
            hook = model.register_forward_pre_hook(count)
            stack.callback(hook.remove)
            output = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                pad_token_id=0,
                streamer=clock,
                **drafting,
                **_sampling_options(sampling),
            )
        new = output[0, len(prompt) :].tolist()
        timed = len(new) - clock.counts[1]
        return LibraryGeneration(new, forward_passes - 1, timed, clock.times[-1] - clock.times[1])

    @torch.inference_mode()
    def text_logits(self, text: list[int], keep: int) -> Tensor:
        """See `Library`: the target as transformers loads it, with its own attention and masks."""
        tokens = torch.tensor([text], device=self._models["target"].device)
        with self._as_loaded("target") as model:
            logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0]
        kept: Tensor = logits[-keep:].double()
        return kept

    def close(self) -> None:
        """See `Library`; nothing was started."""

    @contextmanager
    def _as_loaded(self, role: str) -> Iterator[Any]:
        """One of the models, as transformers loads it."""
        with self._models[role].native() as model:
            yield model


def _assistant_options(guesses: int | None) -> dict[str, Any]:
    """The draft's options for a number of guesses per step; by default transformers' own number,
    and fewer where the draft is not confident."""
    if guesses is None:
        return {}
    return dict(
        num_assistant_tokens=guesses,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )


def _sampling_options(sampling: Sampling) -> dict[str, Any]:
    """The options of `generate` for this sampling."""
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        **({"min_p": sampling.min_p} if sampling.min_p else {}),
    }


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
