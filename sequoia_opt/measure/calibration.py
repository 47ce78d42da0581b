"""Predictions beside what decoding delivers, on prompts that the estimate has not seen.

Half of a dataset's documents give the acceptance, the other half are decoded with trees small
and large, shallow and deep. Times are compared in plain steps of the same race: on a shared
machine the clock of the profile is not the clock of today.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sequoia_opt.engine.models import Pair
from sequoia_opt.measure.bench import Progress, Result, race
from sequoia_opt.measure.methods import with_tree
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance, Sampling
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.optimum import best_trees
from sequoia_opt.plan.solver import DEFAULT_MAX_DEPTH, solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

LEAST = 4  # nodes that the sizes are spread around, if the chosen tree has fewer
SHARES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the chosen size


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
        speedup: over plain decoding, of a text without an end: the tokens that a last step
            yields beyond the wanted ones count, as they do in what is predicted.
        beside_chosen: measured speed over the chosen tree's, with its 95 % interval.
    """

    name: str
    tree: TokenTree
    tokens: Compared
    step: Compared
    speedup: Compared
    beside_chosen: tuple[float, float, float]

    def document(self) -> dict[str, Any]:
        """For machines."""
        numbers = {
            name: asdict(number) | {"error": number.error}
            for name, number in (
                ("tokens", self.tokens), ("step", self.step), ("speedup", self.speedup)
            )
        }  # fmt: skip
        return {
            "name": self.name,
            "size": self.tree.size,
            "depth": self.tree.depth,
            **numbers,
            "beside_chosen": list(self.beside_chosen),
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
    context = float(np.clip(middle, min(contexts), max(contexts)))
    plan = solve(profile, acceptance, context=context)
    largest = min(profile.target.largest(), profile.draft.largest())
    trees = trees_around(plan.tree, acceptance, largest)
    judged = solve(profile, acceptance, context=context, given=trees).given
    sampling = asdict(Sampling(acceptance.temperature, acceptance.top_p, verifier_of(acceptance)))
    methods = [with_tree(pair, name, tree, **sampling) for name, tree in trees.items()]
    methods.append(with_tree(pair, "plain", AUTOREGRESSIVE, **sampling))
    *results, plain = race(methods, prompts, new_tokens, repeats, progress)
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
            step=Compared(
                float(candidate.step_ms[0] / candidate.plain_ms[0]), _steps(result, plain)
            ),
            speedup=Compared(
                float(candidate.speedup[0]), result.tokens_per_step / _steps(result, plain)
            ),
            beside_chosen=(result.speedup, result.speedup_low, result.speedup_high),
        )
        for candidate, result in zip(judged, results, strict=True)
    ]


def _steps(result: Result, plain: Result) -> float:
    """A step's time in plain steps."""
    return result.ms_per_step / plain.ms_per_step


def verifier_of(acceptance: Acceptance) -> str:
    """The verifier to decode with; at temperature 0 all are the same."""
    return "sequoia" if acceptance.temperature == 0 else acceptance.verifier
