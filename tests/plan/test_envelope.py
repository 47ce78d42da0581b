from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_adaptive import SIZES, make_search

from sequoia_opt.plan.adaptive import Limits
from sequoia_opt.plan.envelope import (
    MOST_LOST,
    MOST_SIZES,
    adaptive_chain,
    adaptive_tree,
    fewer_sizes,
    hopeless_loss,
)
from sequoia_opt.plan.policy import Pause


def test_a_chain_stays_a_chain_and_a_tree_is_at_least_as_fast() -> None:
    search = make_search(slope=0.2, draft_ms=0.5)
    limits = Limits(4, 4, (1, 2, 4), SIZES)
    chain = adaptive_chain(search, limits, 0.05)
    assert chain.policy.is_chain
    assert chain.policy.width == 1
    assert chain.policy.largest_size <= 8  # the first size with room for four guesses
    tree = adaptive_tree(search, limits, chain.rate)
    assert tree.rate >= 0.99 * chain.rate
    assert tree.policy.sizes[0] == 1


def test_sizes_that_save_nothing_are_left_out() -> None:
    counts = np.array([0, 10, 0, 5, 5, 0, 0, 0, 8])
    free_between = np.array([0.0, 1, 1, 2, 2, 2, 3, 3, 3])
    assert fewer_sizes(counts, free_between, 0.0) == (1, 4, 8)
    dear = np.arange(9.0)
    assert fewer_sizes(counts, dear, 0.0) == (1, 3, 4, 8)


def test_there_are_at_most_so_many_sizes() -> None:
    counts, times = np.full(31, 3), np.arange(31.0)
    counts[0] = 0
    sizes = fewer_sizes(counts, times, 0.0)
    assert len(sizes) == MOST_SIZES
    assert (sizes[0], sizes[-1]) == (1, 30)


def simulated_loss(pause: Pause | None, ratio: float) -> float:
    """By decoding until the text is long enough."""
    tokens, time, misses, left, index = 0, 0.0, 0, 0, 0
    while tokens < 128 or left:
        tokens += 1
        if left:
            left -= 1
            time += 1
            continue
        time += ratio
        misses += 1
        if pause is not None and misses >= pause.misses:
            left = pause.steps[min(index, len(pause.steps) - 1)]
            index += 1
    return 1 - tokens / time


@pytest.mark.parametrize("pause", [None, Pause(3, (8, 16, 32)), Pause(1, (2,)), Pause(6, (64,))])
def test_the_loss_on_text_in_which_nothing_is_accepted(pause: Pause | None) -> None:
    assert hopeless_loss(pause, 1.4) == pytest.approx(simulated_loss(pause, 1.4))


def test_a_pause_insures_against_hopeless_text() -> None:
    """Its price on the text is small where misses in a row are rare."""
    search = make_search(draft_ms=3.0, sureness=3.0)
    chain = adaptive_chain(search, Limits(4, 4, (1, 2, 4), SIZES), 0.05)
    assert chain.policy.pause is not None
    lost = hopeless_loss(chain.policy.pause, 1.3)
    assert lost <= 1.5 * MOST_LOST
    assert hopeless_loss(None, 1.3) > 10 * MOST_LOST
    without = search.changed(chain, pause=None)
    assert chain.rate >= 0.98 * without.rate


def test_widths_that_are_not_used_are_left_out() -> None:
    search = make_search(slope=3.0, draft_ms=3.0, sureness=3.0)
    search.times.draft_ms[:, 2:] *= 50
    tree = adaptive_tree(search, Limits(4, 4, (1, 2, 4), SIZES), 0.05)
    assert tree.policy.width == 1


@pytest.mark.parametrize(
    ("slope", "draft_ms", "sureness"),
    [(3, 0.1, 3), (3, 0.3, 2), (2, 0.1, 3), (1, 0.1, 1), (0.3, 0.1, 3)],
)
def test_no_other_depth_is_faster(slope: float, draft_ms: float, sureness: float) -> None:
    """Four levels need a target pass of 8 nodes, three one of 4."""
    search = make_search(slope, draft_ms, sureness=sureness)
    chain = adaptive_chain(search, Limits(4, 1, (1,), SIZES), 0.05)
    tokens, milliseconds = search.totals(replace(chain.policy, pause=None))
    rates = [search.best(Limits(depth, 1, (1,), SIZES), 0.05).rate for depth in range(1, 5)]
    assert tokens / milliseconds >= 0.99 * max(rates)
