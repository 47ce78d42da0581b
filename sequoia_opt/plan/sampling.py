"""How tokens are chosen: the sampling settings that acceptance, overhead and decoding depend on."""

from __future__ import annotations

from dataclasses import dataclass

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 is greedy, whatever the other settings.

    Attributes:
        temperature: at least 0.
        top_p: in (0, 1], the probability mass of the most likely tokens that may be drawn.
        verifier: name of the verifier; `verifiers.check_verifier` says which names exist.
        top_k: number of most likely tokens that may be drawn; 0 for all.
        min_p: in [0, 1], the least probability of a drawn token, as a share of the most likely
            one's.

    Raises:
        SequoiaError: a number is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    verifier: str = DEFAULT_VERIFIER
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise SequoiaError(f"temperature: found {self.temperature:g}, expected at least 0")
        if not 0 < self.top_p <= 1:
            raise SequoiaError(f"top-p: found {self.top_p:g}, expected above 0 and at most 1")
        if self.top_k < 0:
            raise SequoiaError(
                f"top-k: found {self.top_k}, expected at least 1, or 0 for all tokens"
            )
        if not 0 <= self.min_p <= 1:
            raise SequoiaError(f"min-p: found {self.min_p:g}, expected 0 to 1")

    @property
    def is_truncated(self) -> bool:
        """Whether unlikely tokens are cut off the target's distribution."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    @property
    def cuts(self) -> str:
        """Top-k and min-p in words, each after a comma; empty where neither cuts anything."""
        top_k = f", top-k {self.top_k}" if self.top_k else ""
        min_p = f", min-p {self.min_p:g}" if self.min_p else ""
        return top_k + min_p
