"""Predictions beside what decoding delivers, on prompts that the estimate has not seen.

Half of a dataset's documents give the acceptance, the other half are decoded with trees small
and large, shallow and deep. Times are compared in plain steps of the same race, and predicted
from a profile that is taken between its prompts: on a shared machine neither the clock nor the
ratios of an hour ago are those of now. What the profile on file says is set beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.bench import Result, race
from sequoia_opt.measure.methods import with_tree
from sequoia_opt.measure.profiler import Interleaved
from sequoia_opt.measure.progress import Progress
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solve_options import DEFAULT_MAX_DEPTH
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

LEAST = 4  # nodes that the sizes are spread around, if the chosen tree has fewer
SHARES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the chosen size
MEASURED = ("measured", "low", "high")


@dataclass(frozen=True)
class Compared:
    """A predicted number and the measured one.

    Attributes:
        low, high: the measured one's 95 % interval, prompts resampled, where there is one.
    """

    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Checked:
    """One tree's predictions.

    Attributes:
        tokens: per step.
        step: its time, in plain steps.
        step_ms: its time, in milliseconds.
        speedup: over plain decoding, of a text without an end: the tokens that a last step
            yields beyond the wanted ones count, as they do in what is predicted.
        filed_step, filed_speedup: the same by the profile on file.
        beside_chosen: measured speed over the chosen tree's, likewise, with its 95 % interval.
    """

    name: str
    tree: TokenTree
    tokens: Compared
    step: Compared
    step_ms: Compared
    speedup: Compared
    filed_step: Compared
    filed_speedup: Compared
    beside_chosen: Compared

    def document(self) -> dict[str, Any]:
        """For machines."""
        numbers = {
            name: asdict(number) | {"error": number.error}
            for name in ("tokens", "step", "step_ms", "speedup", "filed_step", "filed_speedup")
            for number in (getattr(self, name),)
        }
        return {
            "name": self.name,
            "size": self.tree.size,
            "depth": self.tree.depth,
            **numbers,
            "beside_chosen": [getattr(self.beside_chosen, name) for name in MEASURED],
        }


def trees_around(chosen: TokenTree, acceptance: Acceptance, largest: int) -> dict[str, TokenTree]:
    """The chosen tree first, then others from two nodes to twice its size: those of most tokens,
    as deep as they like and half as deep, and a chain.

    Args:
        largest: nodes that the profile can price.
    """
    middle = max(chosen.size, LEAST)
    sizes = sorted({2, 3, *(int(share * middle) for share in SHARES)})
    family = best_trees(acceptance.table(min(DEFAULT_MAX_DEPTH, sizes[-1] - 1)), sizes[-1])
    deepest = len(family.expected) - 1
    found = {"chosen": chosen}
    for size in sizes:
        deep = family.tree(size, min(deepest, size - 1))
        found[f"{size} nodes"] = deep
        if deep.depth > 2:
            found[f"{size} nodes, shallow"] = family.tree(size, deep.depth // 2)
    found[f"chain of {middle}"] = shapes.chain(middle)
    distinct: dict[TokenTree, str] = {}
    for name, tree in found.items():
        if tree.size <= largest:
            distinct.setdefault(tree, name)
    return {name: tree for tree, name in distinct.items()}


def calibrate(
    pair: Pair,
    profile: LatencyProfile,
    acceptance: Acceptance,
    prompts: Sequence[list[int]],
    new_tokens: int,
    repeats: int = 1,
    progress: Progress = lambda done, total: None,
) -> list[Checked]:
    """Decode with trees around the chosen one; the chosen one comes first.

    Args:
        acceptance: of other documents than the prompts'.

    Raises:
        SequoiaError: the profile cannot price the trees.
    """
    middle = float(np.mean([len(prompt) + new_tokens / 2 for prompt in prompts]))
    contexts = [curve.context for curve in profile.target.curves]
    context = round(np.clip(middle, min(contexts), max(contexts)))
    plan = solve(profile, acceptance, context=context)
    largest = min(profile.target.largest(), profile.draft.largest())
    trees = trees_around(plan.tree, acceptance, largest)
    sampling = replace(acceptance.sampling, verifier=verifier_of(acceptance))
    options = asdict(sampling)
    methods = [
        with_tree(pair, name, tree, endless=True, **options)
        for name, tree in (*trees.items(), ("plain", AUTOREGRESSIVE))
    ]
    widths = {n for tree in trees.values() for n in (tree.size, *draft_passes(tree))}
    beside = Interleaved(pair, [1, *widths], max(1, context), sampling)
    raced = race(methods, prompts, new_tokens, repeats, progress, beside.round)
    *results, plain = raced.beside(-1)
    *ratios, _ = raced.beside(0)
    today = beside.profile(profile)
    judged = solve(today, acceptance, context=max(1, context), given=trees).given
    filed = solve(profile, acceptance, context=context, given=trees).given
    return [
        Checked(
            name=candidate.name,
            tree=candidate.tree,
            tokens=Compared(
                float(candidate.tokens[0]),
                result.tokens_per_step,
                result.tokens_low,
                result.tokens_high,
            ),
            step=_step(candidate, result, plain),
            step_ms=Compared(float(candidate.step_ms[0]), result.ms_per_step),
            speedup=_speedup(candidate, result),
            filed_step=_step(on_file, result, plain),
            filed_speedup=_speedup(on_file, result),
            beside_chosen=Compared(
                float(candidate.speedup[0] / judged[0].speedup[0]),
                ratio.speedup,
                ratio.speedup_low,
                ratio.speedup_high,
            ),
        )
        for candidate, on_file, result, ratio in zip(judged, filed, results, ratios, strict=True)
    ]


def _step(candidate: Candidate, result: Result, plain: Result) -> Compared:
    """A step's time in plain steps."""
    predicted = float(candidate.step_ms[0] / candidate.plain_ms[0])
    return Compared(predicted, result.ms_per_step / plain.ms_per_step)


def _speedup(candidate: Candidate, result: Result) -> Compared:
    predicted = float(candidate.speedup[0])
    return Compared(predicted, result.speedup, result.speedup_low, result.speedup_high)


def verifier_of(acceptance: Acceptance) -> str:
    """The verifier to decode with; at temperature 0 all are the same."""
    return "sequoia" if acceptance.temperature == 0 else acceptance.verifier
