"""Compares predictions with measurements, on prompts that the acceptance estimate has not seen.

Half of a dataset's documents give the acceptance; the other half are decoded with small and large,
shallow and deep trees, and with adaptive plans. Times are compared in plain steps of the same race,
and predicted from a profile that is taken between its prompts, because on a shared machine neither
the clock nor its ratios hold for an hour. The predictions of the profile on file are compared too.

Knows trees, predictions and races. Knows nothing of files to write or of how results are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.calibration_plans import plans_to_race, tokens_of_passes
from sequoia_opt.measure.comparison import ComparisonSpec, settings_of, workload
from sequoia_opt.measure.estimator import EstimateOptions, check_sampled, estimate
from sequoia_opt.measure.interleaved import Interleaved
from sequoia_opt.measure.methods import with_tree
from sequoia_opt.measure.progress import (
    Note,
    Progress,
    ProgressBar,
    no_note,
    no_progress,
    no_progress_bar,
)
from sequoia_opt.measure.race import Result, race
from sequoia_opt.measure.records import Document
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.latency import LatencyProfile, overhead_name
from sequoia_opt.plan.recording import LOOKUP_ENVELOPE, Envelope
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, DETERMINISTIC_VERIFIER

KINDS = ("tokens", "step", "step_ms", "speedup", "filed_step", "filed_speedup")


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec(ComparisonSpec):
    """What to calibrate.

    Attributes:
        profile: the profile on file.
        temperatures: each is estimated and decoded in turn, with the rest of the sampling.
        chains: guesses of the longest chain to decode with, beside all shorter ones.
    """

    profile: LatencyProfile
    temperatures: Sequence[float] = (0.0, 0.6)
    chains: int = 0
    limit: int = 64
    repeats: int = 1

    @property
    def samplings(self) -> list[Sampling]:
        """The sampling at each temperature; a lookup has one verifier only."""
        verifier = DETERMINISTIC_VERIFIER if self.profile.draft.is_free else self.sampling.verifier
        sampling = replace(self.sampling, verifier=verifier)
        return [replace(sampling, temperature=value) for value in self.temperatures]

    def check(self) -> None:
        """Refuse what cannot be predicted, before anything that takes long.

        Raises:
            SequoiaError: a sampling has no acceptance by rank, or the profile has no overhead
                for it.
        """
        for sampling in self.samplings:
            check_sampled(sampling)
            self.profile.overhead_for(overhead_name(sampling))


@dataclass(frozen=True)
class Comparison:
    """A predicted number and the measured one.

    Attributes:
        low, high: 95% interval of the measured number, prompts resampled, where there is one.
    """

    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of the measured number."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class CheckedTree:
    """A tree's predictions and measurements.

    Attributes:
        tokens: tokens per step.
        step: time of a step, in plain steps.
        step_ms: time of a step, in milliseconds.
        speedup: over plain decoding of an endless text: the tokens that a last step yields past
            the requested length count, as they do in predictions.
        filed_step, filed_speedup: the same, predicted from the profile on file.
        over_chosen: speed over the chosen tree's, likewise.
    """

    name: str
    tree: TokenTree
    tokens: Comparison
    step: Comparison
    step_ms: Comparison
    speedup: Comparison
    filed_step: Comparison
    filed_speedup: Comparison
    over_chosen: Comparison

    def comparison(self, kind: str) -> Comparison:
        """The comparison of that name, of KINDS."""
        found: Comparison = getattr(self, kind)
        return found

    def document(self) -> dict[str, Any]:
        """The numbers, for a results file."""
        comparisons = {kind: self.comparison(kind) for kind in KINDS}
        ratio = self.over_chosen
        return {
            "name": self.name,
            "size": self.tree.largest_size,
            "depth": self.tree.largest_depth,
            **({"adaptive": True} if self.tree.policy is not None else {}),
            **{
                kind: asdict(compared) | {"error": compared.error}
                for kind, compared in comparisons.items()
            },
            "beside_chosen": [ratio.measured, ratio.low, ratio.high],
        }


@dataclass(frozen=True)
class CalibrationPart:
    """One sampling's trees, the chosen one first."""

    sampling: Sampling
    trees: list[CheckedTree]

    @property
    def fastest(self) -> CheckedTree:
        """The tree that is fastest as measured."""
        return max(self.trees, key=lambda checked: checked.over_chosen.measured)

    @property
    def chose_fastest(self) -> bool:
        """Whether the chosen tree is the fastest as measured."""
        return self.fastest is self.trees[0]

    def errors(self, kind: str) -> tuple[float, float]:
        """Median and largest absolute error of the predictions of one kind, as shares.

        Args:
            kind: a name of KINDS.
        """
        errors = [abs(checked.comparison(kind).error) for checked in self.trees]
        return float(np.median(errors)), max(errors)


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        settings: the pair, options and machine of the run.
    """

    parts: list[CalibrationPart]
    settings: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The content of a results file, without its format and version."""
        parts = [
            {**asdict(part.sampling), "trees": [checked.document() for checked in part.trees]}
            for part in self.parts
        ]
        return {"calibration": parts, **self.settings}


