"""The solver: acceptance rates and latencies in, the plan that decodes fastest out.

Generates candidate trees (`candidates`), predicts their tokens and times with the uncertainty of
both (`judge`), and chooses the smallest tree that the data cannot tell from the fastest. Where
drafts were recorded, adaptive plans compete with it (`adaptive_plans`).
"""

from __future__ import annotations

from collections.abc import Mapping

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.adaptive_plans import (
    AdaptivePlans,
    adaptive_plans,
    is_wanted,
    judge_policies,
)
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.candidates import SearchSpace, baseline_trees, candidate_trees, surface
from sequoia_opt.plan.draft_names import LOOKUP
from sequoia_opt.plan.intervals import REPLICATES
from sequoia_opt.plan.judge import (
    KINDS,
    Candidate,
    choose,
    comparable,
    fastest_by_name,
    judge,
    judge_given,
    runners_up,
)
from sequoia_opt.plan.latency import LatencyProfile, overhead_name
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.recorded import check_recording
from sequoia_opt.plan.recording import Recording
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
    recording: Recording | None = None,
    static: bool = False,
) -> Plan:
    """The plan that maximises predicted tokens per second: a tree, or how trees grow.

    Of a tree they are E(T) / t(T, L), the expected number of tokens per step over the time of a
    step at context length L on the measured machine (Sequoia, arXiv 2402.12374, sections 3.1 and
    3.3). Of a policy they are replayed, see `adaptive`.

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
        given: plans to predict besides the answer, by name; none of them is chosen. Adaptive ones
            need a recording.
        replicates: how many times documents and timings are resampled.
        recording: what the draft said while the acceptance was measured; adaptive plans are
            solved from it. Without it there are only static ones.
        static: leave adaptive plans out.

    Raises:
        SequoiaError: an option is out of range, the measurements are of other pairs or samplings
            than one another, no tree fits the options, or the profile has no point for what was
            asked or for a given tree.
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
    _check_kinds(profile, acceptance)
    contexts = options.contexts(profile, acceptance)
    times = StepTimes(profile, overhead_name(acceptance.sampling), contexts, batch, replicates)
    space = SearchSpace.of(options, profile, acceptance, times)

    best = best_trees(space.table, space.max_size)
    speed = surface(best, times, space)
    named = [(SOLVED, tree) for tree in candidate_trees(best, speed, times, space)]
    named += baseline_trees(times, space)

    judged = judge(named, times, acceptance, replicates)
    candidates = comparable([candidate for candidate in judged if candidate.name == SOLVED])
    fastest, choice = choose(candidates, confidence)
    baselines = fastest_by_name([c for c in judged if c.name != SOLVED])
    trees = {"choice": choice.tree, "fastest": fastest.tree}
    trees |= {c.name: c.tree for c in baselines if c.name in KINDS}
    drafts = None if static else recording
    adaptive, notes = _adaptive(profile, acceptance, drafts, options, times, trees)
    return Plan(
        choice=choice if adaptive is None else adaptive.preferred_to(choice),
        fastest=fastest,
        runners_up=runners_up(candidates, choice),
        baselines=baselines,
        given=_given(given or {}, profile, acceptance, recording, times),
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
        adaptive=adaptive,
        notes=notes,
    )


def _check_kinds(profile: LatencyProfile, acceptance: Acceptance) -> None:
    """Refuse a model's acceptance without the times of its passes, and a lookup's with some.

    Raises:
        SequoiaError: it names both drafts.
    """
    profiled, sampled = profile.draft.model, acceptance.draft
    if sampled != "unknown" and profile.draft.is_free != (sampled == LOOKUP):
        raise SequoiaError(
            f"found a profile of the draft {profiled} and acceptance rates of {sampled}, expected "
            "both of a lookup or both of a model; measure the other one"
        )


def _given(
    trees: Mapping[str, TokenTree],
    profile: LatencyProfile,
    acceptance: Acceptance,
    recording: Recording | None,
    times: StepTimes,
) -> list[Candidate]:
    """The predictions for the given plans, in their order."""
    static = {name: tree for name, tree in trees.items() if tree.policy is None}
    adaptive = {name: tree for name, tree in trees.items() if tree.policy is not None}
    judged = judge_given(static, times, acceptance, len(times.plain_ms) - 1)
    judged += judge_policies(adaptive, profile, acceptance, recording, times)
    by_name = {candidate.name: candidate for candidate in judged}
    return [by_name[name] for name in trees]


def _adaptive(
    profile: LatencyProfile,
    acceptance: Acceptance,
    recording: Recording | None,
    options: SolveOptions,
    times: StepTimes,
    static: Mapping[str, TokenTree],
) -> tuple[AdaptivePlans | None, list[str]]:
    """Adaptive plans beside static ones, if drafts were recorded and the options allow them."""
    if recording is None or not is_wanted(options):
        return None, []
    check_recording(recording, acceptance)
    return adaptive_plans(profile, acceptance, recording, options, times, static)
