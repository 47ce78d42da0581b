"""The envelope of a policy: how deep, how wide, which sizes, and when to pause.

Every size of a target pass is a shape that an engine prepares, so that what hardly matters is left
out: levels, ranks, widths and sizes without which the policy is as fast. Knows the search for
thresholds within given limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np

from sequoia_opt.plan.adaptive import Limits, PolicySearch, Solution
from sequoia_opt.plan.policy import Pause
from sequoia_opt.plan.policy_replay import Steps
from sequoia_opt.plan.tree import IntArray
from sequoia_opt.types import FloatArray

MOST_SIZES = 8  # shapes of the target pass
GIVEN_UP = 1e-3  # share of the speed that a smaller envelope may cost
WIDTHS = (1, 2, 4)

MISSES = (1, 2, 3, 4, 5, 6, 8)
PAUSES = (
    (1, 2, 4, 8, 16, 32, 64),
    (2, 4, 8, 16, 32, 64),
    (4, 8, 16, 32, 64),
    (8, 16, 32, 64),
    (16, 32, 64),
    (32, 64),
    (64,),
)
HOPELESS_TOKENS = 128  # of a text in which nothing is accepted
MOST_LOST = 0.02  # share of plain decoding's speed that such a text may lose in any case


def adaptive_chain(search: PolicySearch, limits: Limits, start: float) -> Solution:
    """The fastest chain that stops where the draft is unsure.

    Args:
        limits: of the envelope; one rank and one node a level are used.
        start: λ to begin with, tokens per millisecond.
    """
    sizes = _sizes_up_to(limits.sizes, limits.depth + 1)
    chain = replace(limits, ranks=1, widths=(1,), sizes=sizes)
    deepest = search.best(chain, start)
    best = _least(search, deepest, "depth", range(1, limits.depth))
    if best is not deepest:
        # Thresholds for more levels may be made for a target pass that is much larger than what
        # these need.
        again = search.best(replace(chain, depth=best.policy.depth), best.rate)
        best = max(again, best, key=lambda solution: solution.rate)
    return _finished(search, best)


def adaptive_tree(search: PolicySearch, limits: Limits, start: float) -> Solution:
    """The fastest tree; of widths that are as fast, the narrowest.

    Args:
        limits: of the envelope.
        start: λ to begin with, tokens per millisecond.
    """
    deepest = search.best(replace(limits, widths=limits.widths[:1]), start)
    narrow = _least(search, deepest, "depth", range(1, limits.depth))
    if len(limits.widths) == 1:
        return _finished(search, narrow)
    wide = search.best(replace(limits, depth=narrow.policy.depth), narrow.rate, narrow)
    return _finished(search, wide if wide.rate > narrow.rate * (1 + GIVEN_UP) else narrow)


def _sizes_up_to(sizes: Sequence[int], nodes: int) -> tuple[int, ...]:
    """The sizes that trees of at most so many nodes need: up to the first that has room."""
    kept = [size for size in sizes if size < nodes]
    return (*kept, *[size for size in sizes if size >= nodes][:1])


def _finished(search: PolicySearch, solution: Solution) -> Solution:
    """The policy with the smallest envelope that is as fast, and with its pause."""
    smaller = _smaller(search, solution)
    policy = smaller.policy
    widths = tuple(width for width, _ in policy.expand)
    limits = Limits(policy.depth, policy.ranks, widths, policy.sizes)
    return _with_pause(search, search.best(limits, smaller.rate, smaller))


def _smaller(search: PolicySearch, solution: Solution) -> Solution:
    """The policy with fewer levels, ranks, widths and sizes, where that costs next to nothing."""
    best = _least(search, solution, "depth", range(1, solution.policy.depth))
    # With one rank it is a chain.
    best = _least(search, best, "ranks", range(2, best.policy.ranks))
    expand = best.policy.expand
    best = _least(search, best, "expand", [expand[:count] for count in range(1, len(expand))])
    counts = best.counts.sizes.sum(axis=0)
    sizes = fewer_sizes(counts, search.times.target_ms[0], GIVEN_UP)
    return search.changed(best, sizes=sizes)


def _least(search: PolicySearch, solution: Solution, name: str, values: Sequence[Any]) -> Solution:
    """The solution with the first of some values in a field of its policy, in ascending order,
    that is as fast as any. More can be slower: one more level may need a much larger target pass.
    """
    smaller = [search.changed(solution, **{name: value}) for value in values]
    solutions = [*smaller, solution]
    least = max(other.rate for other in solutions) * (1 - GIVEN_UP)
    return next(other for other in solutions if other.rate >= least)


def fewer_sizes(counts: IntArray, target_ms: FloatArray, given_up: float) -> tuple[int, ...]:
    """At most `MOST_SIZES` of the used sizes, and none that hardly saves time.

    Sizes are left out one after the other, each time the one whose passes lose least by taking
    the next larger size.

    Args:
        counts: target passes by size.
        target_ms: the time of one by size.
        given_up: share of all target passes' time that leaving out sizes may cost, as long as
            they are not too many.
    """
    used = np.flatnonzero(counts)
    sizes = sorted({1, *used.tolist()})
    passes = {size: int(counts[size]) for size in sizes}
    total_ms = float(counts[used] @ target_ms[used])
    lost_ms = 0.0
    while len(sizes) > 2:
        losses = [
            passes[size] * float(target_ms[larger] - target_ms[size])
            for size, larger in pairwise(sizes[1:])
        ]
        least = int(np.argmin(losses))
        if len(sizes) <= MOST_SIZES and lost_ms + losses[least] > given_up * total_ms:
            break
        size, larger = sizes[least + 1], sizes[least + 2]
        lost_ms += losses[least]
        passes[larger] += passes.pop(size)
        sizes.remove(size)
    return tuple(sizes)


def _with_pause(search: PolicySearch, solution: Solution) -> Solution:
    """The policy with its pause, or without one where drafting costs too little."""
    steps = search.steps(solution.policy)

    def paused(pause: Pause | None) -> Solution:
        policy = replace(solution.policy, pause=pause)
        counts = search.replay.walk(steps, policy)
        return replace(solution, policy=policy, counts=counts, rate=search.times.rate(counts))

    return paused(best_pause(lambda pause: paused(pause).rate, miss_ratio(search, steps)))


def best_pause(rate_with: Callable[[Pause | None], float], ratio: float) -> Pause | None:
    """The pause that insures best against text in which nothing is accepted, or none.

    A pause may cost as large a share of the speed on the recorded text as it saves on hopeless
    text beyond `MOST_LOST`.

    Args:
        rate_with: the speed on the recorded text with a pause.
        ratio: see `hopeless_loss`.
    """

    def insured(pause: Pause | None) -> float:
        return rate_with(pause) * (1 - max(hopeless_loss(pause, ratio) - MOST_LOST, 0.0))

    return max((None, *(Pause(*numbers) for numbers in product(MISSES, PAUSES))), key=insured)


def miss_ratio(search: PolicySearch, steps: Steps) -> float:
    """The mean time of a step that drafts a level and accepts nothing, in plain steps.

    Where nothing is accepted the draft is unsure, and growth ends after a level.
    """
    times = search.times
    missed = (steps.accepted == 0) & ((steps.widths > 0).sum(axis=1) == 1)
    if not missed.any():
        return 1.0
    milliseconds = times.target_ms[0, steps.sizes[missed]] + times.first_ms[0, 0]
    return float(milliseconds.mean() / times.target_ms[0, 1])


def hopeless_loss(pause: Pause | None, ratio: float) -> float:
    """The share of plain decoding's speed that a text loses in which nothing is accepted.

    Args:
        ratio: the time of a step that drafts there, in plain steps.
    """
    tokens, drafting, pauses = 0, 0, 0
    while tokens < HOPELESS_TOKENS:
        tokens += 1
        drafting += 1
        if pause is not None and drafting >= pause.misses:
            tokens += pause.steps[min(pauses, len(pause.steps) - 1)]
            pauses += 1
    time = tokens + drafting * (ratio - 1)
    return max(1 - tokens / time, 0.0)
