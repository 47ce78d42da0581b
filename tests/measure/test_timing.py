from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.engine.distributed import ALONE
from sequoia_opt.measure import timing
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.timing import Rounds, Timed, median_interval, without_drift

CPU = torch.device("cpu")


def test_drift_is_no_spread() -> None:
    """Rounds on a machine whose speed wanders: the points' ratios come out as they are."""
    generator = np.random.default_rng(0)
    wander = np.exp(0.3 * generator.standard_normal(25))
    true = np.array([1.0, 2.0, 5.0, 9.0, 9.5])
    noise = np.exp(0.01 * generator.standard_normal((5, 25)))
    steady = np.array(without_drift(true[:, None] * wander * noise))
    medians = np.median(steady, axis=1)
    assert medians / medians[0] == pytest.approx(true, rel=0.01)
    assert (steady.std(axis=1) / medians < 0.02).all()


def test_the_median_of_a_rounds_turns_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = {"often": [3.0, 1.0, 2.0, 6.0, 4.0, 5.0], "once": [7.0, 7.0]}
    monkeypatch.setattr(timing, "LONG_MS", 1.0)  # so that one run is a turn

    class Clock(Timed):
        def sample_ms(self, device: torch.device) -> float:
            return waiting[str(self.run())].pop(0)

    timed = [Clock(lambda: "often", turns=3), Clock(lambda: "once")]
    Rounds(CPU, repeats=2).run(timed)
    assert not any(waiting.values())
    assert timed[0].times[0] / timed[1].times[0] == pytest.approx(2 / 7)
    assert timed[0].times[1] / timed[1].times[1] == pytest.approx(5 / 7)


def test_what_is_timed_follows_runs_like_it() -> None:
    """A first run after another thing takes longer; it must not count."""
    last, slow = "", 0

    class Clock(Timed):
        def sample_ms(self, device: torch.device) -> float:
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
    assert {each for item in timed for each in item.times} == {1.0}


