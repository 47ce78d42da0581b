"""Where a document's text runs in its recorded trees: its rank at each level, and its slots.

Knows recordings. Knows nothing of policies or times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.tree import IntArray


def text_ranks(recording: Recording) -> list[NDArray[np.int64]]:
    """The rank that the text has at each level below each position, 0 past its document's end."""
    if recording.path_ranks is not None:
        return list(recording.path_ranks.T.astype(np.int64))
    ranks = recording.ranks.astype(np.int64)
    ends = np.repeat(recording.starts[1:], np.diff(recording.starts))
    positions = np.arange(len(ranks))
    padded = np.append(ranks, np.zeros(recording.levels, np.int64))
    return [
        np.where(positions + level < ends, padded[positions + level], 0)
        for level in range(recording.levels)
    ]


def path_slots(recording: Recording, text: Sequence[IntArray]) -> list[IntArray]:
    """The slot of each level whose node the text is, [positions]; -1 where none is."""
    slots = [np.zeros(len(recording.ranks), np.int64)]
    for level in range(recording.levels - 1):
        slot, rank = slots[-1], text[level]
        origin = slot * recording.width_of_node + rank - 1
        is_path = recording.origins[:, level] == origin[:, None]
        # An empty slot has no probabilities; its origin says nothing.
        is_path &= recording.level(level + 1)[:, :, 0] > 0
        reached = (slot >= 0) & (rank > 0) & is_path.any(axis=1)
        slots.append(np.where(reached, is_path.argmax(axis=1), -1))
    return slots
