"""What is predicted of a plan on the very texts that race; `solve` predicts it on others."""

from __future__ import annotations

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.judge import judge
from sequoia_opt.plan.latency import overhead_name
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.policy_prediction import Predictor
from sequoia_opt.plan.step_times import StepTimes


def replayed(plan: Plan, acceptance: Acceptance) -> float:
    """A plan's speed over plain decoding on all of the acceptance's documents, greedy.

    `solve` predicts it on the documents that it plans for, of an adaptive plan on the half of them
    that it was not fitted to. Between a few prompts and a few others, tokens per step differ by
    more than the times of steps; on the same texts, only the times are left to be wrong.
    """
    overhead, tree = overhead_name(acceptance.sampling), plan.tree
    times = StepTimes(plan.profile, overhead, plan.contexts, plan.batch, 0)
    if tree.policy is None:
        (candidate,) = judge([("plan", tree)], times, acceptance, 0)
        return float(candidate.speedup[0])
    assert acceptance.recording is not None
    predictor = Predictor(
        acceptance.recording, plan.profile, overhead, times.contexts, 0, fill=True
    )
    predicted = predictor.predict(tree.policy)
    return float(predicted.tokens[0] * times.plain_ms[0] / predicted.step_ms[0])
