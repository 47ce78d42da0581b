"""Whether speculation makes a server faster: both decode the same prompts in turn.

Knows times of texts. Knows nothing of what the texts say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sequoia_opt.engine.llama_cpp.server_pool import REMEMBERING
from sequoia_opt.measure.check.counters import ReportedSettings
from sequoia_opt.measure.check.dialects import Prompt, Reading
from sequoia_opt.measure.check.reference import Reference
from sequoia_opt.measure.check.server import Completion, Server
from sequoia_opt.measure.check.verdict import BASELINE_ADVICE, Finding, Status
from sequoia_opt.measure.progress import ProgressBar
from sequoia_opt.plan.intervals import bootstrap
from sequoia_opt.types import FloatArray

NAME = "speed"
SHORTEST = 1e-6  # seconds, used where a clock sees no difference
SLOWER = 0.95
"""A server fails if the whole interval of its speed is below this share of the reference's."""


@dataclass(frozen=True)
class Timed:
    """The time of one text.

    Attributes:
        tokens: the number of tokens after the first.
        seconds: from the first token to the last.
    """

    tokens: int
    seconds: float


def check_speed(
    server: Server,
    reference: Reference | None,
    prompts: Sequence[str],
    reported: ReportedSettings,
    new_tokens: int,
    repeats: int,
    progress: ProgressBar,
) -> Finding:
    """Time greedy texts of both servers, in an order that is shuffled for each text.

    Args:
        reported: the tested server's settings. One that guesses from earlier texts would be timed
            on texts that it remembers.
    """
    remembered = [kind for kind in (reported.kind or "").split(",") if kind in REMEMBERING]
    if remembered:
        return Finding(
            NAME,
            Status.UNCHECKED,
            f"the server's {remembered[0]} guesses from the texts of earlier requests, so a text "
            "that is decoded again is faster than a new one; `sequoia-opt tune` times new ones",
        )
    if reference is None or reference.is_one_by_one:
        reason = "no request can switch this server's speculation off"
        return Finding(NAME, Status.UNCHECKED, f"{reason}; {BASELINE_ADVICE}")
    if len(prompts) < 2:
        return Finding(NAME, Status.UNCHECKED, "1 prompt gives no interval; raise --limit")

    def ours(prompt: str, tokens: int) -> Completion:
        asked: Prompt = reference.prompt(prompt)
        return server.complete(asked, tokens)

    sides: list[Callable[[str, int], Completion]] = [ours, reference.complete]
    # One clock for both: the servers' own, if both tell their times.
    tried = [complete(prompts[0], new_tokens).reading for complete in sides]
    for asked, reading in zip((server, reference.server), tried, strict=True):
        if reading.new_tokens is None:
            reason = f"{asked.url} does not say how many tokens an answer has (`usage`)"
            return Finding(NAME, Status.UNCHECKED, reason)
    told = all(reading.decode_seconds is not None for reading in tried)
    timed = _timed_there if told else _timed_here
    times: list[list[list[Timed]]] = [[[] for _ in prompts] for _ in sides]
    turns = [(repeat, place) for repeat in range(repeats) for place in range(len(prompts))]
    with progress("timing both") as advance:
        for number, (_, place) in enumerate(turns):
            for side in random.Random(number).sample(range(len(sides)), len(sides)):
                times[side][place].append(timed(sides[side], prompts[place], new_tokens))
            advance(number + 1, len(turns))
    medians = [[_median(runs) for runs in side] for side in times]
    return _finding(medians[0], medians[1], repeats)


def _timed_there(complete: Callable[[str, int], Completion], prompt: str, tokens: int) -> Timed:
    """A text's time as its server reports it."""
    reading = complete(prompt, tokens).reading
    return Timed(_later_tokens(reading), max(reading.decode_seconds or 0.0, SHORTEST))


def _timed_here(complete: Callable[[str, int], Completion], prompt: str, tokens: int) -> Timed:
    """A text's time as seen from here, less the time of a request for its first token.

    A first request leaves the prompt in the server's cache, so that both timed ones find it there.
    """
    complete(prompt, 1)
    text, first = complete(prompt, tokens), complete(prompt, 1)
    seconds = max(text.seconds - first.seconds, SHORTEST)
    return Timed(_later_tokens(text.reading), seconds)


def _later_tokens(reading: Reading) -> int:
    """Tokens of a text after its first."""
    return max(1, (reading.new_tokens or 0) - 1)


def _median(runs: Sequence[Timed]) -> Timed:
    """The run with the median time per token."""
    return sorted(runs, key=lambda run: run.seconds / run.tokens)[len(runs) // 2]


def _finding(ours: Sequence[Timed], theirs: Sequence[Timed], repeats: int) -> Finding:
    """The verdict from each prompt's median times; intervals over prompts."""
    tokens, seconds = _columns(ours)
    plain_tokens, plain_seconds = _columns(theirs)

    def speedup(weights: FloatArray) -> FloatArray:
        speed = (weights @ tokens) / (weights @ seconds)
        plain_speed = (weights @ plain_tokens) / (weights @ plain_seconds)
        return np.asarray(speed / plain_speed)

    low, high = bootstrap(lambda weights: speedup(weights.astype(np.float64)), len(ours))
    ratio = float(speedup(np.ones(len(ours))))
    speed, plain_speed = tokens.sum() / seconds.sum(), plain_tokens.sum() / plain_seconds.sum()
    numbers: dict[str, Any] = {
        "tokens_per_second": float(speed),
        "baseline_tokens_per_second": float(plain_speed),
        "speedup": ratio,
        "speedup_low": float(low),
        "speedup_high": float(high),
        "prompts": len(ours),
        "repeats": repeats,
    }
    is_slower = bool(high < SLOWER)
    compared = _compared(float(low), float(high))
    advice = "; leave speculation off, or solve for other settings" if is_slower else ""
    sentence = (
        f"{speed:.1f} against {plain_speed:.1f} tokens/s: {ratio:.2f}x "
        f"({float(low):.2f} – {float(high):.2f}), {compared} without speculation{advice}"
    )
    return Finding(NAME, Status.FAILED if is_slower else Status.OK, sentence, numbers)


def _compared(low: float, high: float) -> str:
    """What the interval of a speedup means, in words."""
    if low > 1:
        return "faster than"
    if high < 1:
        return "slower than"
    return "as fast as" if low > SLOWER and high < 1 / SLOWER else "not clearly different from"


def _columns(runs: Sequence[Timed]) -> tuple[FloatArray, FloatArray]:
    """Tokens and seconds of each run, both [runs]."""
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    return tokens, np.array([run.seconds for run in runs])
