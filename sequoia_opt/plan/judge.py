"""Judging candidate trees: by replay of the rank traces, resampled together with the timings.

Knows what is predicted of each tree and which of them to choose. Knows nothing of how the trees
were generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.intervals import TAIL
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

MAX_RUNNERS_UP = 4
SPEED_TO_GIVE_UP = 0.01  # share of the predicted speed that an indistinguishable tree may lack
ADAPTIVE_CHAIN, ADAPTIVE_TREE = "adaptive chain", "adaptive tree"
LOOKUP_ALONE, LOOKUP_FIRST = "adaptive lookup", "adaptive lookup + model"
KINDS = ("plain", "chain", "tree", ADAPTIVE_CHAIN, ADAPTIVE_TREE, LOOKUP_ALONE, LOOKUP_FIRST)
"""The kinds of plans, the simplest first."""
ROUNDING = 1e-9  # relative difference of two speeds that comes from rounding


@dataclass(frozen=True)
class Candidate:
    """A tree and its predictions.

    Attributes:
        name: its name in tables.
        expected_tokens: E(T), acceptances taken as independent (Sequoia, section 3.1).
        replayed_tokens: tokens per step by replay; None without traces.
        tokens, step_ms: [replicates + 1], the estimate first, then resampled ones: tokens per
            step (by replay where there are traces, else E(T)) and the time of a step.
        plain_ms: [replicates + 1], the time of a step of plain decoding.
    """

    name: str
    tree: TokenTree
    expected_tokens: float
    replayed_tokens: float | None
    tokens: FloatArray
    step_ms: FloatArray
    plain_ms: FloatArray

    @cached_property
    def tokens_per_second(self) -> FloatArray:
        """Speed, [replicates + 1]."""
        return np.asarray(1000 * self.tokens / self.step_ms)

    @cached_property
    def speedup(self) -> FloatArray:
        """Speed relative to plain decoding, [replicates + 1]; 1 for the one-node tree."""
        if not self.tree.speculates:
            return np.ones_like(self.tokens)
        return np.asarray(self.tokens * self.plain_ms / self.step_ms)

    @property
    def is_faster(self) -> bool:
        """Whether the prediction is faster than plain decoding."""
        return bool(self.speedup[0] > 1)

    @property
    def pays(self) -> float:
        """Share of the replicates in which it is faster than plain decoding; NaN without any."""
        return float((self.speedup[1:] > 1).mean()) if len(self.speedup) > 1 else float("nan")

    def speedup_exceeded_with(self, probability: float) -> float:
        """The speedup that it exceeds with a probability, by the replicates."""
        return float(np.quantile(self.speedup, 1 - probability))


def judge(
    named: Sequence[tuple[str, TokenTree]],
    times: StepTimes,
    acceptance: Acceptance,
    replicates: int,
) -> list[Candidate]:
    """The predictions for each named tree, from resampled documents and timings.

    Judges all trees together, since each replay passes through all traces.

    Raises:
        SequoiaError: the profile cannot price a tree.
    """
    trees = list(dict.fromkeys(tree for _, tree in named))
    catch_up_ms = times.catch_up_ms
    tokens = dict(zip(trees, acceptance.replicates(trees, replicates), strict=True))
    return [
        Candidate(
            name=name,
            tree=tree,
            expected_tokens=acceptance.expected_tokens(tree),
            replayed_tokens=float(tokens[tree][0]) if acceptance.can_replay(tree) else None,
            tokens=tokens[tree],
            # Behind an accepted leaf the draft has a token to catch up with.
            step_ms=times.step_ms(tree) + acceptance.leaf_share(tree) * catch_up_ms,
            plain_ms=times.plain_ms,
        )
        for name, tree in named
    ]


def judge_given(
    trees: Mapping[str, TokenTree], times: StepTimes, acceptance: Acceptance, replicates: int
) -> list[Candidate]:
    """The predictions for trees that were given by name.

    Raises:
        SequoiaError: the profile cannot price one of them, which the message names.
    """
    for name, tree in trees.items():
        try:
            times.step_ms(tree)
        except SequoiaError as error:
            raise SequoiaError(f"{name}: {error}") from None
    return judge(list(trees.items()), times, acceptance, replicates) if trees else []


def comparable(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that were replayed, or all of them if none was.

    Replay and independence promise different tokens: predictions of both kinds do not compare.
    """
    replayed = [candidate for candidate in candidates if candidate.replayed_tokens is not None]
    return replayed or list(candidates)


