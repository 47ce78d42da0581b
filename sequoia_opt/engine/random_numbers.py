"""Uniform random numbers, drawn ahead.

After a forward pass a call of a generator takes 50 µs on a CPU, whose caches the pass has filled,
and a launch on a GPU. So one call serves many steps. Knows nothing of what the numbers decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

AHEAD = 4096  # numbers of a call


class RandomNumbers:
    """Random numbers in [0, 1), each given once.

    Args:
        random: the generator.
        device: of the numbers.
    """

    def __init__(self, random: torch.Generator, device: torch.device) -> None:
        self._random, self._device = random, device
        self._drawn = torch.empty(0, device=device)
        self._held = self._given = 0  # a tensor's `len` takes 15 µs after a forward pass
        self._list: list[float] = []

    def __call__(self, count: int) -> Tensor:
        """The next [count] of them, which nothing may overwrite."""
        start = self._give(count)
        return self._drawn[start : start + count]

    def listed(self, count: int) -> list[float]:
        """The next `count` of them."""
        start = self._give(count)
        if count and not self._list:
            self._list = self._drawn.tolist()
        return self._list[start : start + count]

    def _give(self, count: int) -> int:
        """Where the next `count` numbers begin."""
        start = self._given
        if start + count > self._held:
            self._held = max(AHEAD, count)
            self._drawn = torch.rand(self._held, generator=self._random, device=self._device)
            self._list, start = [], 0
        self._given = start + count
        return start
