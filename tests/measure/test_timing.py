from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.engine.distributed import ALONE
from sequoia_opt.engine.torch.machine import TorchMachine
from sequoia_opt.measure import timing
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.timing import (
    Rounds,
    Timed,
    clipped_mean,
    median_interval,
    time_round,
    without_drift,
)

CPU = TorchMachine(torch.device("cpu"))


@pytest.fixture(autouse=True)
def _short_work_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the program, and in no other test."""
    monkeypatch.setattr(timing, "LONG_MS", 100)


def test_drift_does_not_count_as_spread() -> None:
    """Rounds on a machine whose speed wanders: the ratios of the times are exact."""
    generator = np.random.default_rng(0)
    paces = np.exp(0.3 * generator.standard_normal(25))
    true_ms = np.array([1.0, 2.0, 5.0, 9.0, 9.5])
    noise = np.exp(0.01 * generator.standard_normal((5, 25)))
    steady = np.array(without_drift(true_ms[:, None] * paces * noise))
    medians = np.median(steady, axis=1)
    assert medians / medians[0] == pytest.approx(true_ms, rel=0.01)
    assert (steady.std(axis=1) / medians < 0.02).all()


def test_a_rounds_time_is_the_mean_of_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {"often": [3.0, 1.0, 2.6, 6.0, 4.0, 4.1], "once": [7.0, 7.0]}
    monkeypatch.setattr(timing, "LONG_MS", 1.0)  # so that a turn is one run

    class Clock(Timed):
        def sample_ms(self, machine: Any) -> float:
            return samples[str(self.run())].pop(0)

    timed = [Clock(lambda: "often", turns=3), Clock(lambda: "once")]
    Rounds(CPU, repeats=2).run(timed)
    assert not any(samples.values())
    assert timed[0].times[0] / timed[1].times[0] == pytest.approx(2.2 / 7)
    assert timed[0].times[1] / timed[1].times[1] == pytest.approx(4.7 / 7)


def test_work_is_timed_behind_runs_of_the_same_work() -> None:
    """The first run behind other work takes longer; it must not count."""
    last, slow = "", 0

    class Clock(Timed):
        def sample_ms(self, machine: Any) -> float:
            before = last
            return 1.0 if self.run() == before else 9.0

    def run(name: str) -> str:
        nonlocal last, slow
        slow += name != last
        last = name
        return name

    timed = [Clock(lambda: run("a")), Clock(lambda: run("b"))]
    Rounds(CPU, repeats=6).run(timed)
    assert slow > 6
    assert {milliseconds for item in timed for milliseconds in item.times} == {1.0}


def test_companions_show_small_differences_on_a_machine_whose_speed_wanders() -> None:
    """They have no turns of their own, and each of their samples comes right behind another."""
    taken = 0

    class Clock(Timed):
        def sample_ms(self, machine: Any) -> float:
            nonlocal taken
            taken += 1
            return 5 + 3 * math.sin(taken / 100) + float(str(self.run()))

    companions = [Clock(lambda: 0.25, turns=0), Clock(lambda: 0.5, turns=0)]
    work = Clock(lambda: 0.0, turns=2, companions=companions)
    first, second, plain = time_round([*companions, work], CPU, random.Random(0), ALONE)
    assert first - plain == pytest.approx(0.25, abs=0.05)
    assert second - plain == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("in_a_row", "expected"), [(1, 5.0), (8, 1.0)])
def test_companions_in_a_row_come_behind_themselves(in_a_row: int, expected: float) -> None:
    """Behind other work they take longer, for two samples."""
    recent: list[object] = []

    class Clock(Timed):
        def sample_ms(self, machine: Any) -> float:
            recent.append(self)
            return 1.0 if recent[-3:] == [self] * 3 else 5.0

    companion = Clock(lambda: None, turns=0)
    work = Clock(lambda: None, companions=[companion], in_a_row=in_a_row)
    assert time_round([companion, work], CPU, random.Random(0), ALONE) == [expected] * 2


@pytest.mark.parametrize(
    ("samples", "rounds"),
    [([1.0] * 40, 5), ([1.0, 9.0, *[1.0] * 40], 9), ([1.0, 2.0, 3.0] * 14, 15)],
    ids=["quiet", "disturbed once", "never quiet"],
)
def test_rounds_are_added_while_times_are_noisy(samples: list[float], rounds: int) -> None:
    """One outlier matters until there are nine rounds; at most three times as many are made."""
    calls: list[tuple[int, int]] = []
    remaining = iter(samples)

    class Clock(Timed):
        def turn_ms(self, machine: Any, world: Any) -> float:
            return next(remaining) if self.queued else 1.0

    timed = [Clock(lambda: None, queued=queued) for queued in (False, False, True)]
    notes: list[str] = []
    counted = Rounds(CPU, repeats=5, max_multiple=3, name="batch 1").run(
        timed, lambda *counts: calls.append(counts), note=notes.append
    )
    assert counted == len(timed[0].times) == rounds
    # Turn by turn; from the first added round on, the total is that of all that may be added.
    if rounds == 5:
        assert list(dict.fromkeys(calls)) == [(turn, 15) for turn in range(16)]
    assert {done for done, _ in calls} == set(range(3 * rounds + 1))
    assert all(total == (15 if done < 15 else 45) for done, total in calls if done != 15)
    note = "batch 1: times are noisy; measuring up to 10 more rounds"
    assert notes == ([note] if rounds > 5 else [])


class EndingJournal(Journal):
    """A journal whose time is up after it was asked a number of times; it has no file."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self.questions = questions
        self.recorded: list[str] = []

    def time_is_up(self, world: Any = None) -> bool:
        self.questions -= 1
        return self.questions < 0

    def record(self, name: str, value: Any) -> None:
        self.recorded.append(name)


