"""Times of many things, taken round by round, so that what disturbs a machine disturbs all alike.

Runs what it is given and times it; knows neither models nor trees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import binom

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.torch.machine import TorchMachine
from sequoia_opt.measure.disturbance import slowdown
from sequoia_opt.measure.journal import Journal
from sequoia_opt.plan.latency import UNSURE
from sequoia_opt.types import FloatArray

Progress = Callable[[int, int], None]

# Runs of one thing in succession, before those that are timed and then timed: milliseconds of
# them, and at most so many.
RUN_IN_MS, TIMED_MS, RUNS = 60, 40, 16
QUEUED_RUNS = 2  # in a sample of queued work: one behind the other, of which the second is timed
LONG_MS = 100  # what takes longer is run once: what went before does not matter to it
PLAIN_TURNS = 3  # of plain decoding, which every speed-up is measured against
LEAST_ROUNDS = 5  # that a median and its interval take; of fewer they are thin


@dataclass
class Timed:
    """Something to run again and again, and how long it took, in milliseconds.

    It is run for a while before it is timed, as a step follows steps like it: on a CPU plain
    decoding takes 20 % longer right behind something else, 7 % after two runs, and is steady
    after ten; a large tree's step slows down instead. In a step the models take turns: what that
    costs counts as overhead. A sample of queued work has such a run in it.

    Attributes:
        turns: in a round, of which the median counts; what all else is compared with needs more.
        parts: how many of them one run is: a graph's beginning takes a while of its own.
        times: that counted, by round; none if there was no time for a spare one.
        queued: timed as the device sees it that does one piece of work behind another, and not
            from outside, where each takes a while to be issued and waited for.
        streams: it brings layers in, the first of which came while something else was timed.
        spare: others around it say nearly as much: where there is no time, it is left out.
    """

    run: Callable[[], object]
    turns: int = 1
    parts: int = 1
    queued: bool = False
    streams: bool = False
    spare: bool = False
    times: list[float] = field(default_factory=list)

    def turn_ms(self, device: torch.device, world: World) -> float:
        """The median of runs in succession; all processes make as many."""
        once = world.agree_on(self.sample_ms(device))
        if once >= LONG_MS:
            return self.sample_ms(device) if self.streams else once
        if self.queued:
            samples = [once]
            while len(samples) < _runs(TIMED_MS, QUEUED_RUNS * self.parts * once):
                samples.append(self.sample_ms(device))
            return float(np.median(samples))
        for _ in range(_runs(RUN_IN_MS, once)):
            self.sample_ms(device)
        return float(np.median([self.sample_ms(device) for _ in range(_runs(TIMED_MS, once))]))

    def hasty_ms(self, device: torch.device, world: World) -> float:
        """A time where there is none for more: of a second run, or of one that takes long."""
        once = world.agree_on(self.sample_ms(device))
        return once if once >= LONG_MS else self.sample_ms(device)

    def sample_ms(self, device: torch.device) -> float:
        """Run it once; milliseconds."""
        return TorchMachine(device).elapsed_ms(self.run, self.queued) / self.parts


def _runs(milliseconds: float, once: float) -> int:
    """How many runs fill a time, if one of them takes `once`."""
    return int(np.clip(np.ceil(milliseconds / max(once, 1e-3)), 1, RUNS))


@dataclass(frozen=True)
class Rounds:
    """Rounds of one part of a profile, each kept when it is done.

    Attributes:
        repeats: rounds that count.
        warm_up: rounds that do not.
        name: of the part, for the journal.
        patience: how many times as many rounds there are at most, as long as times spread too far.
    """

    device: torch.device
    repeats: int
    warm_up: int = 0
    world: World = ALONE
    journal: Journal = field(default_factory=Journal)
    name: str = ""
    patience: int = 1

    def run(
        self,
        timed: Sequence[Timed],
        progress: Progress = lambda done, total: None,
        tell: Callable[[str], None] = lambda what: None,
        note: Callable[[str], None] = lambda what: None,
    ) -> int:
        """Time everything once a round, in an order that changes, so that drift hits all alike.

        When the journal's time is up, a round that is under way is dropped, unless it is the
        first: then the points that are left are timed once each, and spare ones are skipped.

        Args:
            progress: called with how many turns were timed, and how many there are to time.
            tell: called with what makes the times less than they seem.
            note: called when more rounds are measured than were asked for.

        Returns:
            How many rounds count: as many as were asked for, fewer if the time was up, more where
            times spread.
        """
        order = random.Random(0)
        warm_up, repeats = self.warm_up, self.repeats
        turns = sum(item.turns for item in timed)
        counted, number, most, before = 0, 0, repeats, None
        while counted < repeats or (counted < self.patience * repeats and self._are_unsure(timed)):
            if counted == repeats:
                most = self.patience * repeats
                note(f"{self.name}: times spread; up to {most - repeats} rounds more")
            name = f"{self.name}, round {number}"
            found, is_cut_short = self.journal.recall(name), False
            if found is None:
                if counted and self.journal.is_over(self.world):
                    break
                if number >= warm_up and warm_up and before is None:  # resumed in a new process
                    before = self._time(timed, order)
                whole = (warm_up + most) * turns
                found = self._time(timed, order, progress, number * turns, whole)
                is_cut_short = bool(np.isnan(found).any())
                if is_cut_short and counted:
                    break
                found = self._whole(timed, found, before)
                before = found
                if not is_cut_short:
                    self.journal.keep(name, found)
            if number >= warm_up or is_cut_short:
                counted += 1
                with self.journal.taking_up(name):
                    for item, milliseconds in zip(timed, found, strict=True):
                        if np.isfinite(milliseconds):
                            item.times.append(float(milliseconds))
            number += 1
            progress(number * turns, (warm_up + most) * turns)
        known = [item for item in timed if item.times]
        if slower := slowdown(paces([item.times for item in known])):
            tell(slower)
        take_out_drift(known)
        return counted

    def _time(
        self,
        timed: Sequence[Timed],
        order: random.Random,
        progress: Progress = lambda done, total: None,
        before: int = 0,
        total: int = 0,
    ) -> list[float]:
        """One round, see `time_round`, as far as there is time.

        Args:
            before: turns of the rounds before it.
            total: turns of all rounds.
        """
        return time_round(
            timed,
            self.device,
            order,
            self.world,
            lambda done: progress(before + done, total),
            lambda: self.journal.is_over(self.world),
            spare_last=not before,
        )

    def _whole(
        self, timed: Sequence[Timed], found: list[float], before: list[float] | None
    ) -> list[float]:
        """A round whose missing times are those of the round before, else taken in haste; of what
        is spare there is none."""
        whole = []
        for place, milliseconds in enumerate(found):
            if np.isnan(milliseconds) and before is not None:
                milliseconds = before[place]
            if np.isnan(milliseconds) and not timed[place].spare:
                milliseconds = timed[place].hasty_ms(self.device, self.world)
            whole.append(milliseconds)
        return whole

    def _are_unsure(self, timed: Sequence[Timed]) -> bool:
        """Whether any time spreads too far to be trusted; all processes agree.

        A draft's forwards always do while an offloaded target's layers come in, and are next to
        nothing of a step there: they are not waited for.
        """
        steady = without_drift([item.times for item in timed])
        streaming = [times for item, times in zip(timed, steady, strict=True) if item.streams]
        intervals = np.array([median_interval(times) for times in streaming or steady])
        wide = intervals[:, 2] - intervals[:, 1] > UNSURE * intervals[:, 0]
        return bool(self.world.agree_on(bool(wide.any())))


def time_round(
    timed: Sequence[Timed],
    device: torch.device,
    order: random.Random,
    world: World,
    progress: Callable[[int], None] = lambda done: None,
    is_over: Callable[[], bool] = lambda: False,
    spare_last: bool = False,
) -> list[float]:
    """Milliseconds of each, timed once; all processes run the same, as often.

    Args:
        progress: called before each turn with how many were timed.
        is_over: whether to stop; what was not timed by then is NaN.
        spare_last: time what is spare after all else.
    """
    places = [place for place, item in enumerate(timed) for _ in range(item.turns)]
    order.shuffle(places)
    if spare_last:
        places.sort(key=lambda place: timed[place].spare)
    found: list[list[float]] = [[] for _ in timed]
    for done, place in enumerate(places):
        if is_over():
            break
        progress(done)
        found[place].append(timed[place].turn_ms(device, world))
    return [float(np.median(turns)) if turns else float("nan") for turns in found]


def take_out_drift(timed: Sequence[Timed]) -> None:
    """Divide out of all times what is a round's and not a point's."""
    steady = without_drift([item.times for item in timed])
    for item, times in zip(timed, steady, strict=True):
        item.times = times


def without_drift(times: Sequence[Sequence[float]]) -> list[list[float]]:
    """Times of each point by round, with what made a whole round faster or slower divided out.

    A shared machine's speed wanders by tens of per cent over a minute. Within a round it hits
    all points alike, and speed-ups are ratios of them: only what a point does of its own is
    its spread.
    """
    steady: list[list[float]] = (np.asarray(times) / paces(times)).tolist()
    return steady


def paces(times: Sequence[Sequence[float]]) -> list[float]:
    """How long each round took beside the others, of times of each point by round."""
    table: FloatArray = np.asarray(times, dtype=np.float64)
    found: list[float] = np.median(table / np.median(table, axis=1, keepdims=True), axis=0).tolist()
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval, from order statistics: no distribution is assumed.

    The number of values below the median is binomial. Of fewer than six values the interval is
    all of them, and covers less.
    """
    ordered: FloatArray = np.sort(np.asarray(values, dtype=np.float64))
    left_out = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)  # at either end
    return float(np.median(ordered)), float(ordered[left_out]), float(ordered[-1 - left_out])
