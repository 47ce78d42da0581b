from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sequoia_opt.plan import shapes
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.judge import (
    Candidate,
    choose,
    comparable,
    fastest_by_name,
    kind,
    kind_of,
    runners_up,
)
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree


def candidate(
    size: int, speeds: list[float], name: str = "solved", replayed: bool = True
) -> Candidate:
    """A chain with these tokens per step, the estimate first, in steps of 1 ms."""
    tokens = np.array(speeds)
    ones = np.ones_like(tokens)
    return Candidate(
        name, shapes.chain(size), speeds[0], speeds[0] if replayed else None, tokens, ones, ones
    )


def test_speed_and_speedup_follow_from_tokens_and_times() -> None:
    tokens, step_ms, plain_ms = np.array([3.0, 2.0, 1.0]), np.full(3, 20.0), np.full(3, 10.0)
    tree = Candidate("solved", shapes.chain(4), 3.0, None, tokens, step_ms, plain_ms)
    assert tree.tokens_per_second == pytest.approx([150, 100, 50])
    assert tree.speedup == pytest.approx([1.5, 1, 0.5])
    assert tree.is_faster
    assert tree.pays == 0.0
    plain = Candidate("plain", shapes.chain(1), 1.0, None, tokens, step_ms, plain_ms)
    assert (plain.speedup == 1).all()
    assert not plain.is_faster


def test_a_smaller_tree_is_chosen_if_the_data_cannot_tell_it_from_the_fastest() -> None:
    fastest = candidate(8, [2.0, *[2.0] * 95, *[1.9] * 5])
    close = candidate(4, [1.99, *[1.95] * 100])
    assert choose([fastest, close], None) == (fastest, close)


def test_the_fastest_is_chosen_if_the_data_can_tell() -> None:
    fastest = candidate(8, [2.0, *[2.0] * 99, 1.9])
    always_slower = candidate(4, [1.99, *[1.95] * 100])
    assert choose([fastest, always_slower], None) == (fastest, fastest)


def test_no_more_than_1_percent_of_speed_is_given_up() -> None:
    fastest = candidate(8, [2.0, *[1.5, 2.5] * 50])
    slower = candidate(4, [1.97, *[1.6] * 100])
    assert choose([fastest, slower], None) == (fastest, fastest)


def test_with_a_confidence_the_lower_bound_decides() -> None:
    bold = candidate(8, [2.0, *[1.0] * 20, *[3.0] * 80])
    careful = candidate(4, [1.8, *[1.8] * 100])
    assert choose([bold, careful], 0.95) == (bold, careful)
    assert choose([bold, careful], 0.5) == (bold, bold)


def test_runners_up_have_other_sizes_than_the_choice() -> None:
    choice, *others = (
        candidate(size, [speed])
        for size, speed in [(4, 2.0), (4, 1.9), (5, 1.8), (5, 1.7), (6, 1.6)]
    )
    assert runners_up([choice, *others], choice) == [others[1], others[3]]
    assert runners_up([choice, others[0]], choice) == [others[0]]


def test_replayed_candidates_do_not_compete_with_others() -> None:
    replayed, promised = candidate(4, [1.5]), candidate(8, [9.0], replayed=False)
    assert comparable([replayed, promised]) == [replayed]
    assert comparable([promised]) == [promised]


def test_the_fastest_of_each_name() -> None:
    slow, fast, other = (
        candidate(2, [1.2], "chain"),
        candidate(3, [1.4], "chain"),
        candidate(4, [1.1], "k-ary"),
    )
    assert fastest_by_name([slow, fast, other]) == [fast, other]


def test_the_simplest_kind_is_chosen_if_the_data_cannot_tell() -> None:
    policy = Policy(Confidence((0.5,), (((0.5, 0.6),),)), 3, 1, ((1, 0.2),), 0.5, 0.1, (1, 4))
    chain = candidate(6, [1.995, *[1.95] * 100])
    fastest = replace(
        candidate(2, [2.0, *[2.0] * 95, *[1.9] * 5]),
        tree=TokenTree([-1, 0], [0, 1], policy=policy),
    )
    assert kind_of(chain) < kind_of(fastest)
    assert choose([fastest, chain], None, kind_of) == (fastest, chain)
    assert choose([fastest, chain], None) == (fastest, fastest)
    plain = candidate(1, [1.0])
    assert [kind(c.tree) for c in (plain, chain, fastest)] == ["plain", "chain", "adaptive chain"]


def test_an_adaptive_plan_of_a_single_node_is_no_plain_decoding() -> None:
    policy = Policy(Confidence((0.5,), (((0.5, 0.6),),)), 3, 1, ((1, 0.2),), 0.5, 0.1, (1, 4))
    adaptive = replace(candidate(1, [1.5]), tree=TokenTree([-1], [0], policy=policy))
    assert adaptive.speedup[0] == 1.5
