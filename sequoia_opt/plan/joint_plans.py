"""Plans for a pair that looks up before its model drafts: the lookup alone, and both.

Knows which searches to run. Knows nothing of how plans are compared.
"""

from __future__ import annotations

from sequoia_opt.plan.adaptive import Limits, PolicySearch, Solution
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.envelope import adaptive_chain, adaptive_tree
from sequoia_opt.plan.joint_search import JointSearch, JointSolution
from sequoia_opt.plan.joint_times import JointTimes
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.recording import Recording


def joint_solutions(
    recording: Recording,
    confidence: Confidence,
    limits: Limits,
    search: PolicySearch,
    model: Solution,
    times: JointTimes,
) -> list[JointSolution]:
    """The lookup's plan, and the fastest one that looks up or else drafts with the model.

    Args:
        recording: the lookup's, of the documents to fit to.
        confidence: the lookup's calibration.
        limits: limits of the lookup's trees.
        search: the search for the model's policies, on the same documents.
        model: the model's fastest policy.
    """
    # A lookup's guesses are never drawn, so those that were not offered can fill a pass.
    lookups = PolicySearch(PolicyReplay(recording, confidence), times.lookup, fill=True)
    solutions = [adaptive_chain(lookups, limits, 1 / float(times.model.target_ms[0, 1]))]
    if limits.ranks > 1:
        solutions.append(adaptive_tree(lookups, limits, solutions[0].rate))
    lookup = max(solutions, key=lambda solution: solution.rate)
    joint = JointSearch(search, lookups, times)
    return [joint.lookup_alone(model, lookup), joint.with_pause(joint.best(model, lookup))]
