"""What is done to a model's logits before tokens are chosen, by what has been said so far.

A bias for some tokens, and a penalty for those that are there already, as transformers'
`generate` applies them. Each node of a tree has a text of its own, so what the verifiers keep is
the ruled target's distribution, exactly. Knows nothing of drafting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sequoia_opt.errors import SequoiaError

# What a float32 logit is sure to hold, and a hundred times more than rules out a token.
STRONGEST, LARGEST = 1e6, 1e30


@dataclass(frozen=True)
class Rules:
    """The rules.

    Attributes:
        repetition_penalty: above 1 it makes tokens of the text less likely: their logits are
            divided by it, or multiplied where they are negative (CTRL, arXiv 1909.05858).
        bias: what is added to tokens' logits, before the penalty.
    """

    repetition_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)

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
        for token, bias in self.bias.items():
            if not 0 <= token < vocabulary:
                raise SequoiaError(
                    f"logit-bias: found token {token}, expected 0 to {vocabulary - 1}"
                )
            if not abs(bias) <= LARGEST:  # which NaN is not
                raise SequoiaError(
                    f"logit-bias: found {bias:g} for token {token}, expected at most {LARGEST:g}"
                )

    @property
    def change_anything(self) -> bool:
        """Whether there are any."""
        return self.repetition_penalty != 1 or bool(self.bias)

    def on(self, device: torch.device, vocabulary: int) -> LogitRules:
        """Ready to be applied."""
        added = torch.zeros(vocabulary, dtype=torch.float64)
        for token, bias in self.bias.items():
            added[token] = bias
        return LogitRules(self.repetition_penalty, added.to(device))


@dataclass(frozen=True)
class LogitRules:
    """Rules as tensors.

    Attributes:
        bias: [vocabulary].
    """

    penalty: float
    bias: Tensor

    def seen(self, text: Tensor) -> Tensor:
        """Which tokens [vocabulary] are in a text."""
        none = torch.zeros(len(self.bias), dtype=torch.bool, device=self.bias.device)
        return none.index_fill(0, text, True)

    def apply(self, logits: Tensor, seen: Tensor) -> Tensor:
        """The logits [rows, vocabulary] by the rules.

        Args:
            seen: [vocabulary], or one for each row.
        """
        logits = logits + self.bias.to(logits.dtype)
        penalised = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return torch.where(seen, penalised, logits)

    def apply_to_tree(
        self, logits: Tensor, seen: Tensor, tokens: Tensor, ancestors: Tensor
    ) -> Tensor:
        """The logits [size, vocabulary] after each node of a tree by the rules.

        Args:
            seen: [vocabulary], the committed text's tokens.
            tokens: [size], the nodes'.
            ancestors: [size, size], which nodes are on the path to each, itself included.
        """
        # What is not on the path counts as the node itself, which is.
        paths = torch.where(ancestors, tokens[None], tokens[:, None])
        own = seen.expand(len(tokens), -1).scatter(1, paths, True)
        return self.apply(logits, own)
