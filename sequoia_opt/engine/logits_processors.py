"""What is done to a model's logits before tokens are chosen, by what has been said so far.

A bias for some tokens, penalties for those that are there already, and tokens that are never
said, as transformers' `generate` and the engines that serve models apply them. Each node of a
tree has a text of its own, so what the verifiers keep is the ruled target's distribution,
exactly. Knows nothing of drafting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sequoia_opt.errors import SequoiaError

# What a float32 logit is sure to hold, and a hundred times more than rules out a token.
STRONGEST, LARGEST = 1e6, 1e30


@dataclass(frozen=True)
class Rules:
    """The rules, in the order that they are applied in.

    Attributes:
        repetition_penalty: above 1 it makes tokens of the text less likely, those of the prompt
            too: their logits are divided by it, or multiplied where they are negative (CTRL,
            arXiv 1909.05858).
        bias: what is added to tokens' logits, before the penalties.
        frequency_penalty: what is taken from a token's logit each time that the new text, without
            the prompt, has it (OpenAI's definition, and vLLM's).
        presence_penalty: what is taken from it once if the new text has it.
        banned: tokens that are never said.
        banned_first: tokens that are not said first.
    """

    repetition_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    banned: frozenset[int] = frozenset()
    banned_first: frozenset[int] = frozenset()

    def check(self, vocabulary: int) -> None:
        """Refuse what cannot be.

        Raises:
            SequoiaError: with what was found.
        """
        if not 1 / STRONGEST <= self.repetition_penalty <= STRONGEST:
            raise SequoiaError(
                f"repetition-penalty: found {self.repetition_penalty:g}, expected "
                f"{1 / STRONGEST:g} to {STRONGEST:g}"
            )
        for name in ("frequency", "presence"):
            penalty = getattr(self, f"{name}_penalty")
            if not abs(penalty) <= STRONGEST:  # which NaN is not
                raise SequoiaError(
                    f"{name}-penalty: found {penalty:g}, expected {-STRONGEST:g} to {STRONGEST:g}"
                )
        for token, bias in self.bias.items():
            if not 0 <= token < vocabulary:
                raise SequoiaError(
                    f"logit-bias: found token {token}, expected 0 to {vocabulary - 1}"
                )
            if not abs(bias) <= LARGEST:  # which NaN is not
                raise SequoiaError(
                    f"logit-bias: found {bias:g} for token {token}, expected at most {LARGEST:g}"
                )
        never = self.banned | self.banned_first
        if never and (min(never) < 0 or max(never) >= vocabulary or len(never) == vocabulary):
            raise SequoiaError(
                f"suppressed tokens: found {len(never)} from {min(never)} to {max(never)}, "
                f"expected some of the tokens 0 to {vocabulary - 1}"
            )

    @property
    def change_anything(self) -> bool:
        """Whether there are any."""
        return self != Rules()

    def on(self, device: torch.device, vocabulary: int) -> LogitRules:
        """Ready to be applied."""
        added = torch.zeros(vocabulary, dtype=torch.float64)
        for token, bias in self.bias.items():
            added[token] = bias
        first = added.clone()
        for banned, logits in ((self.banned, added), (self.banned | self.banned_first, first)):
            logits[sorted(banned)] = -math.inf
        return LogitRules(
            self.repetition_penalty,
            added.to(device),
            self.frequency_penalty,
            self.presence_penalty,
            first.to(device),
        )

    def document(self) -> dict[str, object]:
        """The rules for a file: the bias and the repetition penalty, and what else there is."""
        values: dict[str, object] = {
            "repetition_penalty": self.repetition_penalty,
            "bias": {str(token): bias for token, bias in self.bias.items()},
        }
        more = {
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "suppress_tokens": sorted(self.banned),
            "begin_suppress_tokens": sorted(self.banned_first),
        }
        return values | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class LogitRules:
    """Rules as tensors.

    Attributes:
        bias: [vocabulary]; minus infinity for what is never said.
        first_bias: the same, for the first token.
    """

    penalty: float
    bias: Tensor
    frequency: float
    presence: float
    first_bias: Tensor

    @property
    def counting(self) -> bool:
        """Whether it matters how often the new text has a token."""
        return bool(self.frequency or self.presence)

    def seen(self, text: Tensor) -> Tensor:
        """Which tokens [vocabulary] are in a text."""
        none = torch.zeros(len(self.bias), dtype=torch.bool, device=self.bias.device)
        return none.index_fill(0, text, True)

    def counts(self, text: Tensor) -> Tensor | None:
        """How often each token [vocabulary] is in a new text; None where that does not matter."""
        if not self.counting:
            return None
        none = torch.zeros(len(self.bias), dtype=torch.float32, device=self.bias.device)
        return none.index_add(0, text, none.new_ones(len(text)))

    def apply(
        self, logits: Tensor, seen: Tensor, counts: Tensor | None = None, first: bool = False
    ) -> Tensor:
        """The logits [rows, vocabulary] by the rules.

        Args:
            seen: [vocabulary], or one for each row.
            counts: the same shape, how often the new text has each token.
            first: of the first token.
        """
        logits = logits + (self.first_bias if first else self.bias).to(logits.dtype)
        penalised = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        logits = torch.where(seen, penalised, logits)
        if counts is not None:
            counts = counts.to(logits.dtype)
            logits = logits - self.frequency * counts - self.presence * counts.clamp_max(1)
        return logits

    def apply_to_tree(
        self,
        logits: Tensor,
        seen: Tensor,
        tokens: Tensor,
        ancestors: Tensor,
        counts: Tensor | None = None,
    ) -> Tensor:
        """The logits [size, vocabulary] after each node of a tree by the rules.

        Args:
            seen: [vocabulary], the committed text's tokens.
            tokens: [size], the nodes'.
            ancestors: [size, size], which nodes are on the path to each, itself included.
            counts: [vocabulary], how often the committed new text has each token, the root's
                included.
        """
        # What is not on the path counts as the node itself, which is.
        paths = torch.where(ancestors, tokens[None], tokens[:, None])
        own = seen.expand(len(tokens), -1).scatter(1, paths, True)
        if counts is not None:
            guessed = ancestors.to(counts.dtype)
            guessed[:, 0] = 0  # the root is counted already
            counts = counts.repeat(len(tokens), 1).scatter_add(1, paths, guessed)
        return self.apply(logits, own, counts)
