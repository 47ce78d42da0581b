"""How often the target accepts the draft's 1st, 2nd, 3rd … guess, and what a tree makes of it.

Knows the acceptance rates, the rank traces and their file; two estimates of a tree's yield
follow from them, one that assumes independence and one by replay. Knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.files import Fields, FloatArray, read_document, rounded, write_document
from sequoia_opt.plan.tree import TokenTree

FORMAT, VERSION = "sequoia-opt/acceptance", 1
SLACK = 1e-6  # a published vector in single precision may sum to a little more than 1


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

    def __post_init__(self) -> None:
        self.rates = np.asarray(self.rates, dtype=np.float64)
        if self.by_depth is not None:
            self.by_depth = np.asarray(self.by_depth, dtype=np.float64)
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
        table = np.pad(self.table(max(1, tree.depth)), ((0, 0), (0, 1)))
        values = np.ones(tree.size)
        for node in range(1, tree.size):
            rank = min(tree.ranks[node], self.width + 1)
            values[node] = values[tree.parents[node]] * table[tree.depths[node] - 1, rank - 1]
        return values

    def expected_tokens(self, tree: TokenTree) -> float:
        """E(T) = Σ over nodes of the product of rates along the path (Sequoia, section 3.1)."""
        return float(self.node_values(tree).sum())

    def replay(self, tree: TokenTree) -> tuple[FloatArray, FloatArray]:
        """Tokens and steps [documents] of each document decoded with `tree`.

        Exact for greedy verification and exact in distribution for top-down verifiers, without
        the assumption that acceptances are independent: at a node take the next rank r of the
        trace; if the node has a child of rank r, move there; if not, or at a leaf, the step
        ends with that position's token. Only steps that the trace's end could not have cut
        short are counted: dropping just those that it did cut would drop the longest.
        """
        table = tree.child_table
        tokens, steps = np.zeros(len(self.traces)), np.zeros(len(self.traces))
        for place, trace in enumerate(self.traces):
            node = start = 0
            last_start = len(trace) - (tree.depth + 1)
            for position, rank in enumerate(trace):
                node = table.get((node, rank), 0)
                if node == 0:
                    if start > last_start:
                        break
                    steps[place] += 1
                    start = position + 1
                    tokens[place] = start
        return tokens, steps

    def replayed_tokens(self, tree: TokenTree) -> float | None:
        """Tokens per step by replay, or None without traces."""
        tokens, steps = self.replay(tree)
        return float(tokens.sum() / steps.sum()) if steps.sum() else None

    def replay_interval(
        self, tree: TokenTree, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float] | None:
        """95 % bootstrap interval of tokens per step by replay, documents resampled."""
        tokens, steps = self.replay(tree)
        if not steps.sum():
            return None
        picks = np.random.default_rng(seed).integers(len(tokens), size=(resamples, len(tokens)))
        total = np.maximum(steps[picks].sum(axis=1), 1)
        low, high = np.quantile(tokens[picks].sum(axis=1) / total, [0.025, 0.975])
        return float(low), float(high)

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
            *("temperature", "top_p", "verifier", "fit", *optional),
        }
        try:
            return cls(
                rates=rates,
                positions=fields.integer("positions", default=0),
                target=fields.text("target", "unknown"),
                draft=fields.text("draft", "unknown"),
                dataset=fields.text("dataset", "unknown"),
                temperature=fields.number("temperature", 0.0, default=0.0),
                top_p=fields.number("top_p", 0.0, 1.0, default=1.0),
                verifier=fields.text("verifier", "sequoia"),
                fit=fields.text("fit", "raw"),
                extra={key: value for key, value in document.items() if key not in known},
                **optional,
            )
        except SequoiaError as error:
            raise SequoiaError(f"{path}: {error}") from None


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
    sums: FloatArray, counts: Sequence[int], resamples: int = 1000, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """95 % intervals of the rates, whole documents resampled.

    Args:
        sums: [documents, W], each document's sum of acceptance over its positions.
        counts: each document's number of positions.

    Returns:
        low, high: [W].
    """
    weights = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), size=resamples
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
