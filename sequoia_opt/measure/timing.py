"""Times pieces of work round by round, in milliseconds, so that a disturbance hits all alike.

In every round each piece gets its turns, in an order that changes from round to round. In a turn
the piece runs for a while untimed, then for a while timed; the mean of these samples is the turn's
time, and the mean of its turns is the piece's time in that round: a text's time is a sum, and where
memory is fast for some minutes and slow for some, its mean is not its median. Knows neither models
nor trees.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binom

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.model import Machine
from sequoia_opt.measure.disturbance import slowdown
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.progress import Note, Progress, no_note, no_progress
from sequoia_opt.plan.curves import UNSURE
from sequoia_opt.types import FloatArray

RUN_IN_MS = 60  # milliseconds that a turn's untimed runs fill
TIMED_MS = 40  # milliseconds that a turn's timed runs fill
MAX_RUNS = 16  # of either kind in a turn
RUNS_PER_QUEUED_SAMPLE = 2  # one behind the other; the second is timed
LONG_MS = 100  # work that takes longer is run once: what ran before it hardly matters
PLAIN_TURNS = 3  # turns per round of plain decoding, which every speedup is relative to
MIN_ROUNDS = 5  # for a median and its interval to be trusted


@dataclass
class Timed:
    """A piece of work that is run again and again, and its times in milliseconds.

    It runs for a while before it is timed, since a step follows steps like it: on a CPU plain
    decoding takes 20% longer right behind other work and 7% longer after two runs, and is steady
    after ten; a large tree's step slows down instead. In a step the two models alternate: the cost
    of that counts as overhead. A sample of queued work includes its own untimed run.

    Attributes:
        run: does the work, `runs_per_call` times.
        turns: turns per round; more than one for work that all else is compared with, 0 for a
            companion.
        runs_per_call: a recorded graph repeats the work, since launching it takes a while.
        queued: time the work as it is in a queue of a GPU's work, where it neither waits to be
            issued nor is waited for.
        streams: the work brings in layers of an offloaded target, and the first of them would be
            there already if it were timed behind other work.
        optional: skipped when time is short, since pieces of similar size are timed as well.
        companions: work that is timed within this work's turns, some samples of each after another,
            so that small differences show on a machine whose speed wanders.
        in_a_row: samples of each of them before the next one's; the first quarter is untimed. One
            for work that comes behind other work in a text, more for work that comes behind itself.
        times: one time per round that counts; an optional piece may have fewer.
    """

    run: Callable[[], object]
    turns: int = 1
    runs_per_call: int = 1
    queued: bool = False
    streams: bool = False
    optional: bool = False
    companions: Sequence[Timed] = ()
    in_a_row: int = 1
    times: list[float] = field(default_factory=list)

    def turns_ms(self, machine: Machine, world: World) -> list[float]:
        """Mean times of this work and its companions over one turn, in that order."""
        if not self.companions:
            return [self.turn_ms(machine, world)]
        works = [self, *self.companions]
        first = world.agree_on(self.sample_ms(machine))
        if first >= LONG_MS:
            return [first, *(work.sample_ms(machine) for work in self.companions)]
        counted = self.in_a_row - self.in_a_row // 4
        warm_up = _runs_in(RUN_IN_MS, len(works) * self.in_a_row * first)
        samples: list[list[float]] = [[] for _ in works]
        for cycle in range(warm_up + math.ceil(_runs_in(TIMED_MS, first) / counted)):
            for work, kept in zip(works, samples, strict=True):
                row = [work.sample_ms(machine) for _ in range(self.in_a_row)]
                if cycle >= warm_up:
                    kept += row[-counted:]
        return [clipped_mean(kept) for kept in samples]

    def turn_ms(self, machine: Machine, world: World) -> float:
        """Mean of samples in succession, of which all processes take the same number."""
        first = world.agree_on(self.sample_ms(machine))
        if first >= LONG_MS:
            return self.sample_ms(machine) if self.streams else first
        if self.queued:
            run_ms = RUNS_PER_QUEUED_SAMPLE * self.runs_per_call * first
            more = [self.sample_ms(machine) for _ in range(_runs_in(TIMED_MS, run_ms) - 1)]
            return clipped_mean([first, *more])
        for _ in range(_runs_in(RUN_IN_MS, first)):
            self.sample_ms(machine)
        samples = [self.sample_ms(machine) for _ in range(_runs_in(TIMED_MS, first))]
        return clipped_mean(samples)

    def quick_ms(self, machine: Machine, world: World) -> float:
        """A single sample, for when time is short; of short work the second, since the first may
        compile."""
        first = world.agree_on(self.sample_ms(machine))
        return first if first >= LONG_MS else self.sample_ms(machine)

    def sample_ms(self, machine: Machine) -> float:
        """Call `run` and return the time of one run of the work."""
        return machine.elapsed_ms(self.run, self.queued) / self.runs_per_call


def _runs_in(milliseconds: float, run_ms: float) -> int:
    """Number of runs that fill a time."""
    return int(np.clip(np.ceil(milliseconds / max(run_ms, 1e-3)), 1, MAX_RUNS))


@dataclass(frozen=True)
class Rounds:
    """Rounds of one part of a measurement; the journal records each when it is done.

    Attributes:
        repeats: rounds that count.
        warm_up: rounds before these that do not count.
        name: of the part, for the journal and for notes.
        max_multiple: while times are noisy, rounds are added, up to this many times `repeats`.
    """

    machine: Machine
    repeats: int
    warm_up: int = 0
    world: World = ALONE
    journal: Journal = field(default_factory=Journal)
    name: str = ""
    max_multiple: int = 1

    def run(
        self,
        timed: Sequence[Timed],
        progress: Progress = no_progress,
        warn: Note = no_note,
        note: Note = no_note,
    ) -> int:
        """Time everything once per round, and divide the rounds' drift out of all times.

        When the journal's time is up, the current round is dropped, unless it is the first: then
        the work that has no time yet is timed once each, and optional work is skipped.

        Args:
            timed: the work; its `times` are filled.
            progress: called with the turns that were timed, and the turns to time in total.
            warn: called with a line if the machine slowed down meanwhile.
            note: called with a line if more rounds than `repeats` are measured.

        Returns:
            Number of rounds that count: `repeats`, fewer if the time was up, more if times were
            noisy.
        """
        order = random.Random(0)
        turns = sum(item.turns for item in timed)
        max_counted = self.repeats
        counted = number = 0
        previous: list[float] | None = None
        while counted < self.repeats or self._should_add_a_round(timed, counted):
            if counted == self.repeats:
                max_counted = self.max_multiple * self.repeats
                added = max_counted - self.repeats
                note(f"{self.name}: times are noisy; measuring up to {added} more rounds")
            total = (self.warm_up + max_counted) * turns
            name = f"{self.name}, round {number}"
            is_whole = True
            times = self.journal.recall(name)
            if times is None:
                if counted and self.journal.time_is_up(self.world):
                    break
                if previous is None and number >= self.warm_up > 0:
                    # Resumed behind the warm-up rounds, but this process has not warmed up.
                    previous = self._time_round(timed, order)
                times = self._time_round(timed, order, progress, number * turns, total)
                is_whole = not np.isnan(times).any()
                if counted and not is_whole:
                    break
                times = previous = self._completed(timed, times, previous)
                if is_whole:
                    self.journal.record(name, times)
            if number >= self.warm_up or not is_whole:
                counted += 1
                with self.journal.resuming(name):
                    for item, milliseconds in zip(timed, times, strict=True):
                        if np.isfinite(milliseconds):
                            item.times.append(float(milliseconds))
            number += 1
            progress(number * turns, total)
        measured = [item for item in timed if item.times]
        if slower := slowdown(round_paces([item.times for item in measured])):
            warn(slower)
        remove_drift(measured)
        return counted

    def _time_round(
        self,
        timed: Sequence[Timed],
        order: random.Random,
        progress: Progress = no_progress,
        done: int = 0,
        total: int = 0,
    ) -> list[float]:
        """Time one round until the journal's time is up, see `time_round`.

        Args:
            done: turns of the rounds before this one.
            total: turns of all rounds.
        """
        return time_round(
            timed,
            self.machine,
            order,
            self.world,
            progress=lambda turns: progress(done + turns, total),
            time_is_up=lambda: self.journal.time_is_up(self.world),
            optional_last=done == 0,
        )

    def _completed(
        self, timed: Sequence[Timed], times: list[float], previous: list[float] | None
    ) -> list[float]:
        """A round's times with the missing ones filled in.

        They are taken from the previous round or, if there is none, measured quickly. Without
        a previous round optional work stays NaN.
        """
        completed = []
        for i, milliseconds in enumerate(times):
            if np.isnan(milliseconds) and previous is not None:
                milliseconds = previous[i]
            if np.isnan(milliseconds) and not timed[i].optional:
                milliseconds = timed[i].quick_ms(self.machine, self.world)
            completed.append(milliseconds)
        return completed

    def _should_add_a_round(self, timed: Sequence[Timed], counted: int) -> bool:
        """Whether times are too noisy to be trusted, and a round may be added.

        All processes get the same answer. Where an offloaded target's layers are brought in, only
        the work that does so is considered: a draft's forward passes are always noisy meanwhile,
        and a negligible part of a step.
        """
        if counted >= self.max_multiple * self.repeats:
            return False
        steady = without_drift([item.times for item in timed])
        streaming = [times for item, times in zip(timed, steady, strict=True) if item.streams]
        intervals = np.array([median_interval(times) for times in streaming or steady])
        is_wide = intervals[:, 2] - intervals[:, 1] > UNSURE * intervals[:, 0]
        return bool(self.world.agree_on(bool(is_wide.any())))


def time_round(
    timed: Sequence[Timed],
    machine: Machine,
    order: random.Random,
    world: World,
    progress: Callable[[int], None] = lambda turns: None,
    time_is_up: Callable[[], bool] = lambda: False,
    optional_last: bool = False,
) -> list[float]:
    """Give each piece of work its turns, in random order; the means of its turns, in which its
    companions are timed too.

    All processes run the same work, in the same order.

    Args:
        order: shuffles the turns.
        progress: called before each turn with the number of turns so far.
        time_is_up: asked before each turn; if it says so, the remaining turns are skipped.
        optional_last: time optional work after all other work.

    Returns:
        Milliseconds by piece of work; NaN for one that had no turn.
    """
    turns = [number for number, item in enumerate(timed) for _ in range(item.turns)]
    order.shuffle(turns)
    if optional_last:
        turns.sort(key=lambda number: timed[number].optional)
    times: dict[int, list[float]] = {id(item): [] for item in timed}
    for done, number in enumerate(turns):
        if time_is_up():
            break
        progress(done)
        item = timed[number]
        means = item.turns_ms(machine, world)
        for work, milliseconds in zip((item, *item.companions), means, strict=True):
            times[id(work)].append(milliseconds)
    return [clipped_mean(samples) if samples else float("nan") for samples in times.values()]


def remove_drift(timed: Sequence[Timed]) -> None:
    """Divide the rounds' drift out of all times, see `without_drift`."""
    steady = without_drift([item.times for item in timed])
    for item, times in zip(timed, steady, strict=True):
        item.times = times


