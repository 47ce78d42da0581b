"""Whether a server guesses as far ahead as the solved plan does.

Knows plans, profiles and the settings that a server reports. Knows nothing of texts or times.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.counters import ReportedSettings
from sequoia_opt.measure.check.dialects import Guesses
from sequoia_opt.measure.check.verdict import Finding, Status
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.export import is_chain
from sequoia_opt.plan.export_rules import rule_of
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree

NAME = "settings"
FAR = 2.0  # a chain this many times longer or shorter than the plan's is far from it
MOST_LOST = 0.1  # a chain that loses more of the predicted speed is far from the optimum
FAR_THRESHOLD = 0.2  # between two least probabilities of a guess
CHAIN_ADVICE = "solve with --shape chain"


@dataclass(frozen=True)
class Optimum:
    """The solved settings.

    Attributes:
        guesses: the most guesses in a step; 0 for plain decoding.
        threshold: the least probability of a guess.
        profile, acceptance: predict other chains; None where only a plan is given.
    """

    guesses: int
    threshold: float = 0.0
    profile: LatencyProfile | None = None
    acceptance: Acceptance | None = None


def optimum_of_plan(path: Path, engine: str) -> Optimum:
    """The settings of a plan for an engine.

    Raises:
        SequoiaError: the file cannot be read, or its plan is a tree that servers do not draft.
    """
    tree = TokenTree.load(path)
    if (numbers := rule_of(tree, engine)) is not None and "threshold" in numbers:
        return Optimum(int(numbers["guesses"]), float(numbers["threshold"]))
    if not is_chain(tree.static):
        raise SequoiaError(
            f"{path}: found a tree, expected a chain, which is what servers draft; {CHAIN_ADVICE}"
        )
    return Optimum(tree.static.size - 1)


def optimum_of_measurements(profile: Path, acceptance: Path) -> Optimum:
    """The best chain by a profile and acceptance rates.

    Raises:
        SequoiaError: a file cannot be read, or they do not fit together.
    """
    latencies, rates = LatencyProfile.load(profile), Acceptance.load(acceptance)
    plan = solve(latencies, rates, shape="chain", static=True)
    return Optimum(plan.choice.tree.size - 1, 0.0, latencies, rates)


def check_settings(
    optimum: Optimum, settings: ReportedSettings, guesses: Guesses | None
) -> Finding:
    """Compare a server's settings with the solved ones.

    Args:
        guesses: what the server guessed, from which its chains' mean length follows where it does
            not tell their limit.
    """
    count, is_mean = _guesses(optimum, settings, guesses)
    numbers: dict[str, Any] = {
        **asdict(settings),
        "guesses": count,
        "solved_guesses": optimum.guesses,
        "solved_threshold": optimum.threshold,
    }
    if count is None:
        sentence = "the server does not report how many tokens it guesses in a step"
        return Finding(NAME, Status.UNCHECKED, sentence, numbers)
    states = f"about {count:.1f} guesses" if is_mean else f"{count:g} guesses"
    compared = f"{states} in a step (solved: {optimum.guesses})"
    problems = _other_settings(optimum, settings)
    lost = _lost(optimum, round(count))
    if lost is None:
        longer, shorter = max(count, optimum.guesses), min(count, optimum.guesses)
        is_far = longer > FAR * shorter
        problems = ["far from the solved optimum", *problems] if is_far else problems
    else:
        is_far = lost > MOST_LOST
        numbers["predicted_loss"] = lost
        compared += f", which is predicted to lose {100 * lost:.0f}% of the speed"
    if is_far or problems:
        sentence = "; ".join(
            [compared, *problems, "use the settings that `export` prints for this server"]
        )
        return Finding(NAME, Status.FAILED, sentence, numbers)
    return Finding(NAME, Status.OK, compared, numbers)


def _guesses(
    optimum: Optimum, settings: ReportedSettings, guesses: Guesses | None
) -> tuple[float | None, bool]:
    """The guesses of a server's step, and whether they are a mean."""
    if guesses is not None and not guesses.drafted:
        return 0, False
    if settings.guesses is not None:
        return settings.guesses, False
    # Below a threshold chains end early, and their mean says nothing of their limit.
    if guesses is None or not guesses.steps or optimum.threshold:
        return None, False
    return guesses.drafted / guesses.steps, True


def _other_settings(optimum: Optimum, settings: ReportedSettings) -> list[str]:
    """Settings besides the number of guesses that are far from the solved ones."""
    problems = []
    threshold, least = settings.least_probability, settings.least_guesses
    if threshold is not None and abs(threshold - optimum.threshold) > FAR_THRESHOLD:
        problems.append(f"p_min is {threshold:g} (solved: {optimum.threshold:g})")
    if least is not None and least > 1:
        problems.append(f"n_min is {least}, which drops shorter chains (solved: 0)")
    return problems


def _lost(optimum: Optimum, guesses: int) -> float | None:
    """The share of the best chain's predicted speed that a chain loses; None if not predictable."""
    if optimum.profile is None or optimum.acceptance is None:
        return None
    try:
        plan = solve(
            optimum.profile,
            optimum.acceptance,
            shape="chain",
            static=True,
            given={"the server's": shapes.chain(guesses + 1)},
        )
    except SequoiaError:  # longer than what was measured
        return None
    return max(0.0, 1 - float(plan.given[0].speedup[0] / plan.choice.speedup[0]))
