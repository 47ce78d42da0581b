"""Adaptive plans beside static ones: fitted on half of the documents, compared on the other half.

Knows what is predicted of each on the same documents and the same resampled timings, and which is
to be used. Knows nothing of how policies are searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import rounded
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.adaptive import Limits, PolicySearch, Solution
from sequoia_opt.plan.confidence_fit import (
    FittedConfidence,
    fit_confidence,
    fitting_documents,
    held_out_documents,
)
from sequoia_opt.plan.engine_rules import solved_rules
from sequoia_opt.plan.envelope import WIDTHS, adaptive_chain, adaptive_tree
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.joint_plans import joint_solutions
from sequoia_opt.plan.joint_replay import JointCounts
from sequoia_opt.plan.joint_search import JointSolution
from sequoia_opt.plan.judge import KINDS, Candidate, choose, judge, kind, kind_of
from sequoia_opt.plan.latency import LatencyProfile, overhead_name
from sequoia_opt.plan.oracle import oracle_counts
from sequoia_opt.plan.policy_prediction import Predicted, Predictor
from sequoia_opt.plan.policy_replay import Counts, PolicyReplay
from sequoia_opt.plan.policy_times import ADAPTIVE, PolicyTimes
from sequoia_opt.plan.recorded import check_recording
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.solve_options import ANY_TREE, SolveOptions
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.plan.verifiers import DETERMINISTIC_VERIFIER, GREEDY, verifier_at
from sequoia_opt.types import FloatArray

ORACLE = "oracle's bound"
LEAST_DOCUMENTS = 4


@dataclass(frozen=True)
class Bound:
    """The speed that no chain exceeds.

    Attributes:
        tokens, step_ms, plain_ms: [replicates + 1], as a candidate's.
    """

    tokens: FloatArray
    step_ms: FloatArray
    plain_ms: FloatArray

    @property
    def tokens_per_second(self) -> FloatArray:
        """Speed, [replicates + 1]."""
        return np.asarray(1000 * self.tokens / self.step_ms)

    @property
    def speedup(self) -> FloatArray:
        """Speed relative to plain decoding, [replicates + 1]."""
        return np.asarray(self.tokens * self.plain_ms / self.step_ms)


@dataclass(frozen=True)
class AdaptivePlans:
    """Adaptive and static plans on documents that no policy was fitted to.

    Attributes:
        compared: plain decoding, the best chain, the best tree, the adaptive chain, the adaptive
            tree, and with a lookup the lookup alone and both, as far as they were allowed.
        choice: the simplest of the static choice and the adaptive plans that the data cannot tell
            from the fastest; the static one where the overhead of adaptive steps was not measured.
        oracle: the bound for chains.
        counts: what decoding took, for each adaptive plan of `compared` by its kind.
        rates: λ of each on the documents that it was fitted to, tokens per millisecond.
        confidence: the calibration.
        fitted, held_out: numbers of documents.
        overhead: name of the overhead that adaptive steps were priced with.
        rules: the best numbers of other engines' own rules, see `engine_rules.solved_rules`; none
            where their guesses are not what was recorded: drawn ones, or a lookup's.
    """

    compared: list[Candidate]
    choice: Candidate
    oracle: Bound
    counts: Mapping[str, Counts | JointCounts]
    rates: Mapping[str, float]
    confidence: FittedConfidence
    fitted: int
    held_out: int
    overhead: str
    rules: Mapping[str, Mapping[str, Any]]

    @property
    def adaptive(self) -> list[Candidate]:
        """The adaptive plans among those compared."""
        return [candidate for candidate in self.compared if candidate.tree.policy is not None]

    def preferred_to(self, static: Candidate) -> Candidate:
        """The adaptive plan if one is chosen, else the static choice as it was predicted."""
        return static if self.choice.tree.policy is None else self.choice

    def speedups(self) -> dict[str, dict[str, float]]:
        """What is predicted of each kind of plan and of the oracle, with 95% intervals."""
        speedups = {kind(c.tree): c.speedup for c in self.compared}
        speedups["oracle"] = self.oracle.speedup
        return {
            name: {
                "speedup": rounded(speedup[0], 4),
                "low": rounded(interval(speedup)[0], 4),
                "high": rounded(interval(speedup)[1], 4),
            }
            for name, speedup in speedups.items()
        }

    def document(self) -> dict[str, Any]:
        """What an adaptive plan's file says of where it comes from."""
        name = kind(self.choice.tree)
        counts = self.counts[name]
        return {
            "fitted_documents": self.fitted,
            "predicted_documents": self.held_out,
            "tokens_per_ms": rounded(self.rates[name]),
            "overhead": self.overhead,
            "sizes": _shares(counts.sizes.sum(axis=0)),
            "drafted_levels": _shares(counts.levels.sum(axis=0)),
            **(
                {"looked_up": rounded(counts.looked_up, 3)}
                if isinstance(counts, JointCounts)
                else {}
            ),
            "compared": self.speedups(),
            **{
                key: self.confidence.document()[key]
                for key in ("recording", "fingerprint", "reliability")
            },
        }


