"""How the best tree changes with the context, or with the sequences that are decoded together.

One tree serves a range of both: a sweep says which tree each value would have for itself, and
what a given tree loses there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solver import Candidate, Plan, solve
from sequoia_opt.plan.tree import TokenTree

AXES = ("context", "batch")
GIVEN = "given"


@dataclass(frozen=True)
class Point:
    """One value of what is swept.

    Attributes:
        value: cached tokens, or sequences decoded together.
        plan: the best tree there.
        given: what the given tree does there, None where the profile cannot price it.
    """

    value: int
    plan: Plan
    given: Candidate | None

    @property
    def lost(self) -> float | None:
        """Share of the best tree's predicted speed that the given tree gives up."""
        if self.given is None:
            return None
        best = self.plan.fastest.tokens_per_second[0]
        return max(0.0, 1 - float(self.given.tokens_per_second[0] / best))

    def document(self) -> dict[str, Any]:
        """The point as a mapping."""
        best = self.plan.choice
        return {
            "value": self.value,
            "size": best.tree.size,
            "depth": best.tree.depth,
            "tokens": float(best.tokens[0]),
            "step_ms": float(best.step_ms[0]),
            "speedup": float(best.speedup[0]),
            "given_speedup": None if self.given is None else float(self.given.speedup[0]),
            "given_lost": self.lost,
        }


def sweep(
    profile: LatencyProfile,
    acceptance: Acceptance,
    tree: TokenTree,
    axis: str,
    values: Sequence[int] | None = None,
    **options: Any,
) -> list[Point]:
    """The best tree for each value of an axis, and what `tree` does there.

    Args:
        axis: "context" or "batch".
        values: by default those that the profile has measured for both models.
        options: of `solve`, for all values.

    Raises:
        SequoiaError: no such axis, or a value that was not measured.
    """
    if axis not in AXES:
        raise SequoiaError(f"sweep: found {axis!r}, expected {' or '.join(AXES)}")
    batch = options.get("batch", 1)
    if values is None:
        values = profile.batches() if axis == "batch" else profile.measured_contexts(batch)
    points = []
    for value in values:
        here = options | {axis: value}
        largest = profile.target.largest(here.get("batch", 1))
        given = {GIVEN: tree} if tree.size <= largest else {}
        plan = solve(profile, acceptance, **here, given=given)
        found = [candidate for candidate in plan.baselines if candidate.name == GIVEN]
        points.append(Point(int(value), plan, found[0] if found else None))
    return points
