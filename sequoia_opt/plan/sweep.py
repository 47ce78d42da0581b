"""How the best tree changes with the context length or the batch.

One tree serves a range of both. A sweep solves for each value by itself, and shows how much speed
one given tree loses there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.solve_options import default_context
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree

AXES = ("context", "batch")


@dataclass(frozen=True)
class Point:
    """One value of the sweep.

    Attributes:
        value: context length, or sequences decoded together.
        plan: the best tree for this value.
        given: the given tree at this value; None if the profile cannot price it.
    """

    value: int
    plan: Plan
    given: Candidate | None

    @property
    def lost(self) -> float | None:
        """Share of the predicted speed of the plan's choice that the given tree lacks.

        None also if only one of the two could be replayed: predictions by replay and by
        independence do not compare.
        """
        best, swept = self.plan.choice, self.given
        if swept is None or (best.replayed_tokens is None) != (swept.replayed_tokens is None):
            return None
        return max(0.0, 1 - float(swept.tokens_per_second[0] / best.tokens_per_second[0]))

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
    """The best tree for each value of an axis, and the speed of `tree` at each.

    Args:
        axis: "context" or "batch"; batches are compared at one context.
        values: by default those that the profile has measured for both models.
        options: options of `solve` for all values; `max_size` is lowered to the largest size
            that was measured for the value.

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
        value_options = options | {axis: value}
        if value_options.get("max_size") is not None:
            largest = profile.target.largest(value_options.get("batch", 1))
            value_options["max_size"] = min(value_options["max_size"], largest)
        try:
            plan = solve(profile, acceptance, **value_options, given={"given": tree})
        except SequoiaError:  # the tree cannot be priced; any other error is raised again here
            plan = solve(profile, acceptance, **value_options)
        points.append(Point(int(value), plan, plan.given[0] if plan.given else None))
    return points
