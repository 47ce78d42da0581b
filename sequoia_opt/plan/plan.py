"""The plan: what `solve` answers, and the tree file that follows from it.

Knows the answer and everything it was derived from. Knows nothing of how it was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sequoia_opt.files.documents import rounded
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.adaptive_plans import AdaptivePlans
from sequoia_opt.plan.draft_passes import unusual_passes
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray


@dataclass(frozen=True)
class Plan:
    """The solver's answer.

    Attributes:
        choice: the smallest tree within 1% of the fastest one's predicted speed that the data
            cannot tell from it; with a confidence asked for, the tree of the largest lower
            bound. An adaptive plan where these compare so with the best static tree.
        fastest: the tree of highest predicted speed.
        runners_up: the next best trees of other sizes.
        baselines: plain decoding and the fastest tree of each shape that other tools use.
        given: the trees that the caller gave, in their order.
        expected: E*(n, D) as [depth + 1, size + 1], NaN where no such tree exists.
        speed: tokens per second of each of these trees, [depth + 1, size + 1], acceptances
            taken as independent.
        method: name of the method that found E*(n, D).
        contexts: weight of each context length that the prediction is for.
        batch: sequences that are decoded together.
        confidence: the probability that the choice was asked to hold with, or None.
        may_speculate: whether trees of more than one node were allowed.
        verifier: the verifier that the acceptance is for; "greedy" at temperature 0.
        adaptive: adaptive plans beside static ones, if drafts were recorded.
        notes: what is to be known of adaptive plans, one line each.
    """

    choice: Candidate
    fastest: Candidate
    runners_up: list[Candidate]
    baselines: list[Candidate]
    given: list[Candidate]
    expected: FloatArray
    speed: FloatArray
    method: str
    contexts: Mapping[float, float]
    batch: int
    confidence: float | None
    may_speculate: bool
    verifier: str
    profile: LatencyProfile
    acceptance: Acceptance
    adaptive: AdaptivePlans | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def context(self) -> float:
        """Mean context length that the prediction is for."""
        return float(sum(context * weight for context, weight in self.contexts.items()))

    @property
    def tree(self) -> TokenTree:
        """The chosen tree with all metadata of its file."""
        choice, acceptance, profile = self.choice, self.acceptance, self.profile
        replayed = choice.replayed_tokens
        is_adaptive = choice.tree.policy is not None
        metadata: dict[str, Any] = {
            "expected_tokens": None if is_adaptive else rounded(choice.expected_tokens),
            "replayed_tokens": None if replayed is None else rounded(replayed),
            "predicted": _prediction(choice),
            "adaptive": self.adaptive.document() if self.adaptive and is_adaptive else None,
            "rules": dict(self.adaptive.rules) or None if self.adaptive else None,
            "target": profile.target.model,
            "draft": profile.draft.model,
            "draft_path": profile.draft.extra.get("path"),
            "draft_passes": unusual_passes(profile.draft.passes),
            "corpus": acceptance.extra.get("corpus"),
            "dataset": acceptance.dataset,
            "temperature": acceptance.temperature,
            "top_p": acceptance.top_p,
            "top_k": acceptance.top_k or None,
            "min_p": acceptance.min_p or None,
            "verifier": self.verifier,
            "context": rounded(self.context),
            "batch": self.batch,
            "hardware": profile.hardware,
            "engine": profile.engine,
        }
        return TokenTree(
            choice.tree.parents,
            choice.tree.ranks,
            {key: value for key, value in metadata.items() if value is not None},
            choice.tree.policy,
        )


def _prediction(choice: Candidate) -> dict[str, Any]:
    """The predicted quantities with their 95% intervals, as the tree file has them."""
    predicted: dict[str, Any] = {}
    for name in ("step_ms", "tokens_per_second", "tokens", "speedup"):
        replicates = getattr(choice, name)
        if name != "tokens":
            predicted[name] = rounded(replicates[0])
        low, high = interval(replicates)
        predicted |= {f"{name}_low": rounded(low), f"{name}_high": rounded(high)}
    if choice.tree.speculates and len(choice.speedup) > 1:
        predicted["pays"] = rounded(choice.pays)
    return predicted
