"""Target and drafter read the same text, chunk by chunk where one needs the other.

Knows which hidden states of the target go with which token. Knows nothing of trees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sequoia_opt.engine.drafters import Drafter, HiddenStates
from sequoia_opt.engine.model import Caches, Model


class StatesBefore:
    """The target's hidden states at the token before each that it reads, pass by pass.

    Attributes:
        count: tokens of the target's last forward pass.
        last: [batch, 1, width], the states at the last token that was read; None before the first
            one, and for a drafter that reads none.
    """

    def __init__(self, hidden: HiddenStates | None) -> None:
        self._hidden = hidden
        self.count = 0
        self.last: Tensor | None = None

    def __iter__(self) -> StatesBefore:
        return self

    def __next__(self) -> Tensor | None:
        """Those of the target's last forward pass; see `Drafter`."""
        if self._hidden is None:
            return None
        states = self._hidden.last()
        earlier, self.last = self.last, states[:, -1:]
        self.count = states.shape[1]
        known = states[:, :-1]
        return known if earlier is None else torch.cat([earlier, known], dim=1)


class Prefilled(NamedTuple):
    """What both say after a prompt.

    Attributes:
        target: logits [batch, vocabulary].
        draft: the same; None for a drafter without a cache.
        states: of the target, for the drafter's next token.
    """

    target: Tensor
    draft: Tensor | None
    states: StatesBefore


def prefill(
    target: Model,
    drafter: Drafter,
    caches: Caches,
    tokens: Tensor,
    pad: Tensor | None = None,
    held: int = 0,
) -> Prefilled:
    """Put prompts [batch, count] into both caches.

    Args:
        pad: [batch], how many of each text's first tokens are padding.
        held: tokens before these that both caches hold.
    """
    states = StatesBefore(drafter.hidden)
    if drafter.hidden is None or caches.draft is None:
        target_logits = target.prefill(caches.target, tokens, pad, held)
        draft_logits = None
        if caches.draft is not None:
            draft_logits = drafter.prefill(caches.draft, tokens, pad, held)
        return Prefilled(target_logits, draft_logits, states)
    for start, logits in target.read(caches.target, tokens, pad, held=held):
        target_logits, before = logits, next(states)
        part = tokens[:, start : start + states.count]
        draft_logits = drafter.prefill(caches.draft, part, pad, held + start, before)
    return Prefilled(target_logits[:, -1], draft_logits, states)
