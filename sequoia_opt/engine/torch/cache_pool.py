"""Caches that callers take and give back, so that texts one after another share their memory.

Knows sizes and whether they fit. Knows nothing of what the caches hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sequoia_opt.engine.torch.attention import KVCache, LayerShape, buffer_bytes
from sequoia_opt.engine.torch.memory import check_fits


class CachePool:
    """The caches of one model.

    Attributes:
        idle: the cache that was given back last, for the next caller; None while it is in use.
    """

    def __init__(
        self, layers: Sequence[LayerShape], dtype: torch.dtype, device: torch.device, name: str
    ) -> None:
        """Begin without a cache.

        Args:
            layers: what the model's attention layers store.
            name: of the model, for messages.
        """
        self.idle: KVCache | None = None
        self._layers, self._dtype, self._device, self._name = layers, dtype, device, name

    def reserve(self, capacity: int, batch: int = 1) -> KVCache:
        """A cache of at least `capacity` slots for `batch` texts: the idle one if it will do.

        Raises:
            SequoiaError: it does not fit into the memory that is left.
        """
        cache, self.idle = self.idle, None
        if cache is not None and cache.batch == batch and cache.capacity >= capacity:
            return cache
        cache = None  # its memory is free before the new one takes some
        check_fits(
            buffer_bytes(self._layers, batch, capacity, self._dtype),
            self._device,
            f"caches of {self._name} for {batch} x {capacity} tokens",
            "shorten the prompt, ask for fewer new tokens, or run fewer sequences together",
        )
        return KVCache(self._layers, batch, capacity, self._dtype, self._device)

    def release(self, cache: KVCache) -> None:
        """Give a cache back; it replaces the idle one."""
        self.idle = cache
