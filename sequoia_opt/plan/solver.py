"""The solver: acceptance rates and latencies in, the tree that decodes fastest out.

First the most tokens for every size and depth, E*(n, D), exactly: best-first where the rates
fall with the rank, the dynamic programme of the Sequoia paper (section 3.1) where they do not.
Then the fastest of these trees on the measured machine, its finalists re-scored by replaying
them on the rank traces.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.files import FloatArray, rounded
from sequoia_opt.plan.latency import GREEDY, TOP_P, LatencyProfile
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

DEFAULT_MAX_DEPTH = 16
DEFAULT_CONTEXT = 512
FINALISTS = 64
SHOWN_RUNNERS_UP = 4
BASELINE_SEQUENCES = range(2, 9)  # how many sequences the k-sequence baseline may have


class Family:
    """The best tree E*(n, D) for every size n ≤ `max_size` and depth D ≤ `max_depth`.

    Attributes:
        expected: [max_depth + 1, max_size + 1]: E*(n, D), NaN where no tree of n nodes has
            depth ≤ D (also at n = 0).
    """

    expected: FloatArray

    def tree(self, size: int, depth: int) -> TokenTree:
        """The best tree of `size` nodes and depth at most `depth`."""
        raise NotImplementedError


class BestFirst(Family):
    """E*(n, D) for rates that do not increase with the rank.

    There a node's value, the product of rates along its path, never exceeds its parent's or
    its elder sibling's, so the n nodes of largest value among depth ≤ D are a tree, and no
    other tree has a larger sum. O(n log n) for each depth limit, all sizes at once.
    """

    def __init__(self, table: FloatArray, max_size: int) -> None:
        """Solve for the rates `table` [max_depth, W], depth 1 first."""
        max_depth = len(table)
        self.expected = np.full((max_depth + 1, max_size + 1), np.nan)
        self.expected[0, 1] = 1.0
        self._orders: list[tuple[list[int], list[int]]] = [([-1], [0])]
        for limit in range(1, max_depth + 1):
            parents, ranks, values = best_first(table[:limit], max_size)
            self.expected[limit, 1 : len(values) + 1] = np.cumsum(values)
            self._orders.append((parents, ranks))

    def tree(self, size: int, depth: int) -> TokenTree:
        """The first `size` nodes of the order for `depth`."""
        parents, ranks = self._orders[depth]
        return TokenTree.from_any_order(parents[:size], ranks[:size])


def best_first(table: FloatArray, max_size: int) -> tuple[list[int], list[int], list[float]]:
    """Nodes by falling value: parents, ranks and values of at most `max_size`, the root first.

    Ties go to the node found first, so parents and elder siblings precede.
    """
    max_depth, width = table.shape
    rates = table.tolist()
    parents, ranks, values = [-1], [0], [1.0]
    depths = [0]
    serial = 0
    heap = [(-rates[0][0], serial, 0, 1)]
    while heap and len(parents) < max_size:
        negative, _, parent, rank = heapq.heappop(heap)
        node, depth = len(parents), depths[parent] + 1
        parents.append(parent)
        ranks.append(rank)
        values.append(-negative)
        depths.append(depth)
        if rank < width:
            serial += 1
            value = values[parent] * rates[depth - 1][rank]
            heapq.heappush(heap, (-value, serial, parent, rank + 1))
        if depth < max_depth:
            serial += 1
            heapq.heappush(heap, (negative * rates[depth][0], serial, node, 1))
    return parents, ranks, values


class DynamicProgramme(Family):
    """E*(n, D) for any rates, also ones that rise with the rank.

    With F(m, d) the most tokens of a tree of m nodes whose root may have d more levels below
    it, and G(m, d, k) that of m nodes shared among its children from rank k on:

        F(m, d)    = 1 + G(m - 1, d, 1)
        G(m, d, k) = max over j ≥ 1 of p[k] F(j, d - 1) + G(m - j, d, k + 1),  G(0, d, k) = 0

    With rates by depth the levels differ, and each depth limit is a programme of its own.
    """

    def __init__(self, table: FloatArray, max_size: int) -> None:
        """Solve for the rates `table` [max_depth, W], depth 1 first."""
        max_depth = len(table)
        self._size = max_size
        self.expected = np.full((max_depth + 1, max_size + 1), np.nan)
        self.expected[0, 1] = 1.0
        # One level's F and choices for each number of levels below it; where rates do not
        # depend on depth all limits share one programme.
        self._programmes: list[list[NDArray[np.int32]]] = []
        uniform = bool((table == table[0]).all())
        if uniform:
            best, choices = self._levels(table[::-1])
            for limit in range(1, max_depth + 1):
                self._programmes.append(choices[:limit])
                self.expected[limit] = best[limit]
        else:
            for limit in range(1, max_depth + 1):
                best, choices = self._levels(table[:limit][::-1])
                self._programmes.append(choices)
                self.expected[limit] = best[limit]
        self.expected[~np.isfinite(self.expected)] = np.nan

    def _levels(self, rows: FloatArray) -> tuple[list[FloatArray], list[NDArray[np.int32]]]:
        """F for 0, 1, … levels below a node, and what each G chose; `rows` deepest first."""
        size = self._size
        best = np.full(size + 1, -np.inf)
        best[1] = 1.0
        found, choices = [best], []
        # shifted[m, j] indexes G(m - j): one array of all ways to give j nodes to a child.
        m, j = np.ogrid[: size + 1, 1 : size + 1]
        rest_index = np.where(m >= j, m - j, size + 1)
        for rates in rows:
            share = np.full(size + 2, -np.inf)  # G of the rank after; [size + 1] is "cannot"
            share[0] = 0.0
            choice = np.zeros((len(rates), size + 1), dtype=np.int32)
            exists = np.isfinite(best[1:])
            for rank in range(len(rates) - 1, -1, -1):
                gain = np.multiply(best[1:], rates[rank], where=exists, out=best[1:].copy())
                totals = share[rest_index] + gain
                choice[rank] = totals.argmax(axis=1) + 1
                share[: size + 1] = np.take_along_axis(
                    totals, choice[rank][:, None].astype(np.int64) - 1, axis=1
                )[:, 0]
                share[0] = 0.0
            best = np.full(size + 1, -np.inf)
            best[1:] = 1.0 + share[:size]
            found.append(best)
            choices.append(choice)
        return found, choices

    def tree(self, size: int, depth: int) -> TokenTree:
        """Walk the choices from the root down."""
        choices = self._programmes[depth - 1] if depth else []
        parents, ranks = [-1], [0]
        waiting = [(0, size, depth)]
        while waiting:
            node, nodes, below = waiting.pop()
            left, rank = nodes - 1, 0
            while left:
                given = int(choices[below - 1][rank][left])
                rank += 1
                parents.append(node)
                ranks.append(rank)
                waiting.append((len(parents) - 1, given, below - 1))
                left -= given
        return TokenTree.from_any_order(parents, ranks)


def best_trees(acceptance: Acceptance, max_size: int, max_depth: int) -> Family:
    """E*(n, D) for every size and depth: best-first where it is exact, else the programme."""
    table = acceptance.table(max_depth)
    if (np.diff(table, axis=1) <= 0).all():
        return BestFirst(table, max_size)
    return DynamicProgramme(table, max_size)


@dataclass(frozen=True)
class Candidate:
    """A tree and what is predicted of it.

    Attributes:
        name: how it is called in tables.
        expected_tokens: E(T), independence assumed.
        replayed_tokens: tokens per step by replay, None without traces.
        step_ms: a step's time.
        tokens_per_second, speedup: by replay where there are traces, else by E(T).
    """

    name: str
    tree: TokenTree
    expected_tokens: float
    replayed_tokens: float | None
    step_ms: float
    tokens_per_second: float
    speedup: float

    @property
    def tokens(self) -> float:
        """The better founded of the two yields."""
        return self.expected_tokens if self.replayed_tokens is None else self.replayed_tokens


@dataclass(frozen=True)
class Plan:
    """What the solver found.

    Attributes:
        choice: the tree that decodes fastest.
        speedup_low, speedup_high: 95 % interval of its predicted speed-up.
        runners_up: the next best of other sizes.
        baselines: plain decoding, the best chain, the best k sequences.
        expected: E*(n, D) as [depth + 1, size + 1], NaN where there is no such tree.
        speed: predicted tokens per second of each of these trees, likewise.
        method: "best-first" or "dynamic programme".
        context: cached tokens that the prediction is for.
    """

    choice: Candidate
    speedup_low: float
    speedup_high: float
    runners_up: list[Candidate]
    baselines: list[Candidate]
    expected: FloatArray
    speed: FloatArray
    method: str
    context: float
    verifier: str
    profile: LatencyProfile
    acceptance: Acceptance

    @property
    def tree(self) -> TokenTree:
        """The chosen tree, with everything its file says."""
        choice, acceptance, profile = self.choice, self.acceptance, self.profile
        metadata: dict[str, Any] = {
            "expected_tokens": rounded(choice.expected_tokens),
            "replayed_tokens": (
                None if choice.replayed_tokens is None else rounded(choice.replayed_tokens)
            ),
            "predicted": {
                "step_ms": rounded(choice.step_ms),
                "tokens_per_second": rounded(choice.tokens_per_second),
                "speedup": rounded(choice.speedup),
                "speedup_low": rounded(self.speedup_low),
                "speedup_high": rounded(self.speedup_high),
            },
            "target": profile.target.model,
            "draft": profile.draft.model,
            "dataset": acceptance.dataset,
            "temperature": acceptance.temperature,
            "top_p": acceptance.top_p,
            "verifier": self.verifier,
            "context": rounded(self.context),
            "batch": 1,
            "hardware": profile.hardware,
            "engine": profile.engine,
        }
        return TokenTree(
            choice.tree.parents,
            choice.tree.ranks,
            {key: value for key, value in metadata.items() if value is not None},
        )


def solve(
    profile: LatencyProfile,
    acceptance: Acceptance,
    *,
    max_size: int | None = None,
    max_depth: int | None = None,
    size: int | None = None,
    depth: int | None = None,
    context: float | None = None,
) -> Plan:
    """The tree that maximises predicted tokens per second, speed(T) = E(T) / t(T, L).

    Args:
        profile: measured latencies of the pair.
        acceptance: measured acceptance of the pair.
        max_size: largest tree to consider; by default the largest size that was measured.
        max_depth: deepest tree to consider.
        size: fix the number of nodes instead of choosing it.
        depth: fix the depth limit instead of choosing it: E*(n, depth) is the tree.
        context: cached tokens; by default those of the acceptance measurement, else 512,
            within the measured range.

    Raises:
        SequoiaError: the profile has no point for what was asked.
    """
    for name, value in (
        ("max_size", max_size), ("size", size), ("max_depth", max_depth), ("depth", depth)
    ):  # fmt: skip
        least = 1 if name.endswith("size") else 0
        if value is not None and value < least:
            raise SequoiaError(f"{name}: found {value}, expected at least {least}")
    verifier = GREEDY if acceptance.temperature == 0 else acceptance.verifier
    work = verifier + (TOP_P if verifier != GREEDY and acceptance.top_p < 1 else "")
    context = _default_context(profile, acceptance) if context is None else context
    largest = profile.target.largest()
    if size is not None or max_size is not None:
        wanted = max(value for value in (size, max_size) if value is not None)
        if wanted > largest:
            raise SequoiaError(
                f"the profile of {profile.target.model} has no point past {largest} tokens, "
                f"{wanted} asked for; profile with more --tokens"
            )
    max_size = size or max_size or largest
    deepest = DEFAULT_MAX_DEPTH if max_depth is None else max_depth
    max_depth = min(deepest, max_size - 1) if depth is None else depth

    family = best_trees(acceptance, max_size, max(1, max_depth))
    pricing = _Pricing(profile, acceptance, work, context)
    trees = _surface_trees(family, max_size, max_depth, size, depth)
    speed = np.full_like(family.expected, np.nan)
    for (d, n), tree in trees.items():
        speed[d, n] = family.expected[d, n] / pricing.step_ms(tree) * 1000
    if np.isnan(speed).all():
        raise SequoiaError(
            f"no tree of {size} nodes is at most {max_depth} deep with at most "
            f"{acceptance.width} children a node"
        )

    ranking = _rank(trees, speed, pricing)
    choice = ranking[0]
    low, high = pricing.interval(choice)
    return Plan(
        choice=choice,
        speedup_low=low,
        speedup_high=high,
        runners_up=(_other_sizes(ranking) or ranking[1:])[:SHOWN_RUNNERS_UP],
        baselines=_baselines(pricing, min(largest, max_size), max_depth),
        expected=family.expected,
        speed=speed,
        method="best-first" if isinstance(family, BestFirst) else "dynamic programme",
        context=context,
        verifier=verifier,
        profile=profile,
        acceptance=acceptance,
    )


def _default_context(profile: LatencyProfile, acceptance: Acceptance) -> float:
    low, high = profile.contexts()
    wanted = DEFAULT_CONTEXT if acceptance.context is None else acceptance.context
    return float(min(max(wanted, low), high))


def _surface_trees(
    family: Family, max_size: int, max_depth: int, size: int | None, depth: int | None
) -> dict[tuple[int, int], TokenTree]:
    """(D, n) -> E*(n, D)'s tree, once for each distinct one: the shallowest limit that has it."""
    found: dict[tuple[int, int], TokenTree] = {}
    for n in [size] if size else range(1, max_size + 1):
        best = -np.inf
        for d in [depth] if depth is not None else range(max_depth + 1):
            value = family.expected[d, n]
            if np.isnan(value) or value <= best + 1e-12:
                continue
            best = value
            found[d, n] = family.tree(n, d)
    return found


