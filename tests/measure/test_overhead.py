from __future__ import annotations

import numpy as np
import pytest

from sequoia_opt.measure.forwards import overhead_trees
from sequoia_opt.measure.overhead import (
    CHANGE,
    PLAIN_PASS,
    Residual,
    TimedStep,
    fit_overhead,
    overhead_of,
)
from sequoia_opt.measure.timing import Timed
from sequoia_opt.plan.draft_passes import draft_passes


@pytest.mark.parametrize("few", [False, True])
def test_overhead_fit_finds_its_parts(few: bool) -> None:
    trees = overhead_trees(64, few)
    assert len(trees) == (5 if few else 10)
    measured = [(tree.size, len(draft_passes(tree))) for tree in trees]
    rows = [
        Residual(size, passes, 0.4 + 0.01 * size + 0.05 * passes + 0.7 * (size > 1), 10.0 + size)
        for size, passes in measured
    ]
    overhead = fit_overhead(rows)
    assert overhead.constant_ms == pytest.approx(0.4)
    assert overhead.per_token_ms == pytest.approx(0.01)
    assert overhead.per_level_ms == pytest.approx(0.05)
    assert overhead.drafting_ms == pytest.approx(0.7)
    for size, passes, overhead_ms, _ in rows:
        assert overhead.at(size, passes) == pytest.approx(overhead_ms)


def test_overhead_fit_passes_through_plain_decoding() -> None:
    generator = np.random.default_rng(0)
    rows = [
        Residual(tree.size, len(draft_passes(tree)), 0.5 + generator.normal(0, 0.2), 10.0)
        for tree in overhead_trees(64)
    ]
    overhead = fit_overhead(rows)
    assert overhead.at(1, 0) == pytest.approx(rows[0].extra_ms)
    assert overhead.per_token_ms >= 0
    assert overhead.per_level_ms >= 0
    assert fit_overhead([Residual(1, 0, 0.3, 5.0)]).at(1, 0) == pytest.approx(0.3)
    assert fit_overhead([Residual(1, 0, -4.7, 1.0)]).at(1, 0) == 0


@pytest.mark.parametrize("change_ms", [0.25, -0.1])
def test_another_size_than_the_one_before(change_ms: float) -> None:
    """Two target passes in turn take as long as alone and two changes more; never less than 0."""
    rounds = np.array([1.0, 1.2, 0.8])  # the machine's pace
    forwards = {("target", 1, 64, count): timed(count * rounds) for count in (1, 2, 4, 8)}
    steps = [
        TimedStep("greedy", 1, (), timed(1.3 * rounds)),
        TimedStep("adaptive greedy", 1, (), timed(1.5 * rounds)),
        TimedStep(CHANGE, 8, (), timed((9 + 2 * change_ms) * rounds), before=1),
    ]
    overheads = overhead_of(steps, forwards, [1, 2, 4, 8], 64)
    assert set(overheads) == {"greedy", "adaptive greedy"}
    assert overheads["greedy"].change_ms == 0
    assert overheads["adaptive greedy"].change_ms == pytest.approx(max(change_ms, 0))


@pytest.mark.parametrize("catch_up_ms", [0.25, -0.1])
def test_a_first_pass_that_reads_what_the_drafts_cache_lacks(catch_up_ms: float) -> None:
    """It takes longer than the same pass by itself; never less."""
    rounds = np.array([1.0, 1.2, 0.8])
    forwards = {
        (role, 1, 64, count): timed(ms * count * rounds)
        for role, ms in (("target", 1.0), ("draft", 0.1))
        for count in (1, 2, 4)
    }
    like = TimedStep("adaptive greedy", 4, (1, 1, 1), timed(5 * rounds))
    steps = [
        TimedStep("greedy", 1, (), timed(1.3 * rounds)),
        TimedStep("adaptive greedy", 1, (), timed(1.3 * rounds)),
        like,
        TimedStep("adaptive greedy", 4, (2, 1, 1), timed((5.1 + catch_up_ms) * rounds), like=like),
    ]
    overheads = overhead_of(steps, forwards, [1, 2, 4], 64)
    assert overheads["greedy"].catch_up_ms == 0
    assert overheads["adaptive greedy"].catch_up_ms == pytest.approx(max(catch_up_ms, 0))
    # The step itself tells nothing of the other parts.
    assert overheads["adaptive greedy"].at(4, 3) == pytest.approx(0.7)


def test_a_plain_steps_overhead_is_beside_the_pass_that_took_turns_with_it() -> None:
    """At another moment the machine was slower."""
    forwards = {("target", 1, 64, count): timed(np.full(3, 2.0 * count)) for count in (1, 8)}
    steps = [
        TimedStep("greedy", 1, (), timed(np.array([1.3, 1.5, 1.1]))),
        TimedStep("greedy", 8, (), timed(np.full(3, 17.0))),
        TimedStep(PLAIN_PASS, 1, (), timed(np.array([1.0, 1.2, 0.8]))),
    ]
    (overhead,) = overhead_of(steps, forwards, [1, 8], 64).values()
    assert overhead.at(1, 0) == pytest.approx(0.3)
    assert overhead.at(8, 0) == pytest.approx(1.0)


def timed(times: np.ndarray) -> Timed:
    """Work that has taken these times."""
    return Timed(lambda: None, times=times.tolist())