def without_drift(times: Sequence[Sequence[float]]) -> list[list[float]]:
    """Times divided by the pace of their rounds.

    A shared machine's speed wanders by tens of percent over a minute. Within a round it affects
    all work alike, and speedups are ratios: what remains is the spread of each piece by itself.

    Args:
        times: [pieces of work, rounds], in any unit.

    Returns:
        The same shape and unit.
    """
    steady: list[list[float]] = (np.asarray(times) / round_paces(times)).tolist()
    return steady


def round_paces(times: Sequence[Sequence[float]]) -> list[float]:
    """How slow each round was: 1 for a usual round, 1.2 for one that took 20% longer.

    Args:
        times: [pieces of work, rounds], in any unit.

    Returns:
        [rounds]: the median, over the pieces of work, of a time relative to that piece's median.
    """
    table: FloatArray = np.asarray(times, dtype=np.float64)
    relative = table / np.median(table, axis=1, keepdims=True)
    paces: list[float] = np.median(relative, axis=0).tolist()
    return paces


def clipped_mean(values: Sequence[float]) -> float:
    """Their mean, where values above twice the median count as twice it: in a few short samples
    a rare long pause would weigh more than it does in a text."""
    samples: FloatArray = np.asarray(values, dtype=np.float64)
    return float(np.minimum(samples, 2 * np.median(samples)).mean())


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the ends of its 95% interval, without assuming a distribution.

    The number of values below the median is binomial, which makes order statistics the ends of
    the interval. With fewer than six values the interval spans all of them, and covers less.
    """
    ordered: FloatArray = np.sort(np.asarray(values, dtype=np.float64))
    left_out = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)  # at either end
    return float(np.median(ordered)), float(ordered[left_out]), float(ordered[-1 - left_out])