def size_of(candidate: Candidate) -> tuple[int, ...]:
    """How simple a candidate is among static trees: its size."""
    return (candidate.tree.size,)


def kind_of(candidate: Candidate) -> tuple[int, ...]:
    """How simple a candidate is among all kinds of plans: its place in `KINDS`, then its size."""
    return KINDS.index(kind(candidate.tree)), candidate.tree.size


def kind(tree: TokenTree) -> str:
    """Which of `KINDS` a plan is."""
    if (policy := tree.policy) is not None:
        if policy.lookup is not None:
            return LOOKUP_FIRST if policy.drafts else LOOKUP_ALONE
        return ADAPTIVE_CHAIN if policy.is_chain else ADAPTIVE_TREE
    if tree.size == 1:
        return KINDS[0]
    return KINDS[1] if tree.depth == tree.size - 1 else KINDS[2]


def choose(
    candidates: Sequence[Candidate],
    confidence: float | None,
    simplicity: Callable[[Candidate], tuple[int, ...]] = size_of,
) -> tuple[Candidate, Candidate]:
    """The fastest candidate, and the one to use.

    Without a confidence, the one to use is the simplest that the data cannot tell from the
    fastest. With one, it is the candidate of the highest lower bound, which its speedup exceeds
    with that probability.

    Args:
        simplicity: less for a simpler candidate: `size_of` or `kind_of`.
    """

    def by_speed(candidate: Candidate) -> tuple[float, tuple[int, ...]]:
        return -float(f"{candidate.tokens_per_second[0]:.9g}"), simplicity(candidate)

    fastest = min(candidates, key=by_speed)
    if confidence is not None:
        return fastest, min(
            candidates,
            key=lambda c: (-c.speedup_exceeded_with(confidence), simplicity(c)),
        )
    simpler = [
        candidate
        for candidate in candidates
        if simplicity(candidate) < simplicity(fastest) and _is_indistinguishable(candidate, fastest)
    ]
    return fastest, min([fastest, *simpler], key=lambda c: (simplicity(c), by_speed(c)))


def _is_indistinguishable(simpler: Candidate, fastest: Candidate) -> bool:
    """Whether the data cannot tell that `fastest` is faster, nor does it promise much more.

    The data cannot tell if `fastest` is no faster in more than a tail of the replicates. These
    carry the noise of every single timing, so on a noisy machine many trees are alike; the best
    guess is still the best, and is given up for a little speed at most.
    """
    if simpler.speedup[0] < (1 - SPEED_TO_GIVE_UP) * fastest.speedup[0]:
        return False
    no_faster = fastest.speedup[1:] <= simpler.speedup[1:] * (1 + ROUNDING)
    return bool(len(no_faster)) and float(no_faster.mean()) > TAIL


def runners_up(candidates: Sequence[Candidate], choice: Candidate) -> list[Candidate]:
    """The fastest candidates of other sizes than the choice; of its size, if there is no other."""
    ranking = sorted(
        (candidate for candidate in candidates if candidate is not choice),
        key=lambda candidate: (-candidate.tokens_per_second[0], candidate.tree.size),
    )
    by_size: dict[int, Candidate] = {}
    for candidate in ranking:
        if candidate.tree.size != choice.tree.size:
            by_size.setdefault(candidate.tree.size, candidate)
    return (list(by_size.values()) or ranking)[:MAX_RUNNERS_UP]


def fastest_by_name(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The fastest candidate of each name."""
    fastest: dict[str, Candidate] = {}
    for candidate in candidates:
        known = fastest.setdefault(candidate.name, candidate)
        if candidate.tokens_per_second[0] > known.tokens_per_second[0]:
            fastest[candidate.name] = candidate
    return list(fastest.values())
