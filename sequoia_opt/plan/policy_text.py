"""An adaptive plan's rule in words, for people."""

from __future__ import annotations

from sequoia_opt.plan.policy import LookupFirst, Policy


def rule(policy: Policy) -> list[str]:
    """How trees grow, in lines of words."""
    if policy.lookup is None:
        return _growth(policy)
    lines = [f"lookup: {line}" for line in _lookup(policy.lookup)]
    if not policy.drafts:
        return [*lines, "otherwise: a plain step"]
    return [*lines, *(f"otherwise the model: {line}" for line in _growth(policy))]


def _lookup(first: LookupFirst) -> list[str]:
    """When what a lookup guesses is verified, in lines of words."""
    numbers = ", ".join(f"{least:g} for {size} nodes" for size, least in first.worth)
    expected = f"is verified if enough guesses are expected to be accepted: {numbers}"
    return [*_growth(first.policy), expected]


def _growth(policy: Policy) -> list[str]:
    """How the trees of one source of guesses grow, in lines of words."""
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
