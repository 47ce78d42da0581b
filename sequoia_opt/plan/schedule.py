"""How many tokens to guess at each batch size: the schedules that serving engines take.

Prices chains at the batches that a profile has measured; between these, the time of a step is
interpolated linearly. A schedule never guesses more at a larger batch. Knows nothing of how
engines write it down: that is `schedule_formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.draft_passes import unusual_passes
from sequoia_opt.plan.intervals import REPLICATES, TAIL, interval
from sequoia_opt.plan.judge import ROUNDING, SPEED_TO_GIVE_UP
from sequoia_opt.plan.latency import LatencyProfile, overhead_name
from sequoia_opt.plan.solve_options import DEFAULT_MAX_DEPTH, SolveOptions
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.plan.verifiers import verifier_at
from sequoia_opt.types import FloatArray


@dataclass(frozen=True)
class Stretch:
    """Batch sizes at which a schedule guesses alike, both ends included."""

    first: int
    last: int
    guesses: int


@dataclass(frozen=True)
class Load:
    """What serving at a rate of requests comes to.

    Attributes:
        requests_per_second: the rate.
        batch: sequences that are decoded together on average, rounded up.
        guesses: the schedule's there.
        request_seconds: how long a request decodes.
    """

    requests_per_second: float
    batch: int
    guesses: int
    request_seconds: float


@dataclass(frozen=True)
class Schedule:
    """The guesses of a step by batch size, and what they are predicted to do.

    Attributes:
        measured: the batches that were measured.
        guesses: by batch size from 1 to the largest measured one, never rising, [batches].
        tokens: tokens of a step by guesses, [guesses + 1].
        step_ms: a step by batch size and guesses, infinite where it was not measured,
            [batches, guesses + 1].
        stops: the smallest batch size from which on plain decoding is at least as fast; None if
            speculation still pays at the largest measured one.
        stops_between: its 95% interval; the largest measured batch + 1 stands for all beyond.
        chain: the longest chain of the schedule, with the names and the sampling of its pair.
    """

    measured: tuple[int, ...]
    guesses: IntArray
    tokens: FloatArray
    step_ms: FloatArray
    stops: int | None
    stops_between: tuple[int, int]
    chain: TokenTree

    @property
    def stretches(self) -> list[Stretch]:
        """The batch sizes, in stretches of equal numbers of guesses."""
        return _stretches(self.guesses)

    def speedup(self, batch: int) -> float:
        """Predicted speed over plain decoding at a batch size."""
        speeds = self.tokens / self.step_ms[batch - 1]
        return float(speeds[self.guesses[batch - 1]] / speeds[0])

    def tokens_per_second(self, batch: int) -> float:
        """Predicted tokens per second of all sequences together at a batch size."""
        guesses = self.guesses[batch - 1]
        return float(1000 * batch * self.tokens[guesses] / self.step_ms[batch - 1, guesses])

    def load(self, requests_per_second: float, tokens_per_request: float) -> Load:
        """The batch that requests at a rate come to, by Little's law: L = λ · W.

        Of L sequences each decodes for W = tokens / speed(L). So it is the smallest batch whose
        sequences together decode as many tokens per second as arrive.

        Raises:
            SequoiaError: the machine does not decode so many tokens at any measured batch.
        """
        arriving = requests_per_second * tokens_per_request
        speeds = [self.tokens_per_second(batch) for batch in range(1, len(self.guesses) + 1)]
        batch = next((b for b, speed in enumerate(speeds, start=1) if speed >= arriving), None)
        if batch is None:
            raise SequoiaError(
                f"requests per second: found {requests_per_second:g}, expected at most "
                f"{max(speeds) / tokens_per_request:.3g} of {tokens_per_request:g} tokens each: "
                f"batches up to {len(speeds)} decode {max(speeds):.0f} tokens per second"
            )
        guesses = int(self.guesses[batch - 1])
        seconds = batch * tokens_per_request / speeds[batch - 1]
        return Load(requests_per_second, batch, guesses, seconds)

    def document(self) -> dict[str, Any]:
        """The schedule as a mapping."""
        return {
            "measured": list(self.measured),
            "stretches": [
                {
                    "first": stretch.first,
                    "last": stretch.last,
                    "guesses": stretch.guesses,
                    "speedup_first": self.speedup(stretch.first),
                    "speedup_last": self.speedup(stretch.last),
                    "tokens_per_second_last": self.tokens_per_second(stretch.last),
                }
                for stretch in self.stretches
            ],
            "stops": self.stops,
            "stops_low": self.stops_between[0],
            "stops_high": self.stops_between[1],
        }


def schedule(
    profile: LatencyProfile, acceptance: Acceptance, *, replicates: int = REPLICATES, **options: Any
) -> Schedule:
    """The best schedule whose guesses never rise with the batch.

    At each batch size a chain that is predicted less than 1% slower than the fastest one, and
    that the data cannot tell from it, counts as fast. Of all schedules that never rise it is the
    one of the largest product of speeds over the batch sizes, and of equal ones the shortest.

    Args:
        replicates: how many times documents and timings are resampled.
        options: options of `solve`: `max_size` and `max_depth` limit the chains, `context` is the
            context length or weights of several.

    Raises:
        SequoiaError: the profile has one batch only, lacks the context at another batch, or
            cannot price a chain of one guess.
    """
    measured = profile.batches()
    if len(measured) < 2:
        lacking = sorted({curve.batch for curve in profile.target.curves} - set(measured))
        if lacking:
            raise SequoiaError(
                f"found times of the target in batches of {', '.join(map(str, lacking))}, and none "
                "of the draft there; measure or import both"
            )
        raise SequoiaError(
            f"found a profile of batch {measured[0]} only, expected several batches; measure with "
            "`sequoia-opt profile --batches 1,4,16`"
        )
    chosen = SolveOptions(**options)
    contexts = chosen.contexts(profile, acceptance)
    name = overhead_name(acceptance.sampling)
    times = [
        StepTimes(profile, name, contexts, batch, replicates, seed=batch) for batch in measured
    ]
    chains = _chains(times, acceptance, chosen)
    tokens = acceptance.replicates(chains, replicates)
    step_ms = np.stack([_steps_ms(chains, batch, acceptance) for batch in times], axis=1)

    def speed(replicate: int) -> FloatArray:  # one at a time: there may be thousands of batches
        return np.asarray(tokens[:, replicate] / _between(step_ms[replicate], measured))

    resampled = range(1, replicates + 1)
    guesses = _monotone(_lifted(speed(0), map(speed, resampled), replicates))
    longest = chains[int(guesses[0])]
    stops = [_stops(speed(replicate)) for replicate in range(replicates + 1)]
    return Schedule(
        measured=tuple(measured),
        guesses=guesses,
        tokens=tokens[:, 0],
        step_ms=_between(step_ms[0], measured),
        stops=next((s.first for s in _stretches(guesses) if s.guesses == 0), None),
        stops_between=_ends(stops),
        chain=TokenTree(longest.parents, longest.ranks, _metadata(profile, acceptance)),
    )


def _chains(
    times: Sequence[StepTimes], acceptance: Acceptance, options: SolveOptions
) -> list[TokenTree]:
    """The chains that some batch can price, by guesses from 0.

    With traces, only those that can be replayed: the others' predictions do not compare.

    Raises:
        SequoiaError: not even one guess can be priced.
    """
    if (options.max_size or 2) < 2 or options.max_depth == 0:
        raise SequoiaError("found no room for a guess; leave --max-size and --max-depth out")
    largest = max(step.largest_size for step in times)
    deepest = DEFAULT_MAX_DEPTH if options.max_depth is None else options.max_depth
    largest = min(largest, options.max_size or largest, deepest + 1)
    chains = [shapes.chain(size) for size in range(1, largest + 1)]
    if acceptance.can_replay(chains[0]):
        chains = [chain for chain in chains if acceptance.can_replay(chain)]
    if len(chains) < 2 or not any(step.can_draft for step in times):
        raise SequoiaError(
            "found no time of a step with one guess, expected times of forward passes of 1 and 2 "
            "tokens; profile with --tokens 1,2,3,4,6,8"
        )
    return chains


def _steps_ms(chains: Sequence[TokenTree], times: StepTimes, acceptance: Acceptance) -> FloatArray:
    """A step with each chain at one batch, [replicates + 1, chains]; infinite if not measured."""
    table = np.full((len(times.plain_ms), len(chains)), np.inf)
    for guesses, chain in enumerate(chains):
        if chain.size <= times.largest_size and (guesses == 0 or times.can_draft):
            catch_up_ms = acceptance.leaf_share(chain) * times.catch_up_ms
            table[:, guesses] = times.step_ms(chain) + catch_up_ms
    return table


def _between(step_ms: FloatArray, measured: Sequence[int]) -> FloatArray:
    """Step times by batch size from 1 to the largest, [batches, chains], linear in between.

    Args:
        step_ms: at the measured batches, [measured, chains].
    """
    sizes = np.arange(1, measured[-1] + 1)
    rows = [np.interp(sizes, measured, chain_ms) for chain_ms in step_ms.T]
    table: FloatArray = np.nan_to_num(np.stack(rows, axis=1), nan=np.inf, posinf=np.inf)
    table[np.array(measured) - 1] = step_ms
    return table


def _lifted(predicted: FloatArray, resampled: Iterable[FloatArray], count: int) -> FloatArray:
    """Predicted speeds, where what cannot be told from the fastest counts as fast, [batches, n].

    Args:
        predicted: tokens per ms by batch size and guesses, [batches, n].
        resampled: the same from resampled documents and timings, `count` of them.
    """
    fastest = predicted.argmax(axis=1)[:, None]
    best = np.take_along_axis(predicted, fastest, axis=1)
    no_faster = np.zeros(predicted.shape)
    for speed in resampled:
        no_faster += np.take_along_axis(speed, fastest, axis=1) <= speed * (1 + ROUNDING)
    shorter = np.arange(predicted.shape[1]) < fastest
    is_alike = shorter & (no_faster > TAIL * count)
    return np.where(is_alike & (predicted >= (1 - SPEED_TO_GIVE_UP) * best), best, predicted)


def _monotone(speeds: FloatArray) -> IntArray:
    """The guesses by batch size that never rise and have the largest product of speeds.

    Dynamic programme over batches: best[b, k] = log speed[b, k] + max over j ≥ k of best[b-1, j].
    """
    with np.errstate(divide="ignore"):
        logs = np.log(speeds)
    best = logs[0]
    origins = []
    for row in logs[1:]:
        origin = _shortest_best_from(best)
        origins.append(origin)
        best = row + best[origin]
    guesses = [int(_shortest_best_from(best)[0])]
    for origin in reversed(origins):
        guesses.append(int(origin[guesses[-1]]))
    return np.array(guesses[::-1], dtype=np.int64)


def _shortest_best_from(values: FloatArray) -> IntArray:
    """For each k the smallest j ≥ k of the largest value, but for rounding."""
    origin = np.zeros(len(values), np.int64)
    best = len(values) - 1
    for k in range(len(values) - 1, -1, -1):
        tolerance = ROUNDING * max(1.0, abs(values[best])) if np.isfinite(values[best]) else 0.0
        if values[k] >= values[best] - tolerance:
            best = k
        origin[k] = best
    return origin


def _stretches(guesses: IntArray) -> list[Stretch]:
    starts = [0, *(np.flatnonzero(np.diff(guesses)) + 1).tolist(), len(guesses)]
    return [Stretch(first + 1, last, int(guesses[first])) for first, last in pairwise(starts)]


def _stops(speed: FloatArray) -> int:
    """The batch size behind the last one at which some chain is faster than plain decoding."""
    pays = (speed[:, 1:] > speed[:, :1]).any(axis=1)
    return int(np.flatnonzero(pays)[-1]) + 2 if pays.any() else 1


def _ends(stops: Sequence[int]) -> tuple[int, int]:
    low, high = interval(np.array(stops, dtype=np.float64))
    return int(np.floor(low)), int(np.ceil(high))


def _metadata(profile: LatencyProfile, acceptance: Acceptance) -> dict[str, Any]:
    """What exports say of a chain's pair and sampling."""
    metadata = {
        "target": profile.target.model,
        "draft": profile.draft.model,
        "draft_path": profile.draft.extra.get("path"),
        "draft_passes": unusual_passes(profile.draft.passes),
        "temperature": acceptance.temperature,
        "verifier": verifier_at(acceptance.temperature, acceptance.verifier),
    }
    return {key: value for key, value in metadata.items() if value is not None}
