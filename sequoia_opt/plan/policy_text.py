"""An adaptive plan's rule in words, for people."""

from __future__ import annotations

from sequoia_opt.plan.policy import Policy


def rule(policy: Policy) -> list[str]:
    """How trees grow, in lines of words."""
    guesses = "1 guess" if policy.ranks == 1 else f"up to {policy.ranks} guesses"
    lines = [f"drafts up to {policy.depth} levels, {guesses} for each node"]
    for width, threshold in policy.expand:
        nodes = "1 node" if width == 1 else f"{width} nodes"
        lines.append(f"drafts another level of {nodes} if it is reached above {threshold:g}")
    lines.append(f"verifies guesses that are reached with probability {policy.offer:g} or more")
    lines.append(f"target passes of {', '.join(map(str, policy.sizes))} nodes")
    if (pause := policy.pause) is not None:
        misses = f"{pause.misses} steps in a row" if pause.misses > 1 else "a step"
        first, *rest = pause.steps
        plain = "1 plain step" if first == 1 else f"{first} plain steps"
        then = f", then {', '.join(map(str, rest))} while that goes on" if rest else ""
        lines.append(f"after {misses} without an accepted guess: {plain}{then}")
    return lines
