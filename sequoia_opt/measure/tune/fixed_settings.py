"""Predicts other settings of a server that keeps the settings it was started with.

The server's own chains show which guesses are right, and so how shorter chains would decode. In
answers of few tokens its steps have few guesses, which gives the times of shorter rounds. Knows
nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Protocol

import numpy as np

from sequoia_opt.engine.library import DRAFT, Speculation
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.progress import ProgressBar
from sequoia_opt.measure.tune.runs import MIN_TEXTS, Clock, TunableEngine
from sequoia_opt.measure.tune.tuning import ChainStudy, TuneSpec
from sequoia_opt.plan.chain_replay import ChainRecord, StepCounts
from sequoia_opt.plan.chain_tuning import predictions
from sequoia_opt.plan.round_costs import RoundCosts

OWN_SETTING = Speculation(DRAFT)
COUNTING = 0.4  # share of the time after which no further text's chains are counted
PLACES = 4  # places in each text at which steps are timed


class FixedSettingsEngine(TunableEngine, Protocol):
    """An engine that keeps its settings, and whose single steps can be timed."""

    def step_ms(self, text: list[int], guesses: int) -> float | None:
        """The time of a step with so many guesses after a text; None if it had another number.

        This includes sending a token, unlike `step_without_guesses_ms`.
        """
        ...

    def step_without_guesses_ms(self, text: list[int]) -> float:
        """The time of a step without guesses after a text, in which the draft reads the token."""
        ...


def study_fixed_settings(
    engine: FixedSettingsEngine, prompts: Sequence[list[int]], spec: TuneSpec, bar: ProgressBar
) -> ChainStudy:
    """Predict the chains up to the length of the engine's own.

    The engine has no plain step: without guesses the draft still reads the token. A guess adds at
    least a pass of the draft to a step, so a plain step takes at least the time of a step without
    guesses less that of a guess, and the predicted speedups are lower bounds.

    Raises:
        SequoiaError: the engine does not guess, or ends chains early by a threshold.
    """
    clock = Clock(60 * spec.minutes)
    texts: list[StepCounts] = []
    with bar("recording guesses") as progress:
        for number, prompt in enumerate(prompts):
            if number >= MIN_TEXTS and clock.is_past(COUNTING):
                break
            texts.append(engine.counted(OWN_SETTING, prompt, spec.new_tokens))
            progress(number + 1, len(prompts))
    record = ChainRecord(_own_guesses(texts), 0.0, texts)
    costs = _costs(engine, prompts[: len(texts)], record.guesses, spec, clock, bar)
    return ChainStudy([record], costs, predictions([record], costs, {}))


def _own_guesses(texts: Sequence[StepCounts]) -> int:
    """The length of the chains that were counted.

    Raises:
        SequoiaError: there are none, or they end early.
    """
    longest = max((count for steps in texts for count in steps.drafted), default=0)
    if not longest:
        raise SequoiaError(
            "found no guess in any step; expected a server that speculates: start it with a "
            "draft, --spec-type draft-simple --spec-draft-n-max 16"
        )
    for steps in texts:
        left = sum(steps.accepted) + len(steps.accepted)
        for drafted, accepted in zip(steps.drafted, steps.accepted, strict=True):
            # Near a text's end chains are shorter, and by how much is not always seen: a step
            # whose one token ends within a character is counted with the next one.
            if drafted < longest < left - 1:
                raise SequoiaError(
                    f"found chains of {drafted} and of {longest} guesses, expected one length: "
                    "start the server with --spec-draft-p-min 0 and one --spec-type"
                )
            left -= accepted + 1
    return longest


def _costs(
    engine: FixedSettingsEngine,
    prompts: Sequence[list[int]],
    longest: int,
    spec: TuneSpec,
    clock: Clock,
    bar: ProgressBar,
) -> RoundCosts:
    """Median times of steps with no guess up to the longest chain, at some places of the texts.

    Raises:
        SequoiaError: no step of some length was seen.
    """
    lengths = sorted({length for length in spec.lengths if length < longest} | {longest})
    times: dict[int, list[float]] = {length: [] for length in (0, *lengths)}
    unsent: list[float] = []  # times of steps without guesses
    with bar("timing rounds") as progress:
        for number, prompt in enumerate(prompts):
            if number >= MIN_TEXTS and clock.is_past(1.0):
                break
            text = prompt + engine.answer(OWN_SETTING, prompt, spec.new_tokens).tokens
            for place in range(PLACES):
                end = len(prompt) + place * spec.new_tokens // PLACES
                unsent.append(engine.step_without_guesses_ms(text[:end]))
                for length, taken in times.items():
                    if (step_ms := engine.step_ms(text[:end], length)) is not None:
                        taken.append(step_ms)
            progress(number + 1, len(prompts))
    if unseen := [length for length, taken in times.items() if not taken]:
        raise SequoiaError(
            f"found no step of {unseen[0]} guesses, expected one after each prompt: the server "
            "does not draft as llama-server does"
        )
    sending_ms = max(0.0, median(times[0]) - median(unsent))
    medians = {length: median(taken) - sending_ms for length, taken in times.items()}
    pass_ms = float(np.clip((medians[lengths[0]] - medians[0]) / lengths[0], 0.0, medians[0] / 2))
    round_ms = np.array([medians[length] for length in lengths])
    return RoundCosts(medians[0] - pass_ms, tuple(lengths), round_ms, pass_ms)
