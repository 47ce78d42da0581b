"""Logits processors: a bias for some tokens, penalties for repeated ones, banned tokens.

They change the target's logits before a token is chosen, as they do in transformers' `generate`
and in the engines that serve models. Each node of a tree continues a text of its own and is
processed with that text, so the verifiers keep exactly the processed target's distribution. Knows
nothing of drafting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sequoia_opt.errors import SequoiaError

LARGEST_PENALTY = 1e6
LARGEST_BIAS = 1e30  # fits a float32 logit, and is far more than it takes to rule out a token


@dataclass(frozen=True)
class LogitsOptions:
    """The processors to apply, in the order in which they are applied.

    Attributes:
        bias: added to tokens' logits, before the penalties.
        repetition_penalty: for each token of the text, the prompt included: its logit is divided
            by the penalty, or multiplied if it is negative. Above 1 it makes these tokens less
            likely (CTRL, arXiv 1909.05858).
        frequency_penalty: subtracted from a token's logit once for each time that the token occurs
            in the new text, without the prompt (as OpenAI and vLLM define it).
        presence_penalty: subtracted from a token's logit if the token occurs in the new text.
        banned: tokens that are never chosen.
        banned_first: tokens that are not chosen as the first one.
    """

    repetition_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    banned: frozenset[int] = frozenset()
    banned_first: frozenset[int] = frozenset()

    def check(self, vocabulary: int) -> None:
        """Refuse values out of range.

        Raises:
            SequoiaError: an option is out of range; names it, the found and the expected value.
        """
        if not 1 / LARGEST_PENALTY <= self.repetition_penalty <= LARGEST_PENALTY:
            raise SequoiaError(
                f"repetition-penalty: found {self.repetition_penalty:g}, expected "
                f"{1 / LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}"
            )
        for name in ("frequency", "presence"):
            penalty = getattr(self, f"{name}_penalty")
            if not abs(penalty) <= LARGEST_PENALTY:  # also refuses NaN
                raise SequoiaError(
                    f"{name}-penalty: found {penalty:g}, expected {-LARGEST_PENALTY:g} to "
                    f"{LARGEST_PENALTY:g}"
                )
        for token, bias in self.bias.items():
            if not 0 <= token < vocabulary:
                raise SequoiaError(
                    f"logit-bias: found token {token}, expected 0 to {vocabulary - 1}"
                )
            if not abs(bias) <= LARGEST_BIAS:  # also refuses NaN
                raise SequoiaError(
                    f"logit-bias: found {bias:g} for token {token}, expected "
                    f"{-LARGEST_BIAS:g} to {LARGEST_BIAS:g}"
                )
        banned = self.banned | self.banned_first
        if banned and (min(banned) < 0 or max(banned) >= vocabulary or len(banned) == vocabulary):
            raise SequoiaError(
                f"suppressed tokens: found {len(banned)} from {min(banned)} to {max(banned)}, "
                f"expected some of the tokens 0 to {vocabulary - 1}"
            )

    @property
    def change_anything(self) -> bool:
        """Whether any option differs from its default."""
        return self != LogitsOptions()

    def processor(self, device: torch.device, vocabulary: int) -> LogitsProcessor:
        """These options as tensors on a device."""
        bias = torch.zeros(vocabulary, dtype=torch.float64)
        for token, value in self.bias.items():
            bias[token] = value
        first_bias = bias.clone()
        bias[sorted(self.banned)] = -math.inf
        first_bias[sorted(self.banned | self.banned_first)] = -math.inf
        return LogitsProcessor(
            self.repetition_penalty,
            bias.to(device),
            self.frequency_penalty,
            self.presence_penalty,
            first_bias.to(device),
        )

    def document(self) -> dict[str, object]:
        """The options as fields of a file; bias and repetition penalty always, the others if
        they are set."""
        fields: dict[str, object] = {
            "repetition_penalty": self.repetition_penalty,
            "bias": {str(token): bias for token, bias in self.bias.items()},
        }
        optional = {
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "suppress_tokens": sorted(self.banned),
            "begin_suppress_tokens": sorted(self.banned_first),
        }
        return fields | {name: value for name, value in optional.items() if value}


@dataclass(frozen=True)
class LogitsProcessor:
    """`LogitsOptions` as tensors, ready to be applied.

    Attributes:
        repetition_penalty, frequency_penalty, presence_penalty: as in the options.
        bias: [vocabulary], float64; minus infinity for banned tokens.
        first_bias: the same for the first token.
    """

    repetition_penalty: float
    bias: Tensor
    frequency_penalty: float
    presence_penalty: float
    first_bias: Tensor

    @property
    def needs_counts(self) -> bool:
        """Whether the logits depend on how often the new text has a token."""
        return bool(self.frequency_penalty or self.presence_penalty)

    def seen(self, text: Tensor) -> Tensor:
        """Which tokens occur in a text: bool [vocabulary]."""
        none = torch.zeros(len(self.bias), dtype=torch.bool, device=self.bias.device)
        return none.index_fill(0, text, True)

    def counts(self, new_text: Tensor) -> Tensor | None:
        """How often each token occurs in the new text: float32 [vocabulary]; None if not needed."""
        if not self.needs_counts:
            return None
        zeros = torch.zeros(len(self.bias), dtype=torch.float32, device=self.bias.device)
        return zeros.index_add(0, new_text, zeros.new_ones(len(new_text)))

    def apply(
        self, logits: Tensor, seen: Tensor, counts: Tensor | None = None, first: bool = False
    ) -> Tensor:
        """The processed logits [rows, vocabulary].

        Args:
            seen: bool [vocabulary] or [rows, vocabulary], the tokens that occur in the text.
            counts: the same shape, how often each token occurs in the new text.
            first: whether these are the logits of the first token.
        """
        logits = logits + (self.first_bias if first else self.bias).to(logits.dtype)
        penalty = self.repetition_penalty
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        logits = torch.where(seen, penalised, logits)
        if counts is not None:
            counts = counts.to(logits.dtype)
            logits = logits - self.frequency_penalty * counts
            logits = logits - self.presence_penalty * counts.clamp_max(1)
        return logits

    def apply_to_tree(
        self,
        logits: Tensor,
        seen: Tensor,
        tokens: Tensor,
        ancestors: Tensor,
        counts: Tensor | None = None,
    ) -> Tensor:
        """The processed logits [size, vocabulary] after each node of a tree.

        Args:
            seen: bool [vocabulary], the committed text's tokens.
            tokens: [size], the nodes' tokens.
            ancestors: bool [size, size], the nodes on the path to each node, itself included.
            counts: [vocabulary], how often each token occurs in the committed new text, the
                root's included.
        """
        # Nodes off the path are replaced by the node itself, which is on it.
        paths = torch.where(ancestors, tokens[None], tokens[:, None])
        seen = seen.expand(len(tokens), -1).scatter(1, paths, True)
        if counts is not None:
            speculated = ancestors.to(counts.dtype)
            speculated[:, 0] = 0  # the root is in `counts` already
            counts = counts.repeat(len(tokens), 1).scatter_add(1, paths, speculated)
        return self.apply(logits, seen, counts)
