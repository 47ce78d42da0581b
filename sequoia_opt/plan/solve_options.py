"""The options of `solve`: their defaults, their checks, and the context lengths that follow.

Knows what can be asked of the solver. Knows nothing of how it answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.intervals import REPLICATES
from sequoia_opt.plan.latency import LatencyProfile

ANY_TREE = "tree"
"""The shape that stands for trees of any shape."""

DEFAULT_MAX_DEPTH = 32
DEFAULT_CONTEXT = 512


@dataclass(frozen=True)
class SolveOptions:
    """What is asked of the solver; `solver.solve` describes each option.

    Raises:
        SequoiaError: an option is out of range.
    """

    max_size: int | None = None
    max_depth: int | None = None
    size: int | None = None
    depth: int | None = None
    context: float | Mapping[float, float] | None = None
    batch: int = 1
    shape: str = ANY_TREE
    max_width: int | None = None
    confidence: float | None = None
    replicates: int = REPLICATES

    def __post_init__(self) -> None:
        minima = {"max_size": 1, "size": 1, "max_depth": 0, "depth": 0, "max_width": 1}
        for name, minimum in minima.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise SequoiaError(f"{name}: found {value}, expected at least {minimum}")
        if self.shape not in (ANY_TREE, *shapes.NAMES):
            raise SequoiaError(
                f"shape: found {self.shape!r}, expected {ANY_TREE}, {', '.join(shapes.NAMES)}"
            )
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise SequoiaError(
                f"confidence: found {self.confidence:g}, expected more than 0, less than 1"
            )
        if isinstance(self.context, Mapping):
            lightest = min(self.context.values(), default=None)
            if lightest is None or not lightest > 0:
                found = "no weights" if lightest is None else f"a weight of {lightest:g}"
                raise SequoiaError(f"context: found {found}, expected weights above 0")

    def contexts(self, profile: LatencyProfile, acceptance: Acceptance) -> Mapping[float, float]:
        """Weight of each context length to solve for.

        Raises:
            SequoiaError: no context was asked for, and the profile has none for this batch.
        """
        if self.context is None:
            return {default_context(profile, acceptance, self.batch): 1.0}
        return self.context if isinstance(self.context, Mapping) else {float(self.context): 1.0}


def default_context(profile: LatencyProfile, acceptance: Acceptance, batch: int) -> float:
    """Context length to solve for: that of the acceptance, within the measured range.

    Raises:
        SequoiaError: the profile has no measurement for this batch.
    """
    low, high = profile.contexts(batch)
    context = DEFAULT_CONTEXT if acceptance.context is None else acceptance.context
    return float(min(max(context, low), high))
