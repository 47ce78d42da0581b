"""The masks of tokens that follow a text in order, as when a prompt is read.

Knows chunks and padding. Knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.torch.attention import LayerShape, Masks, MaskTable, places

KEPT_TABLES = 8  # mask tables that stay prepared, one for each chunk length


class CausalMasks:
    """Makes the causal masks of one model."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        dtype: torch.dtype,
        device: torch.device,
        keep: bool = True,
    ) -> None:
        """Begin without tables.

        Args:
            layers: the model's attention layers.
            keep: whether tables stay prepared.
        """
        self._model = layers, dtype, device
        self._keep = keep
        self._tables: dict[int, MaskTable] = {}

    def masks(self, slots: Tensor, length: int, count: int, pad: Tensor | None = None) -> Masks:
        """The masks of `count` tokens that follow `length` cached ones.

        Args:
            slots: [used], those that are read.
            pad: [batch], how many of each text's first slots are padding.
        """
        text_length = torch.tensor([length], device=slots.device)
        [masks] = self._table(count).masks(places(text_length, slots))
        if pad is None:
            return masks
        padded = (slots < pad[:, None])[:, None, None]
        return {
            window: mask.masked_fill(padded, torch.finfo(mask.dtype).min)
            for window, mask in masks.items()
        }

    def _table(self, count: int) -> MaskTable:
        """The mask table of `count` tokens in order."""
        if count in self._tables:
            return self._tables[count]
        order = list(range(count))
        table = MaskTable(np.tri(count, dtype=np.bool_), order, order, *self._model)
        if self._keep:
            if len(self._tables) >= KEPT_TABLES:
                self._tables.clear()
            self._tables[count] = table
        return table
