"""Random numbers that are drawn ahead."""

from __future__ import annotations

import pytest
import torch

from sequoia_opt.engine.random_numbers import AHEAD, RandomNumbers


def numbers(seed: int = 0) -> RandomNumbers:
    """Numbers of a seed."""
    return RandomNumbers(torch.Generator().manual_seed(seed), torch.device("cpu"))


@pytest.mark.parametrize("counts", [[1] * 40, [0, 7, 0, 5], [AHEAD - 3, 2, 2, 9], [2 * AHEAD, 1]])
def test_each_is_given_once(counts: list[int]) -> None:
    """As a tensor or as a list: the same numbers, and none of them twice."""
    tensors, lists, mixed = numbers(), numbers(), numbers()
    given = []
    for turn, count in enumerate(counts):
        drawn = tensors(count).tolist()
        assert lists.listed(count) == drawn
        assert (mixed.listed(count) if turn % 2 else mixed(count).tolist()) == drawn
        assert len(drawn) == count
        given += drawn
    assert len(set(given)) > 0.99 * len(given)  # float32 repeats some
    assert 0 <= min(given) <= max(given) < 1


def test_what_was_given_stays() -> None:
    source = numbers()
    first = source(10)
    before = first.clone()
    source(AHEAD)
    source.listed(AHEAD)
    assert torch.equal(first, before)


def test_they_follow_from_the_seed() -> None:
    assert numbers(1).listed(50) == numbers(1).listed(50) != numbers(2).listed(50)
