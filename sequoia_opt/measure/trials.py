"""Trials: verifications of single positions at full width, whose outcomes are tallied.

Knows verifiers and tallies. Knows nothing of where the positions come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sequoia_opt.engine.sampling import gumbel
from sequoia_opt.engine.verify import Positions, Trial, Verifier, make_verifier
from sequoia_opt.measure.pair_reader import PairLogits
from sequoia_opt.measure.tally import Tally
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.types import FloatArray


@dataclass(frozen=True)
class Sampler:
    """One way to choose tokens, its verifier, and what this accepted in each document.

    Attributes:
        tallies: one per document.
    """

    sampling: Sampling
    verifier: Verifier
    tallies: list[Tally]

    @classmethod
    def empty(cls, sampling: Sampling, documents: int, depths: int, width: int) -> Sampler:
        """A sampler for this number of documents, without samples."""
        verifier = make_verifier(
            sampling.verifier, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
        )
        return cls(sampling, verifier, [Tally.empty(depths, width) for _ in range(documents)])

    def restricted_to(self, documents: Sequence[int]) -> Sampler:
        """The sampler with the tallies of these documents alone, shared with this one."""
        tallies = [self.tallies[number] for number in documents]
        return Sampler(self.sampling, self.verifier, tallies)


def positions_to_try(logits: PairLogits, width: int) -> Positions:
    """Positions with fresh noise for the draft's draws.

    Args:
        logits: [positions, vocabulary].
        width: ranks to offer, W.
    """
    noise = gumbel(torch.rand_like(logits.target))
    return Positions(logits.target, logits.draft, width, noise)


def outcomes(trial: Trial) -> tuple[FloatArray, list[int]]:
    """Acceptance probabilities by rank [positions, W] and the accepted ranks, on the host."""
    ranks: list[int] = trial.rank.tolist()
    return trial.chances.cpu().numpy(), ranks