def run_calibration(
    spec: CalibrationSpec,
    pair: Pair,
    dataset: str,
    documents: Sequence[Document],
    progress_bar: ProgressBar = no_progress_bar,
    note: Note = no_note,
) -> Calibration:
    """Estimate acceptance from every other document, and decode the rest.

    Args:
        dataset: the dataset's short name.
        note: called with one line for each document that is left out.

    Raises:
        SequoiaError: see `CalibrationSpec.check`; or there are too few usable documents.
    """
    spec.check()
    if len(documents) < 2:
        raise SequoiaError(
            f"{dataset}: found 1 document, expected at least 2: acceptance is estimated from one "
            "half, the other half is decoded"
        )
    chosen = workload(spec, pair, dataset, documents[1::2], note)
    options = EstimateOptions(
        max_new_tokens=spec.max_new_tokens,
        template=spec.template,
        envelope=LOOKUP_ENVELOPE if spec.profile.draft.is_free else Envelope(),
    )
    parts = []
    for sampling in spec.samplings:
        with progress_bar("estimating") as progress:
            (acceptance,) = estimate(
                pair, documents[::2], chosen.dataset, [sampling], options, progress, note
            )
        with progress_bar("decoding") as progress:
            trees = calibrate(
                pair,
                spec.profile,
                acceptance,
                chosen.prompts,
                spec.max_new_tokens,
                spec.repeats,
                progress,
                spec.chains,
            )
        parts.append(CalibrationPart(sampling, trees))
    return Calibration(parts, settings_of(spec, pair, chosen))


def calibrate(
    pair: Pair,
    profile: LatencyProfile,
    acceptance: Acceptance,
    prompts: Sequence[list[int]],
    new_tokens: int,
    repeats: int = 1,
    progress: Progress = no_progress,
    chains: int = 0,
) -> list[CheckedTree]:
    """Decode with the chosen plan, with trees around the best static one, and with the adaptive
    plans if drafts were recorded; the chosen one comes first.

    Args:
        acceptance: of other documents than those of the prompts, with the recording if any.
        chains: see `CalibrationSpec`.

    Raises:
        SequoiaError: the profile cannot price the trees.
    """
    middle = float(np.mean([len(prompt) + new_tokens / 2 for prompt in prompts]))
    contexts = [curve.context for curve in profile.target.curves]
    context = round(np.clip(middle, min(contexts), max(contexts)))
    plan = solve(profile, acceptance, context=context, recording=acceptance.recording)
    largest = profile.target.largest()
    if not profile.draft.is_free:
        largest = min(largest, profile.draft.largest())
    trees = plans_to_race(plan, largest, chains)
    sampling = replace(acceptance.sampling, verifier=verifier_of(acceptance))
    methods = [
        with_tree(pair, name, tree, endless=True, **asdict(sampling))
        for name, tree in (*trees.items(), ("plain", AUTOREGRESSIVE))
    ]
    widths = {n for tree in trees.values() for n in tokens_of_passes(tree, profile)}
    adaptive = any(tree.policy is not None for tree in trees.values())
    interleaved = Interleaved(pair, [1, *widths], max(1, context), sampling, adaptive)
    outcome = race(methods, prompts, new_tokens, repeats, progress, interleaved.round)
    *over_plain, plain = outcome.results(baseline=-1)
    *over_chosen, _ = outcome.results(baseline=0)
    solving: dict[str, Any] = {"recording": acceptance.recording, "static": True, "given": trees}
    profile_now = interleaved.profile(profile)
    predicted = solve(profile_now, acceptance, context=max(1, context), **solving).given
    filed = solve(profile, acceptance, context=context, **solving).given
    return [
        _checked(candidate, on_file, predicted[0], result, plain, ratio)
        for candidate, on_file, result, ratio in zip(
            predicted, filed, over_plain, over_chosen, strict=True
        )
    ]


def _checked(
    predicted: Candidate,
    filed: Candidate,
    chosen: Candidate,
    result: Result,
    plain: Result,
    over_chosen: Result,
) -> CheckedTree:
    """A tree's predictions and its result.

    Args:
        filed: predicted from the profile on file.
        chosen: the prediction of the chosen tree.
        plain: the result of plain decoding.
        over_chosen: the tree's result with the chosen tree as the baseline.
    """
    return CheckedTree(
        name=predicted.name,
        tree=predicted.tree,
        tokens=Comparison(
            float(predicted.tokens[0]),
            result.tokens_per_step,
            result.tokens_low,
            result.tokens_high,
        ),
        step=_step(predicted, result, plain),
        step_ms=Comparison(float(predicted.step_ms[0]), result.ms_per_step),
        speedup=_speedup(float(predicted.speedup[0]), result),
        filed_step=_step(filed, result, plain),
        filed_speedup=_speedup(float(filed.speedup[0]), result),
        over_chosen=_speedup(float(predicted.speedup[0] / chosen.speedup[0]), over_chosen),
    )


def _step(candidate: Candidate, result: Result, plain: Result) -> Comparison:
    """Time of a step, in plain steps."""
    predicted = float(candidate.step_ms[0] / candidate.plain_ms[0])
    return Comparison(predicted, result.ms_per_step / plain.ms_per_step)


def _speedup(predicted: float, result: Result) -> Comparison:
    """A predicted and a measured ratio of speeds."""
    return Comparison(predicted, result.speedup, result.speedup_low, result.speedup_high)


def verifier_of(acceptance: Acceptance) -> str:
    """The verifier to decode with; at temperature 0 all verifiers are the same."""
    return DEFAULT_VERIFIER if acceptance.temperature == 0 else acceptance.verifier