@pytest.mark.parametrize(
    ("spread", "rounds"),
    [([1.0] * 40, 5), ([1.0, 9.0, *[1.0] * 40], 9), ([1.0, 2.0, 3.0] * 14, 15)],
    ids=["quiet", "disturbed once", "never quiet"],
)
def test_rounds_are_added_while_times_spread(spread: list[float], rounds: int) -> None:
    """One round that is off counts until there are nine; three times as many are the most."""
    seen: list[tuple[int, int]] = []
    waiting = iter(spread)

    class Clock(Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return float(next(waiting)) if self.parts == 2 else 1.0

    timed = [Clock(lambda: None, parts=parts) for parts in (1, 1, 2)]
    said: list[str] = []
    counted = Rounds(CPU, repeats=5, patience=3, name="batch 1").run(
        timed, lambda *counts: seen.append(counts), note=said.append
    )
    assert counted == len(timed[0].times) == rounds
    # Turn by turn, in the rounds that are added too, of as many as there may be.
    assert (
        list(dict.fromkeys(seen))
        == [
            *((turn, 15) for turn in range(16)),
            *((turn, 45) for turn in range(16, 3 * rounds + 1)),
        ][: 3 * rounds + 1]
        or rounds > 5
    )
    assert {done for done, _ in seen} == set(range(3 * rounds + 1))
    assert all(total == (15 if done < 15 else 45) for done, total in seen if done != 15)
    assert said == (["batch 1: times spread; up to 10 rounds more"] if rounds > 5 else [])


class Ending(Journal):
    """Its time is up after so many times that somebody asks; keeps nothing."""

    def __init__(self, asked: int) -> None:
        super().__init__()
        self.left = asked
        self.kept: list[str] = []

    def is_over(self, world: Any = None) -> bool:
        self.left -= 1
        return self.left < 0

    def keep(self, name: str, value: Any) -> None:
        self.kept.append(name)


@pytest.mark.parametrize(
    ("asked", "rounds", "hasty", "spares"),
    [
        (0, 1, 3, 0),  # nothing was timed but in haste
        (2, 1, 1, 0),  # two of the first round's, the spare one not among them
        (3, 1, 0, 0),
        (4, 1, 0, 1),  # a whole round that was to warm up has to do
        (6, 1, 0, 1),  # and so where the next one is cut
        (8, 1, 0, 1),  # one round that counts
        (11, 1, 0, 1),  # a second one that is cut is dropped
        (13, 2, 0, 2),
    ],
)
def test_a_bound_holds_inside_a_round(asked: int, rounds: int, hasty: int, spares: int) -> None:
    """Whenever it comes, everything that is not spare has as many times as there are rounds."""
    in_haste = 0

    class Clock(Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return 1.0

        def sample_ms(self, device: torch.device) -> float:
            nonlocal in_haste
            in_haste += 1
            return 200.0  # long: it is run once

    timed = [Clock(lambda: None, spare=spare) for spare in (False, True, False, False)]
    journal = Ending(asked)
    counted = Rounds(CPU, repeats=7, warm_up=1, journal=journal).run(timed)
    assert counted == rounds
    assert in_haste == hasty
    assert [len(item.times) for item in timed if not item.spare] == [rounds] * 3
    assert len(timed[1].times) == spares
    assert len(journal.kept) == (asked >= 4) + (asked >= 8) + (asked >= 13)


def test_what_is_timed_in_haste_is_warm() -> None:
    """A first run may compile; of what is short, the second one counts."""
    times = iter([90.0, 3.0, 150.0])

    class Clock(Timed):
        def sample_ms(self, device: torch.device) -> float:
            return next(times)

    item = Clock(lambda: None)
    assert [item.hasty_ms(CPU, ALONE) for _ in range(2)] == [3.0, 150.0]


def test_no_rounds_are_added_for_what_is_next_to_nothing() -> None:
    """A draft's time, beside a forward that brings a target's layers in."""
    spreading = iter([1.0, 5.0] * 10)

    class Clock(Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return next(spreading) if self.parts == 2 else 1000.0

    timed = [Clock(lambda: None, parts=parts, streams=parts == 1) for parts in (1, 1, 2)]
    assert Rounds(CPU, repeats=5, patience=2).run(timed) == 5


def test_a_machine_that_slows_down_is_told_of() -> None:
    pace = iter([1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5])

    class Clock(Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return next(pace)

    said: list[str] = []
    Rounds(CPU, repeats=7).run([Clock(lambda: None)], tell=said.append)
    assert said == ["all became 50% slower from first to last"]


def test_interval_of_the_median_covers_it() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        _, low, high = median_interval(generator.exponential(size=25))
        covered += bool(low <= np.log(2) <= high)
    assert covered >= 372  # 95 % of 400, less two standard deviations


def test_rounds_are_taken_up(tmp_path: Path) -> None:
    clock = iter(range(1, 1000))

    class Counting(Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return float(next(clock))

    def run(repeats: int, resume: bool) -> tuple[list[float], int]:
        item = Counting(lambda: None)
        journal = Journal(tmp_path / "journal", {}, resume)
        counted = Rounds(CPU, repeats, warm_up=1, journal=journal, name="x").run([item])
        return [float(np.median(item.times))], counted

    first, counted = run(5, False)  # 2 to 6 count
    assert (first, counted) == ([4.0], 5)
    # Of nine rounds five are there; another warms up.
    second, counted = run(9, True)  # 2 to 6 and 8 to 11
    assert (second, counted) == ([6.0], 9)


@pytest.mark.parametrize(("milliseconds", "samples"), [(0.1, 16), (1.0, 5), (7.0, 1), (200.0, 1)])
def test_queued_work_is_sampled_for_a_while_and_not_run_in(
    milliseconds: float, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample runs eight forward passes, of which four are timed; 40 ms of them are enough."""
    monkeypatch.setattr(timing, "TIMED_MS", 40)
    monkeypatch.setattr(timing, "RUN_IN_MS", 60)
    taken: list[float] = []

    class Clock(Timed):
        def sample_ms(self, device: torch.device) -> float:
            taken.append(milliseconds)
            return milliseconds

    assert Clock(lambda: None, parts=4, queued=True).turn_ms(CPU, ALONE) == milliseconds
    assert len(taken) == samples
