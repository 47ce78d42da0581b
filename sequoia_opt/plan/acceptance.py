"""Acceptance rates by rank and rank traces: their file, and the tokens per step they predict.

Predicts a tree's tokens per step in two ways: from the rates, with acceptances taken as
independent, and by replay of the traces. Knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document, rounded, write_document
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.acceptance_fields import matrix, traces, traces_by_depth
from sequoia_opt.plan.confidence_fit import FittedConfidence
from sequoia_opt.plan.intervals import deviation, document_weights
from sequoia_opt.plan.recording import Recording, recording_path
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER
from sequoia_opt.types import FloatArray

FORMAT, VERSION = "sequoia-opt/acceptance", 1
SUM_TOLERANCE = 1e-6  # a published vector in single precision may sum to a little more than 1


@dataclass
class Acceptance:
    """Acceptance by rank, for one pair, dataset, verifier and sampling.

    Attributes:
        rates: p[1], p[2], … p[W]: probability that the rank-k child is the accepted one, given
            that verification reached its parent. They exclude one another: the sum is at most 1.
        low, high: 95% intervals of the measured rates (documents resampled), [W], or None.
        by_depth: p[d][k], [depths, W], depth 1 first, if acceptance was measured by depth.
        traces: the rank trace of each document: for each token, the rank that a verification of
            full width accepted, 0 if it accepted none. Empty if no traces were recorded.
        traces_by_depth: of a draft whose guesses depend on where a step began, such as a head that
            reads its own outputs behind the root: for each document and each depth d from 0, the
            rank of the token d behind each position in a step that begins at the position; 0 for
            none, and past the end. Else empty.
        positions: number of tokens sampled.
        fit: "isotonic" if `rates` is the monotone fit to the measurement, "raw" if it is the
            measurement itself.
        measured: the measurement, if `rates` is a fit to it.
        context: mean context length while sampling, or None.
        extra: fields of the file that this program does not know; saving keeps them.
        confidence: the calibration of the draft's probabilities, if drafts were recorded.
        recording: what the draft said along the traces, if it was recorded just now; it is saved
            beside the file, which names it. See `recorded` to read it.

    Raises:
        SequoiaError: sampling settings out of range, or rates that are not probabilities of
            outcomes that exclude one another.
    """

    rates: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None
    by_depth: FloatArray | None = None
    traces: list[list[int]] = field(default_factory=list)
    traces_by_depth: list[list[list[int]]] = field(default_factory=list)
    positions: int = 0
    target: str = "unknown"
    draft: str = "unknown"
    dataset: str = "unknown"
    temperature: float = 0.0
    top_p: float = 1.0
    verifier: str = DEFAULT_VERIFIER
    fit: str = "raw"
    measured: FloatArray | None = None
    context: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    top_k: int = 0
    min_p: float = 0.0
    confidence: FittedConfidence | None = None
    recording: Recording | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.rates = np.asarray(self.rates, dtype=np.float64)
        if self.by_depth is not None:
            self.by_depth = np.asarray(self.by_depth, dtype=np.float64)
        _ = self.sampling  # checks the settings
        for name, table in (("acceptance", self.rates[None]), ("by_depth", self.by_depth)):
            if table is None:
                continue
            if table.size == 0 or not np.isfinite(table).all() or (table < 0).any():
                raise SequoiaError(f"{name}: rates must be finite and not negative")
            if (table.sum(axis=1) > 1 + SUM_TOLERANCE).any():
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
        """p[d][k] for `depth` depths, [depth, W]; depths past the last measured one repeat it."""
        rows = self.rates[None] if self.by_depth is None else self.by_depth
        return rows[np.minimum(np.arange(depth), len(rows) - 1)]

    def node_values(self, tree: TokenTree) -> FloatArray:
        """Probability that verification reaches each node, assuming independence, [size].

        Ranks past the last measured one count as never accepted.
        """
        return _path_products(_with_rank_past_the_last(self.table(max(1, tree.depth))[None]), tree)[
            :, 0
        ]

    def expected_tokens(self, tree: TokenTree) -> float:
        """E(T) = Σ over nodes of the product of rates along the path (Sequoia, section 3.1)."""
        return float(self.node_values(tree).sum())

    def leaf_share(self, tree: TokenTree) -> float:
        """Probability that a step's accepted path ends at a leaf other than the root.

        Acceptances are taken as independent.
        """
        return float(self.node_values(tree)[1:][tree.child_counts[1:] == 0].sum())

    @cached_property
    def _trace_table(self) -> tuple[IntArray, IntArray]:
        """The traces as one array [longest, documents], and their lengths."""
        lengths = np.array([len(trace) for trace in self.traces], dtype=np.int64)
        table = np.zeros((int(lengths.max(initial=0)), len(lengths)), dtype=np.int64)
        for column, trace in enumerate(self.traces):
            table[: len(trace), column] = trace
        return table, lengths

    @cached_property
    def _table_by_depth(self) -> IntArray:
        """The traces by depth as one array [depths, longest, documents]; of others, no depths."""
        depths = min((len(rows) for rows in self.traces_by_depth), default=0)
        table = np.zeros((depths, *self._trace_table[0].shape), dtype=np.int64)
        for column, rows in enumerate(self.traces_by_depth):
            for depth in range(depths):
                table[depth, : len(rows[depth]), column] = rows[depth]
        return table

    def _ranks_at(self, position: int, step_start: IntArray) -> IntArray:
        """The trace's ranks at a position, in steps that began at `step_start`; same shape.

        Where they are known by depth, nothing is accepted behind the last depth.
        """
        by_depth = self._table_by_depth
        if not len(by_depth):
            return np.broadcast_to(self._trace_table[0][position], step_start.shape)
        depth = position - step_start
        known = by_depth[
            np.minimum(depth, len(by_depth) - 1), step_start, np.arange(step_start.shape[1])
        ]
        return np.where(depth < len(by_depth), known, 0)

    def of_documents(self, numbers: Sequence[int]) -> Acceptance:
        """The same rates with the traces of some of the documents."""
        return replace(
            self,
            traces=[self.traces[number] for number in numbers],
            traces_by_depth=[self.traces_by_depth[n] for n in numbers if self.traces_by_depth],
        )

    def replay(self, trees: Sequence[TokenTree]) -> tuple[FloatArray, FloatArray]:
        """Replay the rank traces: decode each document with each tree.

        Exact for greedy verification and exact in distribution for top-down verifiers, without
        the assumption that acceptances are independent. At a node, take the next rank of the
        trace, of the node's own depth if there are traces by depth: if the node has a child of
        that rank, move there; otherwise the step ends with the token at that position. A step
        counts only if the longest possible step would still have fit into the trace: dropping
        only steps that the trace's end did cut short would drop the longest ones.

        Returns:
            tokens, steps: [trees, documents].
        """
        traces, lengths = self._trace_table
        ranks = int(max(traces.max(initial=0), self._table_by_depth.max(initial=0))) + 1
        # children[offset of a tree + ranks · node + rank]: the child, 0 if it does not exist.
        sizes = np.array([tree.size for tree in trees], dtype=np.int64)
        offsets = np.cumsum(sizes * ranks) - sizes * ranks
        children = np.zeros(int((sizes * ranks).sum()), dtype=np.int64)
        for tree, offset in zip(trees, offsets, strict=True):
            nodes = np.flatnonzero(np.array(tree.ranks) < ranks)[1:]
            node_parents, node_ranks = np.array(tree.parents)[nodes], np.array(tree.ranks)[nodes]
            children[offset + ranks * node_parents + node_ranks] = nodes

        last_starts = lengths - np.array([[tree.depth + 1] for tree in trees])
        shape = (len(trees), len(lengths))
        tokens, steps = np.zeros(shape), np.zeros(shape)
        node, step_start = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for position in range(len(traces)):
            taken = self._ranks_at(position, step_start)
            node = children[offsets[:, None] + ranks * node + taken]
            ended = node == 0
            counted = ended & (step_start <= last_starts)
            steps += counted
            tokens[counted] = position + 1
            step_start[ended] = position + 1
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

        With traces: by replay, with whole documents resampled. Without them: E(T), with the rates
        resampled within their intervals, or repeated if they have no intervals.
        """
        generator = np.random.default_rng([seed, 1])  # apart from the stream of the timings
        tokens, steps = self.replay(trees)
        weights = document_weights(generator, len(self.traces), count)
        counted = steps @ weights
        rows = (tokens @ weights) / np.maximum(counted, 1.0)
        # A resample may have no document that is long enough to show a whole step.
        rows = np.where(counted > 0, rows, rows[:, :1])
        not_replayed = [row for row, tree in enumerate(trees) if not self.can_replay(tree)]
        if not_replayed:
            depth = max(trees[row].depth for row in not_replayed)
            tables = self._resampled_tables(depth, count, generator)
            for row in not_replayed:
                rows[row] = _path_products(tables, trees[row]).sum(axis=0)
        return rows

    def _resampled_tables(
        self, depth: int, count: int, generator: np.random.Generator
    ) -> FloatArray:
        """The rates, then rates resampled within their intervals, [count + 1, depth, W + 1].

        The last rank is that of `_with_rank_past_the_last`.
        """
        tables = np.repeat(self.table(max(1, depth))[None], count + 1, axis=0)
        if self.low is not None and self.high is not None and self.by_depth is None:
            errors = generator.standard_normal((count, 1, self.width))
            tables[1:] = np.maximum(tables[1:] + errors * deviation(self.low, self.high), 0.0)
            tables[1:] /= np.maximum(tables[1:].sum(axis=2, keepdims=True), 1.0)
        return _with_rank_past_the_last(tables)

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
        if self.confidence is not None:
            entries["confidence"] = self.confidence.document()
        if self.traces:
            entries["traces"] = self.traces
        if self.traces_by_depth:
            entries["traces_by_depth"] = self.traces_by_depth
        return {key: value for key, value in entries.items() if value is not None}

    def save(self, path: str | Path) -> None:
        """Write the acceptance file atomically, and before it the recording.

        Whoever reads both compares fingerprints, so an older acceptance file never goes with a
        newer recording.
        """
        if self.recording is not None:
            file = recording_path(path)
            self.recording.save(file)
            if self.confidence is not None:
                self.confidence = replace(self.confidence, recording=file.name)
        write_document(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> Acceptance:
        """Read an acceptance file.

        Raises:
            SequoiaError: the file is missing or malformed, or its rates are not probabilities.
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
            optional["by_depth"] = matrix(fields, "by_depth")
        if "traces" in document:
            optional["traces"] = traces(fields, max_rank=rates.size)
        if "traces_by_depth" in document:
            lengths = [len(trace) for trace in optional.get("traces", [])]
            optional["traces_by_depth"] = traces_by_depth(fields, rates.size, lengths)
        if "context" in document:
            optional["context"] = fields.number("context", 0.0)
        if "confidence" in document:
            optional["confidence"] = FittedConfidence.from_fields(fields.section("confidence"))
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
            "verifier": fields.text("verifier", DEFAULT_VERIFIER),
            "fit": fields.text("fit", "raw"),
            "extra": {key: value for key, value in document.items() if key not in known},
        }
        try:
            return cls(rates=rates, **facts, **optional)
        except SequoiaError as error:
            raise SequoiaError(f"{path}: {error}") from None


def _with_rank_past_the_last(tables: FloatArray) -> FloatArray:
    """The tables [tables, depth, W] with one more rank, never accepted, for all ranks past W."""
    return np.concatenate([tables, np.zeros_like(tables[:, :, :1])], axis=2)


def _path_products(tables: FloatArray, tree: TokenTree) -> FloatArray:
    """Products of rates along the path to each node, [size, tables].

    Args:
        tables: [tables, depth, W + 1], see `_with_rank_past_the_last`.
    """
    values = np.ones((tree.size, len(tables)))
    parents = np.array(tree.parents)
    columns = np.minimum(tree.ranks, tables.shape[2]) - 1
    for depth, level in enumerate(tree.levels[1:]):
        values[level] = values[parents[level]] * tables[:, depth, columns[level]].T
    return values