def is_wanted(options: SolveOptions) -> bool:
    """Whether adaptive plans go with the options: any tree or chain of free size and depth."""
    return (
        options.shape in (ANY_TREE, KINDS[1])
        and options.batch == 1
        and options.size is None
        and options.depth is None
        and options.max_size != 1
        and options.max_depth != 0
    )


def adaptive_plans(
    profile: LatencyProfile,
    acceptance: Acceptance,
    recording: Recording,
    options: SolveOptions,
    times: StepTimes,
    static: Mapping[str, TokenTree],
) -> tuple[AdaptivePlans | None, list[str]]:
    """Adaptive plans beside static ones, and what is to be known of them, one line each.

    Args:
        times: of static steps, with the replicates of the timings.
        static: the static choice, under the name "choice", and the best tree of each kind.

    Raises:
        SequoiaError: the calibration has other ranks than the recording.
    """
    if recording.documents < LEAST_DOCUMENTS:
        return None, [
            f"no adaptive plans: found {recording.documents} recorded documents, expected at least "
            f"{LEAST_DOCUMENTS}, since half of them are fitted to"
        ]
    overhead = overhead_name(acceptance.sampling)
    fill = _fills(acceptance)
    fitting, held_out = (
        recording.of_documents(documents(recording))
        for documents in (fitting_documents, held_out_documents)
    )
    predictor = Predictor(held_out, profile, overhead, times.contexts, options.replicates, fill)
    policy_times, weights = predictor.times, predictor.weights
    limits = limits_of(recording, options, policy_times)
    if limits.depth < 1 or len(limits.sizes) < 2:
        return None, ["no adaptive plans: the profile or the limits leave no room for a guess"]
    fitted = acceptance.confidence
    if fitted is None or fitted.fingerprint != recording.fingerprint:
        fitted = fit_confidence(recording)
    search = PolicySearch(PolicyReplay(fitting, fitted.confidence), policy_times, fill)
    start = 1 / float(policy_times.target_ms[0, 1])
    models = [adaptive_chain(search, limits, start)]
    if options.shape == ANY_TREE and limits.ranks > 1:
        models.append(adaptive_tree(search, limits, models[0].rate))
    solutions: list[Solution | JointSolution] = [
        *models,
        *_with_lookup(recording, options, search, models, predictor),
    ]
    predicted = [predictor.predict(solution.policy) for solution in solutions]
    if not all(of.counts.steps.sum() for of in predicted):
        return None, [
            "no adaptive plans: the recorded documents are too short to show a whole step"
        ]

    others = replace(_held_out(acceptance, recording), confidence=None)
    judged = judge(list(static.items()), times, others, options.replicates)
    best = static["choice"]
    trees = [TokenTree(best.parents, best.ranks, policy=s.policy) for s in solutions]
    adaptive = [
        _candidate(kind(tree), tree, of, times.plain_ms)
        for tree, of in zip(trees, predicted, strict=True)
    ]
    guessing = [c for c, s in zip(adaptive, solutions, strict=True) if s.policy.guesses]
    pool = [judged[0], *(guessing if policy_times.is_measured else [])]
    _, choice = choose(pool, options.confidence, kind_of)
    bound_tokens, bound_ms = policy_times.predict(oracle_counts(held_out, policy_times), weights)
    by_kind = {kind(c.tree): c for c in (*judged, *adaptive)}
    plans = AdaptivePlans(
        compared=[by_kind[name] for name in KINDS if name in by_kind],
        choice=choice,
        oracle=Bound(bound_tokens, bound_ms, times.plain_ms),
        counts={kind(c.tree): of.counts for c, of in zip(adaptive, predicted, strict=True)},
        rates={kind(c.tree): s.rate for c, s in zip(adaptive, solutions, strict=True)},
        confidence=fitted,
        fitted=fitting.documents,
        held_out=held_out.documents,
        overhead=ADAPTIVE + overhead if policy_times.is_measured else overhead,
        rules=solved_rules(fitting, held_out, policy_times, weights, times.plain_ms)
        if fill and not profile.draft.is_free
        else {},
    )
    return plans, _notes(policy_times, overhead)


def judge_policies(
    trees: Mapping[str, TokenTree],
    profile: LatencyProfile,
    acceptance: Acceptance,
    recording: Recording | None,
    times: StepTimes,
) -> list[Candidate]:
    """The predictions for adaptive plans that were given by name, on the held-out documents.

    Args:
        trees: each with a policy.
        times: of static steps, with the replicates of the timings.

    Raises:
        SequoiaError: there is no recording, it is of another pair or sampling or shows less than a
            policy drafts, or the profile cannot price a policy; the message names the plan.
    """
    candidates = []
    for name, tree in trees.items():
        try:
            candidates.append(_judge_policy(name, tree, profile, acceptance, recording, times))
        except SequoiaError as error:
            raise SequoiaError(f"{name}: {error}") from None
    return candidates