class _Pricing:
    """Predictions for one pair, verifier and context; forwards are interpolated only once."""

    def __init__(
        self, profile: LatencyProfile, acceptance: Acceptance, verifier: str, context: float
    ) -> None:
        self.profile, self.acceptance = profile, acceptance
        self.verifier, self.context = verifier, context
        self.overhead = profile.overhead_for(verifier)
        self._target = self._curve("target", "median_ms")
        self._draft = self._curve("draft", "median_ms")
        self.plain_ms = self.step_ms(AUTOREGRESSIVE)

    def _curve(self, model: str, of: str) -> FloatArray:
        latency = getattr(self.profile, model)
        sizes = np.arange(1, latency.largest() + 1)
        return np.concatenate(([0.0], latency.at(sizes, self.context, of=of)))

    def step_ms(self, tree: TokenTree) -> float:
        """t(T, L), milliseconds."""
        widths = list(tree.draft_widths)
        if max(widths, default=0) >= len(self._draft):
            return self.profile.step_ms(tree, self.verifier, self.context)  # says what is missing
        forwards = self._target[tree.size] + self._draft[widths].sum()
        return float(forwards + self.overhead.at(tree.size, len(widths)))

    def candidate(self, name: str, tree: TokenTree) -> Candidate:
        """Everything predicted of a tree."""
        step = self.step_ms(tree)
        expected = self.acceptance.expected_tokens(tree)
        replayed = self.acceptance.replayed_tokens(tree)
        tokens = expected if replayed is None else replayed
        return Candidate(
            name=name,
            tree=tree,
            expected_tokens=expected,
            replayed_tokens=replayed,
            step_ms=step,
            tokens_per_second=1000 * tokens / step,
            speedup=tokens * self.plain_ms / step,
        )

    def interval(self, candidate: Candidate) -> tuple[float, float]:
        """95 % interval of the speed-up: documents resampled, and the timings' own intervals.

        The timings of both steps were measured in turn on one machine, so their errors are
        taken as independent; relative errors add in quadrature with the tokens'.
        """
        if candidate.tree.size == 1:
            return 1.0, 1.0
        tokens = self.acceptance.replay_interval(candidate.tree)
        low, high = (candidate.tokens, candidate.tokens) if tokens is None else tokens
        down, up = 1 - low / candidate.tokens, high / candidate.tokens - 1
        for tree in (candidate.tree, AUTOREGRESSIVE):
            middle, fast, slow = (
                self.profile.step_ms(tree, self.verifier, self.context, of=of)
                for of in ("median_ms", "low_ms", "high_ms")
            )
            down = float(np.hypot(down, slow / middle - 1))
            up = float(np.hypot(up, 1 - fast / middle))
        return candidate.speedup * (1 - min(down, 1.0)), candidate.speedup * (1 + up)


