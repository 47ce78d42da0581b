"""An EAGLE-3 head along texts whose last tokens were its own guesses, as an estimate meets them.

In decoding a step's guesses follow from the head's own outputs; only what is committed is read
with the target's hidden states. Here a batch of texts is read token by token, and each text says
how many of its last tokens are such guesses. Knows slots and masks. Knows nothing of acceptance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sequoia_opt.engine.torch.attention import Attend, KVCache

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.eagle.model import EagleModel

LONGEST_RUN = 16
"""Guesses in a row; after more of them a text is read with the target's hidden states again."""


class FedBack:
    """The guesses of a batch of texts, in the last slots of a head's cache.

    The token that a turn reads lies in the same slot for every text, whose guesses in a row are
    those of the last turns.

    Attributes:
        outputs: [batch, 1, hidden size], what the head's next guess is read with.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs
        self._turn = -1

    def follow(
        self,
        model: EagleModel,
        cache: KVCache,
        tokens: Tensor,
        outputs: Tensor,
        slot: int,
        runs: Tensor,
        pad: Tensor | None,
    ) -> Tensor:
        """Take one more token of each text.

        Args:
            tokens: [batch, 1].
            outputs: [batch, 1, hidden size], the head's, read with the target's hidden states.
            slot: where that left the token's keys and values.
            runs: [batch], how many of the text's last tokens are guesses in a row; 0 for a token
                that the target chose.

        Returns:
            Outputs [batch, 1, hidden size]: of a guess, read with the head's output before it.
        """
        self._turn += 1
        runs = torch.where(runs > LONGEST_RUN, 0, runs)
        first = cache.capacity - LONGEST_RUN
        own = cache.slots[first + self._turn % LONGEST_RUN :][:1]
        age = (own - cache.slots) % LONGEST_RUN
        start = torch.zeros_like(runs) if pad is None else pad
        in_text = (cache.slots >= start[:, None]) & (cache.slots <= slot - runs[:, None])
        in_run = (cache.slots >= first) & (age < runs[:, None])
        blocked = torch.finfo(model.dtype).min
        mask = torch.zeros(in_text.shape, dtype=model.dtype, device=model.device)
        mask = mask.masked_fill(~(in_text | in_run), blocked)[:, None, None]
        attend = Attend(cache, own, {None: mask})
        guessed = model.head(tokens, self.outputs, (slot - start)[:, None], attend)
        self.outputs = torch.where((runs > 0)[:, None, None], guessed, outputs)
        return self.outputs
