from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.engine.distributed import ALONE
from sequoia_opt.measure import rounds
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.rounds import Rounds, Timed, median_interval, without_drift

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
    monkeypatch.setattr(rounds, "LONG_MS", 1.0)  # so that one run is a turn

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
    counted = Rounds(CPU, repeats=5, patience=3).run(timed, lambda *counts: seen.append(counts))
    assert counted == len(timed[0].times) == rounds
    assert seen == [(n, max(n, 5)) for n in range(1, rounds + 1)]


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
    monkeypatch.setattr(rounds, "TIMED_MS", 40)
    monkeypatch.setattr(rounds, "RUN_IN_MS", 60)
    taken: list[float] = []

    class Clock(Timed):
        def sample_ms(self, device: torch.device) -> float:
            taken.append(milliseconds)
            return milliseconds

    assert Clock(lambda: None, parts=4, queued=True).turn_ms(CPU, ALONE) == milliseconds
    assert len(taken) == samples