def _rank(
    trees: dict[tuple[int, int], TokenTree], speed: FloatArray, pricing: _Pricing
) -> list[Candidate]:
    """The fastest trees, replay deciding among the finalists; ties to the smaller."""
    order = sorted(trees, key=lambda place: (-speed[place], place[1], place[0]))
    # Replay may favour other depths than independence does: the fastest of each takes part.
    by_depth = {depth: (depth, size) for depth, size in reversed(order)}
    chosen = dict.fromkeys([*order[:FINALISTS], *by_depth.values()])
    finalists = [pricing.candidate("solved", trees[place]) for place in chosen]
    return sorted(finalists, key=lambda c: (-round(c.tokens_per_second, 9), c.tree.size))


def _other_sizes(ranking: list[Candidate]) -> list[Candidate]:
    """The best candidate of each size but the chosen one's."""
    seen = {ranking[0].tree.size}
    others = []
    for candidate in ranking[1:]:
        if candidate.tree.size not in seen:
            seen.add(candidate.tree.size)
            others.append(candidate)
    return others


def _baselines(pricing: _Pricing, max_size: int, max_depth: int) -> list[Candidate]:
    """Plain decoding and the fastest of each shape that other tools use."""
    found = [pricing.candidate("plain", AUTOREGRESSIVE)]
    lengths = range(1, max(1, max_depth) + 1)
    families = {
        "chain": [shapes.chain(1 + length) for length in lengths if 1 + length <= max_size],
        "k sequences": [
            shapes.k_sequences(k, length)
            for k in BASELINE_SEQUENCES
            for length in lengths
            if 1 + k * length <= max_size
        ],
    }
    for name, trees in families.items():
        candidates = [pricing.candidate(name, tree) for tree in trees]
        if candidates:
            found.append(max(candidates, key=lambda c: c.tokens_per_second))
    return found
