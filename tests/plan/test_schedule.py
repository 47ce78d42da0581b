from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.schedule import Schedule, Stretch, _monotone, schedule
from sequoia_opt.plan.solver import solve

RATES = Acceptance(np.array([0.8]), context=100.0)


def machine(
    batches: tuple[int, ...] = (1, 4, 16, 64), largest: int = 9, noise: float = 0.0
) -> LatencyProfile:
    """A forward pass takes longer from 32 tokens of all sequences on."""

    def model(base: float) -> ModelLatency:
        curves = []
        for batch in batches:
            tokens = np.arange(1, largest + 1)
            times = base * np.maximum(1.0, batch * tokens / 32)
            low, high = times * (1 - noise), times * (1 + noise)
            curves.append(Curve(batch, 100, tokens.tolist(), times, low, high))
        return ModelLatency("m", "", curves)

    return LatencyProfile({}, {}, {}, model(10.0), model(0.5), {"greedy": Overhead(0.1, 0, 0)})


def test_guesses_at_measured_batches_are_those_of_the_best_chain() -> None:
    profile = machine()
    planned = schedule(profile, RATES, replicates=20)
    for batch in profile.batches():
        best = solve(profile, RATES, batch=batch, shape="chain", replicates=20).choice
        assert planned.guesses[batch - 1] == best.tree.depth
        assert planned.speedup(batch) == pytest.approx(best.speedup[0])


def test_guesses_never_rise_and_cover_every_batch() -> None:
    planned = schedule(machine(), RATES, replicates=20)
    guesses = planned.guesses
    assert len(guesses) == 64
    assert (np.diff(guesses) <= 0).all()
    assert guesses[0] > 0
    assert planned.stops is not None
    assert guesses[planned.stops - 2] > 0 == guesses[planned.stops - 1]
    spread = [s.guesses for s in planned.stretches for _ in range(s.first, s.last + 1)]
    assert spread == guesses.tolist()
    assert planned.chain == shapes.chain(guesses[0] + 1)


def test_times_between_measured_batches_are_interpolated() -> None:
    profile = machine()
    planned = schedule(profile, RATES, replicates=0)
    chain = shapes.chain(4)
    at = {batch: profile.step_ms(chain, "greedy", 100, batch) for batch in (4, 16)}
    assert planned.step_ms[9, 3] == pytest.approx((at[4] + at[16]) / 2)


@pytest.mark.parametrize("seed", range(20))
def test_no_monotone_schedule_has_a_larger_product_of_speeds(seed: int) -> None:
    speeds = np.random.default_rng(seed).uniform(0.5, 2.0, (4, 4))
    if seed % 2:
        speeds = speeds.round(1)  # equal products
    guesses = _monotone(speeds)
    falling = [g for g in product(range(4), repeat=4) if all(np.diff(g) <= 0)]
    values = {g: np.prod(speeds[np.arange(4), g]) for g in falling}
    assert values[tuple(guesses.tolist())] == pytest.approx(max(values.values()))


def test_a_rise_by_noise_is_not_followed() -> None:
    """Two guesses seem best at the last batch, but one is better by more at the one before."""
    speeds = np.array([[1.0, 1.2, 1.3], [1.0, 1.1, 1.05], [1.0, 1.05, 1.06]])
    assert _monotone(speeds).tolist() == [2, 1, 1]


def test_the_stop_has_an_interval_from_the_times() -> None:
    sure, unsure = (schedule(machine(noise=noise), RATES) for noise in (0.0, 0.2))
    assert sure.stops_between[0] == sure.stops_between[1]
    assert unsure.stops_between[0] < sure.stops_between[0] < unsure.stops_between[1]


def test_speculation_may_pay_at_every_batch_or_at_none() -> None:
    small = schedule(machine(batches=(1, 2)), RATES, replicates=0)
    assert small.stops is None
    never = schedule(machine(), Acceptance(np.array([0.01]), context=100.0), replicates=0)
    assert (never.stops, never.chain.size) == (1, 1)
    assert never.stretches == [Stretch(1, 64, 0)]


def test_a_chain_that_was_not_measured_at_a_batch_is_not_scheduled_there() -> None:
    profile = machine()
    for model in (profile.target, profile.draft):
        for curve in model.curves:
            if curve.batch == 4:
                curve.tokens = curve.tokens[:3]
                for name in ("median_ms", "low_ms", "high_ms"):
                    setattr(curve, name, getattr(curve, name)[:3])
    planned = schedule(profile, RATES, replicates=0)
    assert planned.guesses[0] > 2
    assert set(planned.guesses[1:16].tolist()) <= {0, 1, 2}


def test_max_size_limits_the_guesses() -> None:
    assert schedule(machine(), RATES, replicates=0, max_size=3).guesses.max() == 2
    assert schedule(machine(), RATES, replicates=0, max_depth=1).guesses.max() == 1


def by_littles_law(planned: Schedule, arriving: float) -> int:
    """The batch by iteration: sequences decode for W, and arrive meanwhile."""
    batch = 1
    for _ in range(1000):
        each_per_second = planned.tokens_per_second(batch) / batch
        batch = max(1, int(np.ceil(arriving / each_per_second - 1e-9)))
    return batch


@pytest.mark.parametrize("rate", [0.1, 1, 4, 8])
def test_the_batch_of_a_rate_of_requests(rate: float) -> None:
    planned = schedule(machine(), RATES, replicates=0)
    load = planned.load(rate, 100)
    assert load.batch == by_littles_law(planned, 100 * rate)
    assert load.guesses == planned.guesses[load.batch - 1]
    assert load.batch >= rate * load.request_seconds > load.batch - 1 - 1e-9 or load.batch == 1


def test_refuses_what_it_cannot_schedule() -> None:
    with pytest.raises(SequoiaError, match="found a profile of batch 1 only"):
        schedule(machine(batches=(1,)), RATES)
    with pytest.raises(SequoiaError, match="no time of a step with one guess"):
        schedule(machine(largest=1), RATES)
    planned = schedule(machine(), RATES, replicates=0)
    with pytest.raises(SequoiaError, match="requests per second: found 1000, expected at most"):
        planned.load(1000, 100)