def _judge_policy(
    name: str,
    tree: TokenTree,
    profile: LatencyProfile,
    acceptance: Acceptance,
    recording: Recording | None,
    times: StepTimes,
) -> Candidate:
    assert tree.policy is not None
    if recording is None:
        raise SequoiaError(
            "adaptive plans are predicted from recorded drafts; estimate the acceptance again with "
            "`sequoia-opt estimate`"
        )
    check_recording(recording, acceptance)
    held_out = recording.of_documents(held_out_documents(recording))
    overhead, replicates = overhead_name(acceptance.sampling), len(times.plain_ms) - 1
    fill = _fills(acceptance)
    predictor = Predictor(held_out, profile, overhead, times.contexts, replicates, fill)
    predicted = predictor.predict(tree.policy)
    if not predicted.counts.steps.sum():
        raise SequoiaError("the recorded documents are shorter than a step")
    return _candidate(name, tree, predicted, times.plain_ms)


def _with_lookup(
    recording: Recording,
    options: SolveOptions,
    search: PolicySearch,
    models: Sequence[Solution],
    predictor: Predictor,
) -> list[JointSolution]:
    """The plans with a lookup, where one was recorded; fitted to the documents of `search`.

    Args:
        models: the model's own policies.
    """
    fitting = search.replay.recording.lookup
    if recording.lookup is None or fitting is None:
        return []
    times = predictor.joint_times
    limits = limits_of(fitting, options, times.lookup)
    if options.shape != ANY_TREE:
        limits = replace(limits, ranks=1, widths=(1,))
    model = max(models, key=lambda solution: solution.rate)
    confidence = fit_confidence(recording.lookup).confidence
    return joint_solutions(fitting, confidence, limits, search, model, times)


def limits_of(recording: Recording, options: SolveOptions, times: PolicyTimes) -> Limits:
    """What a policy may use: of what was recorded, what was measured and what was asked for."""
    depth = recording.levels
    if options.max_depth is not None:
        depth = min(depth, options.max_depth)
    ranks = min(recording.width_of_node, options.max_width or recording.width_of_node)
    slots = min(recording.slots, ranks) if recording.levels > 1 else 1
    most = options.max_size or times.measured_sizes[-1]
    return Limits(
        depth=depth if np.isfinite(times.first_ms[0, 0]) and times.has_width(1) else 0,
        ranks=ranks,
        widths=tuple(width for width in WIDTHS if width <= slots and times.has_width(width)),
        sizes=tuple(size for size in times.measured_sizes if size <= most),
    )


def _candidate(name: str, tree: TokenTree, predicted: Predicted, plain_ms: FloatArray) -> Candidate:
    """An adaptive plan with its predictions."""
    mean = float(predicted.tokens[0])
    return Candidate(name, tree, mean, mean, predicted.tokens, predicted.step_ms, plain_ms)


def _fills(acceptance: Acceptance) -> bool:
    """Whether guesses that were not offered fill a target pass: those that are not drawn."""
    verifier = verifier_at(acceptance.temperature, acceptance.verifier)
    return verifier in (GREEDY, DETERMINISTIC_VERIFIER)


def _held_out(acceptance: Acceptance, recording: Recording) -> Acceptance:
    """The acceptance with the rank traces of the held-out documents.

    Those of the acceptance file tell ranks apart that the recording does not.
    """
    lengths = np.diff(recording.starts).tolist()
    if [len(trace) for trace in acceptance.traces] == lengths:
        return acceptance.of_documents(held_out_documents(recording))
    starts, by_depth = recording.starts, []
    spans = [slice(starts[n], starts[n + 1]) for n in held_out_documents(recording)]
    if recording.is_of_head and recording.path_ranks is not None:
        by_depth = [recording.path_ranks[span].T.tolist() for span in spans]
    traces = [recording.ranks[span].tolist() for span in spans]
    return replace(acceptance, traces=traces, traces_by_depth=by_depth)


def _notes(times: PolicyTimes, overhead: str) -> list[str]:
    if times.is_measured:
        return []
    return [
        f"the profile has no overhead for {ADAPTIVE}{overhead}: adaptive plans are priced with "
        f"that of {overhead}, and none is chosen; profile again to measure it"
    ]


def _shares(counts: IntArray) -> dict[str, float]:
    """The share of each number that was counted at all, by number."""
    total = max(int(counts.sum()), 1)
    return {
        str(number): rounded(int(counts[number]) / total, 3) for number in np.flatnonzero(counts)
    }
