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
from sequoia_opt.plan.solver import Candidate, Plan, default_context, solve
from sequoia_opt.plan.tree import TokenTree

AXES = ("context", "batch")


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
        """Share of the predicted speed of the plan's choice that the given tree gives up.

        None also where only one of the two could be replayed: what replay says of one tree is
        not to be compared with what independence promises another.
        """
        best, given = self.plan.choice, self.given
        if given is None or (best.replayed_tokens is None) != (given.replayed_tokens is None):
            return None
        return max(0.0, 1 - float(given.tokens_per_second[0] / best.tokens_per_second[0]))

    def document(self) -> dict[str, Any]:
        """The point as a mapping."""
        best = self.plan.choice
        return {
            "value": self.value,
            "context": self.plan.context,
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
        axis: "context" or "batch"; batches are compared at one context.
        values: by default those that the profile has measured for both models.
        options: of `solve`, for all values; a largest size only as far as it was measured.

    Raises:
        SequoiaError: no such axis, or a value that was not measured.
    """
    if axis not in AXES:
        raise SequoiaError(f"sweep: found {axis!r}, expected {' or '.join(AXES)}")
    batch = options.get("batch", 1)
    if values is None:
        values = profile.batches() if axis == "batch" else profile.measured_contexts(batch)
    if axis == "batch" and options.get("context") is None:
        options = options | {"context": default_context(profile, acceptance, batch)}
    points = []
    for value in values:
        here = options | {axis: value}
        if here.get("max_size") is not None:
            largest = profile.target.largest(here.get("batch", 1))
            here["max_size"] = min(here["max_size"], largest)
        try:
            plan = solve(profile, acceptance, **here, given={"given": tree})
        except SequoiaError:  # unless it is the given tree that cannot be priced, this raises too
            plan = solve(profile, acceptance, **here)
        points.append(Point(int(value), plan, plan.given[0] if plan.given else None))
    return points
