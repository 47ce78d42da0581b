"""The windows of text that `data.py` writes, and batches of them.

Knows files and weights of tokens. Knows nothing of what is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from data import QUESTION, STATES, TEMPLATE
from torch import Tensor

SHARPNESS = 0.3  # weight of the squared probabilities, since greedy decoding needs the best token
QUESTION_WEIGHT = 0.3  # of a question's token in the loss; an answer's has 1
HELD_OUT = 16  # windows of the first file that are only measured on


class Windows:
    """All windows that have been written so far, the held-out ones apart.

    Attributes:
        held_out: windows that training never sees.
    """

    def __init__(self, folder: Path, with_states: bool = False) -> None:
        """Read a folder.

        Args:
            with_states: read the target's hidden states, too; they stay on disk until drawn.
        """
        self._folder, self._with_states = folder, with_states
        self._names, self._files = set[str](), list[dict[str, np.ndarray]]()
        self.refresh()
        if not self._files:
            what, how = (
                ("windows with hidden states", " --states") if with_states else ("windows", "")
            )
            raise SystemExit(f"{folder}: holds no {what}; write some with data.py{how}")
        self.held_out = {name: values[:HELD_OUT] for name, values in self._files[0].items()}
        self._files[0] = {name: values[HELD_OUT:] for name, values in self._files[0].items()}

    def refresh(self) -> None:
        """Read the files that are new."""
        for path in sorted(self._folder.glob("??????.npz")):
            states = path.with_suffix(STATES)
            if path.name in self._names or (self._with_states and not states.exists()):
                continue
            self._names.add(path.name)
            with np.load(path) as arrays:
                windows = {name: arrays[name] for name in arrays.files}
            if self._with_states:
                windows["states"] = np.load(states, mmap_mode="r")
            self._files.append(windows)

    @property
    def count(self) -> int:
        """Windows to train on."""
        return sum(len(file["tokens"]) for file in self._files)

    def counts(self, vocabulary: int) -> Tensor:
        """How often each token occurs, or is likely, [vocabulary]."""
        total = np.zeros(vocabulary)
        for file in self._files:
            ids, likely = file["ids"].ravel(), np.exp(file["scores"].astype(np.float32)).ravel()
            total += np.bincount(ids, likely, len(total))
            total += 0.5 * np.bincount(file["tokens"].ravel(), minlength=len(total))
        return torch.from_numpy(total)

    def draw(self, count: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Random windows."""
        picks = random.integers(self.count, size=count)
        sizes = np.cumsum([len(file["tokens"]) for file in self._files])
        places = np.searchsorted(sizes, picks, side="right")
        rows = [(self._files[f], p - sizes[f]) for f, p in zip(places, picks, strict=True)]
        return {name: np.stack([file[name][row] for file, row in rows]) for name in rows[0][0]}


class Batch(NamedTuple):
    """Windows as tensors, but for the last token's: [texts, length] or [texts, length, likely].

    Attributes:
        tokens: what is read.
        starts: where the conversation of each begins.
        weights: of each position in the loss.
        ids, probabilities: what the target thinks comes next.
    """

    tokens: Tensor
    starts: Tensor
    weights: Tensor
    ids: Tensor
    probabilities: Tensor


def batch_of(windows: dict[str, np.ndarray]) -> Batch:
    """Windows with the weight of each position in the loss, and the target's probabilities."""
    following = torch.from_numpy(windows["kinds"][:, 1:])
    weights = torch.where(following == QUESTION, QUESTION_WEIGHT, 1.0)
    weights[following == TEMPLATE] = 0.0
    likely = torch.from_numpy(windows["scores"][:, :-1].astype(np.float32)).softmax(-1)
    sharp = likely.square() / likely.square().sum(-1, keepdim=True)
    return Batch(
        torch.from_numpy(windows["tokens"][:, :-1].astype(np.int64)),
        torch.from_numpy(windows["starts"][:, :-1].astype(np.int64)),
        weights,
        torch.from_numpy(windows["ids"][:, :-1].astype(np.int64)),
        (1 - SHARPNESS) * likely + SHARPNESS * sharp,
    )
