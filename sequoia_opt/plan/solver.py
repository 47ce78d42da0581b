"""The solver: acceptance rates and latencies in, the tree that decodes fastest out.

Generates candidate trees (`candidates`), predicts their tokens and times with the uncertainty of
both (`judge`), and chooses the smallest tree that the data cannot tell from the fastest.
"""

from __future__ import annotations

from collections.abc import Mapping

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.candidates import SearchSpace, baseline_trees, candidate_trees, surface
from sequoia_opt.plan.intervals import REPLICATES
from sequoia_opt.plan.judge import (
    choose,
    comparable,
    fastest_by_name,
    judge,
    judge_given,
    runners_up,
)
from sequoia_opt.plan.latency import LatencyProfile, overhead_name
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.solve_options import ANY_TREE, SolveOptions
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import verifier_at

SOLVED = "solved"
"""Name of the solver's own candidates."""


def solve(
    profile: LatencyProfile,
    acceptance: Acceptance,
    *,
    max_size: int | None = None,
    max_depth: int | None = None,
    size: int | None = None,
    depth: int | None = None,
    context: float | Mapping[float, float] | None = None,
    batch: int = 1,
    shape: str = ANY_TREE,
    max_width: int | None = None,
    confidence: float | None = None,
    given: Mapping[str, TokenTree] | None = None,
    replicates: int = REPLICATES,
) -> Plan:
    """The tree that maximises predicted tokens per second, E(T) / t(T, L).

    E(T) is the expected number of tokens per step and t(T, L) the time of a step at context
    length L on the measured machine (Sequoia, arXiv 2402.12374, sections 3.1 and 3.3).

    Args:
        profile: measured latencies of the pair.
        acceptance: measured acceptance of the pair.
        max_size: most nodes of the tree; by default the largest size that was measured.
        max_depth: depth limit of the tree.
        size: fix the number of nodes instead of choosing it.
        depth: fix the depth limit instead of choosing it; with `size`, E*(size, depth) is the
            tree.
        context: context length, or weights of several context lengths; by default that of the
            acceptance measurement, else 512, within the measured range.
        batch: sequences that are decoded together; the profile must have measured it.
        shape: "tree" for any shape, else one of `shapes.NAMES`: what an engine can run.
        max_width: most children of a node.
        confidence: maximise the speedup that is exceeded with this probability, in (0, 1),
            instead of the predicted one.
        given: trees to predict besides the answer, by name; none of them is chosen.
        replicates: how many times documents and timings are resampled.

    Raises:
        SequoiaError: an option is out of range, no tree fits the options, or the profile has no
            point for what was asked or for a given tree.
    """
    options = SolveOptions(
        max_size=max_size,
        max_depth=max_depth,
        size=size,
        depth=depth,
        context=context,
        batch=batch,
        shape=shape,
        max_width=max_width,
        confidence=confidence,
        replicates=replicates,
    )
    overhead = overhead_name(acceptance.sampling)
    contexts = options.contexts(profile, acceptance)
    times = StepTimes(profile, overhead, contexts, batch, replicates)
    space = SearchSpace.of(options, profile, acceptance, times)

    best = best_trees(space.table, space.max_size)
    speed = surface(best, times, space)
    named = [(SOLVED, tree) for tree in candidate_trees(best, speed, times, space)]
    named += baseline_trees(times, space)

    judged = judge(named, times, acceptance, replicates)
    candidates = comparable([candidate for candidate in judged if candidate.name == SOLVED])
    fastest, choice = choose(candidates, confidence)
    return Plan(
        choice=choice,
        fastest=fastest,
        runners_up=runners_up(candidates, choice),
        baselines=fastest_by_name([c for c in judged if c.name != SOLVED]),
        given=judge_given(given or {}, times, acceptance, replicates),
        expected=best.expected,
        speed=speed,
        method=best.method,
        contexts=times.contexts,
        batch=batch,
        confidence=confidence,
        may_speculate=space.max_depth > 0,
        verifier=verifier_at(acceptance.temperature, acceptance.verifier),
        profile=profile,
        acceptance=acceptance,
    )
