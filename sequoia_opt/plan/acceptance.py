"""How often the target accepts the draft's 1st, 2nd, 3rd … guess, and what a tree makes of it.

Knows the acceptance rates, the rank traces and their file; two estimates of a tree's yield
follow from them, one that assumes independence and one by replay. Knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document, rounded, write_document
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.intervals import deviation
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

FORMAT, VERSION = "sequoia-opt/acceptance", 1
SLACK = 1e-6  # a published vector in single precision may sum to a little more than 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature 0 is greedy, whatever the rest.

    Attributes:
        top_p: in (0, 1], mass of the most likely tokens that may be drawn.
        top_k: how many of the most likely tokens may be drawn; 0 for all.
        min_p: in [0, 1], a drawn token's least probability, as a share of the most likely one's.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    verifier: str = "sequoia"
    top_k: int = 0
    min_p: float = 0.0

    @property
    def cuts(self) -> str:
        """What is cut off the target's distribution besides top-p, in words, after a comma."""
        return f", top-k {self.top_k}" * (self.top_k > 0) + f", min-p {self.min_p:g}" * (
            self.min_p > 0
        )


@dataclass
class Acceptance:
    """Acceptance by rank, for one pair, dataset, verifier and temperature.

    Attributes:
        rates: p[1], p[2], … p[W]: probability that the rank-k child is the accepted one, given
            that verification reached its parent. They exclude one another: the sum is ≤ 1.
        low, high: 95 % intervals of the measured rates (documents resampled), or None.
        by_depth: p[d][k], depth 1 first, where acceptance was measured by depth, or None.
        traces: the rank trace of each document: token by token, the rank that a verification
            of full width accepted, 0 where it accepted none. Empty where none was recorded.
        positions: tokens sampled.
        fit: "isotonic" where `rates` is the monotone fit to what was measured, "raw" where it
            is the measurement itself.
        measured: the measurement, where `rates` is a fit to it.
        context: mean number of cached tokens while sampling, or None.
        extra: fields of the file that this program does not know; they are kept.
    """

    rates: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None
    by_depth: FloatArray | None = None
    traces: list[list[int]] = field(default_factory=list)
    positions: int = 0
    target: str = "unknown"
    draft: str = "unknown"
    dataset: str = "unknown"
    temperature: float = 0.0
    top_p: float = 1.0
    verifier: str = "sequoia"
    fit: str = "raw"
    measured: FloatArray | None = None
    context: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        self.rates = np.asarray(self.rates, dtype=np.float64)
        if self.by_depth is not None:
            self.by_depth = np.asarray(self.by_depth, dtype=np.float64)
        if not 0 <= self.temperature < np.inf:
            raise SequoiaError(f"temperature: found {self.temperature:g}, expected at least 0")
        if not 0 < self.top_p <= 1:
            raise SequoiaError(f"top_p: found {self.top_p:g}, expected above 0 and at most 1")
        if self.top_k < 0:
            raise SequoiaError(f"top_k: found {self.top_k}, expected at least 0")
        if not 0 <= self.min_p <= 1:
            raise SequoiaError(f"min_p: found {self.min_p:g}, expected 0 to 1")
        for name, table in (("acceptance", self.rates[None]), ("by_depth", self.by_depth)):
            if table is None:
                continue
            if table.size == 0 or not np.isfinite(table).all() or (table < 0).any():
                raise SequoiaError(f"{name}: rates must be finite and not negative")
            if (table.sum(axis=1) > 1 + SLACK).any():
                raise SequoiaError(
                    f"{name}: found rates that sum to {table.sum(axis=1).max():.6g}, expected at "
                    "most 1 (at most one child of a node is accepted)"
                )

    @property
    def sampling(self) -> Sampling:
        """How tokens were chosen."""
        return Sampling(self.temperature, self.top_p, self.verifier, self.top_k, self.min_p)

    @property
    def width(self) -> int:
        """Number of ranks, W."""
        return int((self.rates if self.by_depth is None else self.by_depth[0]).size)

    def table(self, depth: int) -> FloatArray:
        """p[d][k] as [depth, W]; depths past the last measured one repeat it."""
        rows = self.rates[None] if self.by_depth is None else self.by_depth
        return rows[np.minimum(np.arange(depth), len(rows) - 1)]

    def node_values(self, tree: TokenTree) -> FloatArray:
        """[size]: probability that verification reaches each node, assuming independence.

        Ranks past the last measured one count as never accepted.
        """
        return _path_products(_wider(self.table(max(1, tree.depth))[None]), tree)[:, 0]

    def expected_tokens(self, tree: TokenTree) -> float:
        """E(T) = Σ over nodes of the product of rates along the path (Sequoia, section 3.1)."""
        return float(self.node_values(tree).sum())

    @cached_property
    def _trace_table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The traces as one array [longest, documents], and their lengths."""
        lengths = np.array([len(trace) for trace in self.traces], dtype=np.int64)
        table = np.zeros((int(lengths.max(initial=0)), len(lengths)), dtype=np.int64)
        for place, trace in enumerate(self.traces):
            table[: len(trace), place] = trace
        return table, lengths

    def replay(self, trees: Sequence[TokenTree]) -> tuple[FloatArray, FloatArray]:
        """Tokens and steps, [trees, documents] each, of each document decoded with each tree.

        Exact for greedy verification and exact in distribution for top-down verifiers, without
        the assumption that acceptances are independent: at a node take the next rank r of the
        trace; if the node has a child of rank r, move there; if not, or at a leaf, the step
        ends with that position's token. Only steps that the trace's end could not have cut
        short are counted: dropping just those that it did cut would drop the longest.
        """
        traces, lengths = self._trace_table
        ranks = int(traces.max(initial=0)) + 1
        # children[start of a tree + ranks · node + rank]: the child, 0 where there is none.
        sizes = np.array([tree.size for tree in trees], dtype=np.int64)
        starts = np.cumsum(sizes * ranks) - sizes * ranks
        children = np.zeros(int((sizes * ranks).sum()), dtype=np.int64)
        for tree, start in zip(trees, starts, strict=True):
            shown = np.flatnonzero(np.array(tree.ranks) < ranks)[1:]
            parents, own = np.array(tree.parents)[shown], np.array(tree.ranks)[shown]
            children[start + ranks * parents + own] = shown

        last_starts = lengths - np.array([[tree.depth + 1] for tree in trees])
        shape = (len(trees), len(lengths))
        tokens, steps = np.zeros(shape), np.zeros(shape)
        node, began = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for position, ranks_here in enumerate(traces):
            node = children[starts[:, None] + ranks * node + ranks_here]
            ended = node == 0
            counted = ended & (began <= last_starts)
            steps += counted
            tokens[counted] = position + 1
            began[ended] = position + 1
        return tokens, steps

    def can_replay(self, tree: TokenTree) -> bool:
        """Whether some trace is long enough to show a whole step of the tree."""
        return bool((self._trace_table[1] > tree.depth).any())

    def replayed_tokens(self, tree: TokenTree) -> float | None:
        """Tokens per step by replay, or None without traces."""
        tokens, steps = self.replay([tree])
        return float(tokens.sum() / steps.sum()) if steps.sum() else None

    def replicates(self, trees: Sequence[TokenTree], count: int, seed: int = 0) -> FloatArray:
        """Tokens per step of each tree, [trees, count + 1]: the estimate, then resampled ones.

        With traces by replay, whole documents resampled; without them E(T), the rates resampled
        within their intervals, or repeated where they have none.
        """
        generator = np.random.default_rng([seed, 1])  # the timings have a stream of their own
        documents = len(self.traces)
        tokens, steps = self.replay(trees)
        weights = np.ones((documents, count + 1))
        if documents:
            drawn = generator.multinomial(documents, np.full(documents, 1 / documents), count)
            weights[:, 1:] = drawn.T
        counted = steps @ weights
        rows = (tokens @ weights) / np.maximum(counted, 1.0)
        # Of the documents drawn none may be long enough to show a whole step.
        rows = np.where(counted > 0, rows, rows[:, :1])
        unseen = [place for place, tree in enumerate(trees) if not self.can_replay(tree)]
        if unseen:
            tables = self._tables(max(trees[place].depth for place in unseen), count, generator)
            for place in unseen:
                rows[place] = _path_products(tables, trees[place]).sum(axis=0)
        return rows

    def _tables(self, depth: int, count: int, generator: np.random.Generator) -> FloatArray:
        """Rates resampled within their intervals, [count + 1, depth, W + 1], see `_wider`."""
        tables = np.repeat(self.table(max(1, depth))[None], count + 1, axis=0)
        if self.low is not None and self.high is not None and self.by_depth is None:
            errors = generator.standard_normal((count, 1, self.width))
            tables[1:] = np.maximum(tables[1:] + errors * deviation(self.low, self.high), 0.0)
            tables[1:] /= np.maximum(tables[1:].sum(axis=2, keepdims=True), 1.0)
        return _wider(tables)

    def document(self) -> dict[str, Any]:
        """The acceptance file as a mapping."""
        entries: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "target": self.target,
            "draft": self.draft,
            "dataset": self.dataset,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k or None,
            "min_p": self.min_p or None,
            "verifier": self.verifier,
            "positions": self.positions,
            "context": self.context,
            "fit": self.fit,
            "acceptance": rounded(self.rates),
        }
        for key, values in (
            ("measured", self.measured),
            ("low", self.low),
            ("high", self.high),
            ("by_depth", self.by_depth),
        ):
            if values is not None:
                entries[key] = rounded(values)
        entries |= self.extra
        if self.traces:
            entries["traces"] = self.traces
        return {key: value for key, value in entries.items() if value is not None}

    def save(self, path: str | Path) -> None:
        """Write the acceptance file, in one piece."""
        write_document(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> Acceptance:
        """Read an acceptance file.

        Raises:
            SequoiaError: missing, malformed, or with rates that cannot be.
        """
        document = read_document(path, FORMAT, VERSION)
        fields = Fields(document, str(path))
        rates = fields.numbers("acceptance", 0.0, 1.0)
        optional: dict[str, Any] = {}
        for key in ("low", "high", "measured"):
            if key in document:
                values = fields.numbers(key, 0.0, 1.0)
                if values.size != rates.size:
                    raise fields.fail(key, f"{rates.size} numbers, as many as `acceptance` has")
                optional[key] = values
        if "by_depth" in document:
            optional["by_depth"] = _matrix(fields, "by_depth")
        if "traces" in document:
            optional["traces"] = _traces(fields, max_rank=rates.size)
        if "context" in document:
            optional["context"] = fields.number("context", 0.0)
        known = {
            *("format", "version", "acceptance", "positions", "target", "draft", "dataset"),
            *("temperature", "top_p", "top_k", "min_p", "verifier", "fit", *optional),
        }
        facts: dict[str, Any] = {
            "positions": fields.integer("positions", default=0),
            "target": fields.text("target", "unknown"),
            "draft": fields.text("draft", "unknown"),
            "dataset": fields.text("dataset", "unknown"),
            "temperature": fields.number("temperature", 0.0, default=0.0),
            "top_p": fields.number("top_p", 0.0, 1.0, default=1.0),
            "top_k": fields.integer("top_k", default=0),
            "min_p": fields.number("min_p", 0.0, 1.0, default=0.0),
            "verifier": fields.text("verifier", "sequoia"),
            "fit": fields.text("fit", "raw"),
            "extra": {key: value for key, value in document.items() if key not in known},
        }
        try:
            return cls(rates=rates, **facts, **optional)
        except SequoiaError as error:
            raise SequoiaError(f"{path}: {error}") from None


def _wider(tables: FloatArray) -> FloatArray:
    """The tables [tables, depth, W] with a last rank, never accepted, for all past W."""
    return np.concatenate([tables, np.zeros_like(tables[:, :, :1])], axis=2)


def _path_products(tables: FloatArray, tree: TokenTree) -> FloatArray:
    """Products of rates along the path to each node, [size, tables].

    Args:
        tables: [tables, depth, W + 1], see `_wider`.
    """
    values = np.ones((tree.size, len(tables)))
    parents = np.array(tree.parents)
    places = np.minimum(tree.ranks, tables.shape[2]) - 1
    for depth, level in enumerate(tree.levels[1:]):
        values[level] = values[parents[level]] * tables[:, depth, places[level]].T
    return values


def fit_monotone(
    measured: FloatArray, low: FloatArray, high: FloatArray, positions: int
) -> tuple[FloatArray, str]:
    """Rates to plan with: the isotonic fit, unless the sample contradicts it.

    A measured vector is noisy, and a monotone one can be solved best-first; yet true rates need
    not fall with the rank. The fit weighs each rank by the inverse of its sampling variance and
    is taken if no rank contradicts it: if it stays within intervals that hold for all W ranks
    together 95 times of 100 (Bonferroni's bound, the given ones widened as normal ones), where a
    rank that was never accepted has an upper end of 3 / positions, not 0.

    Args:
        measured, low, high: the rates and their intervals, [W].
        positions: how many positions were sampled.

    Returns:
        The rates and "isotonic", or `measured` and "raw".
    """
    if (np.diff(measured) <= 0).all():
        return measured, "raw"
    from scipy.optimize import isotonic_regression

    smoothed = (measured * positions + 0.5) / (positions + 1)
    weights = positions / (smoothed * (1 - smoothed))
    fitted = isotonic_regression(measured, weights=weights, increasing=False).x
    reach = NormalDist().inv_cdf(1 - 0.025 / len(measured)) / NormalDist().inv_cdf(0.975)
    least = measured - reach * (measured - low)
    most = np.maximum(measured + reach * (high - measured), 3 / positions)
    if ((fitted < least) | (fitted > most)).any():
        return measured, "raw"
    return np.asarray(fitted), "isotonic"


def bootstrap_rates(
    sums: FloatArray, counts: ArrayLike, resamples: int = 1000, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """95 % intervals of the rates, whole documents resampled.

    Args:
        sums: [documents, W], each document's sum of acceptance over its positions.
        counts: each document's number of positions.

    Returns:
        low, high: [W].
    """
    weights = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=resamples
    )
    totals = np.maximum(weights @ np.asarray(counts, dtype=np.float64), 1)
    low, high = np.quantile((weights @ sums) / totals[:, None], [0.025, 0.975], axis=0)
    return low, high


def _matrix(fields: Fields, key: str) -> FloatArray:
    rows = fields.mapping[key]
    if not isinstance(rows, list) or not rows:
        raise fields.fail(key, "a list of lists of numbers, depth 1 first")
    parsed = [
        Fields({f"{key}[{i}]": row}, fields.where).numbers(f"{key}[{i}]", 0.0, 1.0)
        for i, row in enumerate(rows)
    ]
    if len({row.size for row in parsed}) != 1:
        raise SequoiaError(f"{fields.where}: {key}: its rows differ in length")
    return np.stack(parsed)


def _traces(fields: Fields, max_rank: int) -> list[list[int]]:
    traces = fields.mapping["traces"]
    if not isinstance(traces, list):
        raise fields.fail("traces", "a list of lists of ranks")
    for i, trace in enumerate(traces):
        ranks = Fields({f"traces[{i}]": trace}, fields.where).integers(f"traces[{i}]")
        if ranks and max(ranks) > max_rank:
            raise SequoiaError(
                f"{fields.where}: traces[{i}]: found rank {max(ranks)}, expected at most {max_rank}"
            )
    return traces
