"""The runs that `tune` makes in an engine: recorded chains, and timed texts.

Knows what is decoded, in which order, and for how long. Knows nothing of predictions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.measure.progress import Progress
from sequoia_opt.plan.chain_replay import ChainRecord, StepCounts
from sequoia_opt.plan.chain_tuning import ChainSetting

MIN_TEXTS = 2  # a stage decodes these even when its time is up
WARM_UP_TOKENS = 8


class Decoded(Protocol):
    """A text that an engine decoded, and what it counted."""

    @property
    def tokens(self) -> list[int]:
        """The new tokens."""
        ...

    @property
    def steps(self) -> int:
        """Forward passes of the target after the prompt's."""
        ...

    @property
    def predicted_ms(self) -> float:
        """Time of these steps."""
        ...


class TunableEngine(Protocol):
    """An engine whose own speculation can be set for each text."""

    @property
    def has_draft(self) -> bool:
        """Whether it has a draft model."""
        ...

    @property
    def default_chain(self) -> ChainSetting:
        """The chains that it drafts by default."""
        ...

    @property
    def ends_unsure_chains(self) -> bool:
        """Whether a chain of some length can also end early, where the draft is unsure."""
        ...

    @property
    def others(self) -> Sequence[Speculation]:
        """Settings to race that are not chains of some length: lookups, for one."""
        ...

    def answer(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> Decoded:
        """Decode a prompt greedily, past end-of-text tokens."""
        ...

    def counted(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> StepCounts:
        """Decode a prompt in the same way, and count the guesses of each step."""
        ...


class Clock:
    """How long `tune` has run, and how long it still may.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._started, self._seconds = time.monotonic(), seconds

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Seconds that are left; negative after the end."""
        return self._seconds - self.passed

    def is_past(self, share: float) -> bool:
        """Whether this share of the time has passed."""
        return self.passed > share * self._seconds


def with_draft(setting: ChainSetting) -> Speculation:
    """A chain of the draft model, as an engine's setting."""
    return Speculation(DRAFT, setting.guesses, setting.threshold)


def recorded(
    engine: TunableEngine,
    prompts: Sequence[list[int]],
    new_tokens: int,
    settings: Sequence[ChainSetting],
    is_time_up: Callable[[], bool],
    progress: Progress,
) -> list[ChainRecord]:
    """Decode as many prompts as the first long chain has time for, with each long chain.

    One chain follows the other, so that each model is loaded only once if memory holds few.

    Args:
        is_time_up: whether the first chain's time is up.
    """
    records: list[ChainRecord] = []
    chosen, total = list(prompts), len(settings) * len(prompts)
    for number, setting in enumerate(settings):
        texts: list[StepCounts] = []
        for prompt in chosen:
            if not records and len(texts) >= MIN_TEXTS and is_time_up():
                break
            texts.append(engine.counted(with_draft(setting), prompt, new_tokens))
            progress(number * len(prompts) + len(texts), total)
        chosen = chosen[: len(texts)]
        records.append(ChainRecord(setting.guesses, setting.threshold, texts))
    return records


@dataclass(frozen=True)
class TextTimes:
    """The time and steps of some texts with one setting.

    Attributes:
        ms, steps: sums over all texts.
    """

    ms: float
    steps: int

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step."""
        return self.ms / self.steps


def timed(
    engine: TunableEngine,
    prompts: Sequence[list[int]],
    new_tokens: int,
    speculations: Sequence[Speculation],
    is_time_up: Callable[[], bool],
    progress: Progress,
) -> Mapping[Speculation, TextTimes]:
    """Time plain decoding and each setting over the same texts, in shuffled order for each text.

    Each setting first decodes a few tokens that are not counted.
    """
    entrants = [NO_SPECULATION, *speculations]
    for speculation in entrants:
        engine.answer(speculation, prompts[0], WARM_UP_TOKENS)
    answers: dict[Speculation, list[Decoded]] = {speculation: [] for speculation in entrants}
    for number, prompt in enumerate(prompts):
        if number >= MIN_TEXTS and is_time_up():
            break
        for speculation in random.Random(number).sample(entrants, len(entrants)):
            answers[speculation].append(engine.answer(speculation, prompt, new_tokens))
        progress(number + 1, len(prompts))
    return {
        speculation: TextTimes(
            ms=sum(answer.predicted_ms for answer in decoded),
            steps=sum(answer.steps for answer in decoded),
        )
        for speculation, decoded in answers.items()
    }