@pytest.mark.parametrize(
    ("questions", "rounds", "quick", "optional"),
    [
        (0, 1, 3, 0),  # everything was timed quickly
        (2, 1, 1, 0),  # two of the first round's turns, none of them of optional work
        (3, 1, 0, 0),
        (4, 1, 0, 1),  # a whole warm-up round has to serve
        (6, 1, 0, 1),  # and also if the next round is cut short
        (8, 1, 0, 1),  # one round that counts
        (11, 1, 0, 1),  # a second one that is cut short is dropped
        (13, 2, 0, 2),
    ],
)
def test_the_time_limit_holds_within_a_round(
    questions: int, rounds: int, quick: int, optional: int
) -> None:
    """Whenever the time is up, all work but the optional has one time per round."""
    quick_samples = 0

    class Clock(Timed):
        def turn_ms(self, machine: Any, world: Any) -> float:
            return 1.0

        def sample_ms(self, machine: Any) -> float:
            nonlocal quick_samples
            quick_samples += 1
            return 200.0  # long: it is run once

    timed = [Clock(lambda: None, optional=flag) for flag in (False, True, False, False)]
    journal = EndingJournal(questions)
    counted = Rounds(CPU, repeats=7, warm_up=1, journal=journal).run(timed)
    assert counted == rounds
    assert quick_samples == quick
    assert [len(item.times) for item in timed if not item.optional] == [rounds] * 3
    assert len(timed[1].times) == optional
    assert len(journal.recorded) == sum(questions >= enough for enough in (4, 8, 13))


def test_a_quick_time_is_that_of_warm_work() -> None:
    """The first run may compile; of short work the second one counts."""
    times = iter([90.0, 3.0, 150.0])

    class Clock(Timed):
        def sample_ms(self, machine: Any) -> float:
            return next(times)

    item = Clock(lambda: None)
    assert [item.quick_ms(CPU, ALONE) for _ in range(2)] == [3.0, 150.0]


def test_no_rounds_are_added_for_a_negligible_part_of_a_step() -> None:
    """A draft's time is noisy beside a forward pass that brings in a target's layers."""
    noisy = iter([1.0, 5.0] * 10)

    class Clock(Timed):
        def turn_ms(self, machine: Any, world: Any) -> float:
            return 1000.0 if self.streams else next(noisy)

    timed = [Clock(lambda: None, streams=streams) for streams in (True, True, False)]
    assert Rounds(CPU, repeats=5, max_multiple=2).run(timed) == 5


def test_a_machine_that_slows_down_gives_a_warning() -> None:
    samples = iter([1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5])

    class Clock(Timed):
        def turn_ms(self, machine: Any, world: Any) -> float:
            return next(samples)

    warnings: list[str] = []
    Rounds(CPU, repeats=7).run([Clock(lambda: None)], warn=warnings.append)
    assert warnings == ["the last rounds took 50% longer than the first"]


def test_a_rare_pause_counts_as_twice_the_usual_time() -> None:
    assert clipped_mean([16.0, 17.0, 22.0]) == pytest.approx(55 / 3)  # a slow minute counts
    assert clipped_mean([1.0, 1.0, 1.0, 50.0]) == pytest.approx(5 / 4)
    assert clipped_mean([4.0]) == 4


def test_the_interval_covers_the_median() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        _, low, high = median_interval(generator.exponential(size=25))
        covered += bool(low <= np.log(2) <= high)
    assert covered >= 372  # 95% of 400, less two standard deviations


def test_rounds_are_resumed(tmp_path: Path) -> None:
    clock = iter(range(1, 1000))

    class Counting(Timed):
        def turn_ms(self, machine: Any, world: Any) -> float:
            return float(next(clock))

    def run(repeats: int, resume: bool) -> tuple[list[float], int]:
        item = Counting(lambda: None)
        journal = Journal(tmp_path / "journal", {}, resume)
        counted = Rounds(CPU, repeats, warm_up=1, journal=journal, name="x").run([item])
        return [float(np.median(item.times))], counted

    first, counted = run(5, False)  # 2 to 6 count
    assert (first, counted) == ([4.0], 5)
    # Five of nine rounds are recorded; one more warms up.
    second, counted = run(9, True)  # 2 to 6 and 8 to 11
    assert (second, counted) == ([6.0], 9)


@pytest.mark.parametrize(("milliseconds", "samples"), [(0.1, 16), (1.0, 5), (7.0, 1), (200.0, 1)])
def test_queued_work_is_sampled_without_untimed_runs(milliseconds: float, samples: int) -> None:
    """A sample runs the work eight times, of which four are timed; 40 ms of that are enough."""
    taken: list[float] = []

    class Clock(Timed):
        def sample_ms(self, machine: Any) -> float:
            taken.append(milliseconds)
            return milliseconds

    assert Clock(lambda: None, runs_per_call=4, queued=True).turn_ms(CPU, ALONE) == milliseconds
    assert len(taken) == samples
