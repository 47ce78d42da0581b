"""What other engines draft by their own rules, replayed over recorded drafts.

Engines that adapt have a rule of their own with a few numbers to set: a probability below which a
chain ends, or the levels, the width and the nodes of a tree that grows by the draft's products.
Their numbers are found by replay of their rule, not read off a tree that was solved for another.
The rules are those of llama.cpp (`--spec-draft-p-min`), transformers and OpenVINO GenAI
(`assistant_confidence_threshold`), and EAGLE-2's trees (arXiv 2406.16858), which SGLang and
TensorRT-LLM grow. Knows nothing of how the engines are told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sequoia_opt.files.documents import rounded
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.policy_replay import Counts, Steps, walk
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.text_paths import text_ranks
from sequoia_opt.plan.tree import IntArray
from sequoia_opt.plan.walk import left_behind
from sequoia_opt.types import FloatArray

THRESHOLDS = tuple(rounded(step / 10, 1) for step in range(10))  # 0, 0.1 … 0.9
FINER = 0.05  # that the best of these is moved by


@dataclass(frozen=True)
class ThresholdChain:
    """A chain that ends where the draft's most likely token is less likely than a threshold.

    Attributes:
        guesses: the most of a step.
        threshold: the least probability of a guess.
        keeps: whether the guess below the threshold is verified all the same, as transformers and
            OpenVINO GenAI do, and not dropped, as llama.cpp does.
    """

    guesses: int
    threshold: float
    keeps: bool

    def document(self) -> dict[str, Any]:
        """As a plan's file has it."""
        return {"guesses": self.guesses, "threshold": self.threshold}


@dataclass(frozen=True)
class BeamTree:
    """EAGLE-2's tree: the k likeliest nodes of each level have k children each, and the likeliest
    of all are verified, both by the product of the draft's probabilities.

    Its levels are replayed as they were recorded: slot j is the likeliest among the children of
    the first j nodes.

    Attributes:
        levels: draft passes of a step.
        width: k.
        nodes: of the target pass, the root included.
    """

    levels: int
    width: int
    nodes: int

    def document(self) -> dict[str, Any]:
        """As a plan's file has it."""
        return {"levels": self.levels, "width": self.width, "nodes": self.nodes}


class ChainReplay:
    """Recorded drafts, prepared for chains."""

    def __init__(self, recording: Recording) -> None:
        """Look up how likely the chain's guesses are, and how many of them are accepted."""
        levels = range(recording.levels)
        self._likely = np.stack([recording.level(level)[:, 0, 0] for level in levels], axis=1)
        self._is_of_head = recording.is_of_head
        ahead = np.stack(text_ranks(recording), axis=1) == 1
        self._run = ahead.cumprod(axis=1).sum(axis=1)

    def steps(self, chain: ThresholdChain) -> Steps:
        """The step from each recorded position."""
        below = self._likely[:, : chain.guesses] < chain.threshold
        before = np.where(below.any(axis=1), below.argmax(axis=1), chain.guesses)
        passes = np.minimum(before + 1, chain.guesses)
        kept = passes if chain.keeps else before
        accepted = np.minimum(self._run, kept)
        return Steps(
            accepted=accepted,
            sizes=kept + 1,
            widths=(np.arange(chain.guesses) < passes[:, None]).astype(np.uint8),
            leaves_behind=left_behind(accepted, passes, self._is_of_head),
        )


class BeamReplay:
    """Recorded drafts, prepared for trees of one width."""

    def __init__(self, recording: Recording, width: int) -> None:
        """Rank all guesses by their products.

        Args:
            width: at most the recorded slots and guesses.
        """
        self.recording, self.width = recording, width
        values, path = _beam_products(recording, width)
        self._reached = [level_path >= 0 for level_path in path]
        self._likelier = _likelier_by_level(values, path)

    def steps(self, tree: BeamTree) -> Steps:
        """The step from each recorded position."""
        accepted = np.zeros(len(self.recording.ranks), np.int64)
        expanded = np.zeros(len(accepted), np.int64)
        for level in range(tree.levels):
            likelier = self._likelier[level][: tree.levels].sum(axis=0)
            is_next = (accepted == level) & self._reached[level]
            expanded += self._reached[level]
            accepted += is_next & (likelier < tree.nodes - 1)
        widths = np.full((len(accepted), tree.levels), self.width, np.uint8)
        widths[:, 0] = 1
        levels = np.full(len(accepted), tree.levels)
        return Steps(
            accepted=accepted,
            sizes=np.full(len(accepted), tree.nodes),
            widths=widths,
            leaves_behind=left_behind(accepted, levels, self.recording.is_of_head),
        )


def solved_rules(
    fitting: Recording, held_out: Recording, times: PolicyTimes, weights: FloatArray,
    plain_ms: FloatArray,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The best numbers of each rule, with the speed-up predicted on other documents.

    Args:
        fitting: documents that the numbers are chosen on.
        held_out: documents that the speed-up is predicted on.
        weights: of these, [documents, replicates + 1].
        plain_ms: [replicates + 1], a step of plain decoding.

    Returns:
        By rule its numbers, the speed-up and its 95% interval: `dropping_chain`, `keeping_chain`,
        `endless_chain` (a keeping one whose guesses only the recording limits) and `beam_tree`;
        without those whose steps are longer than the documents.
    """
    chosen = {**_best_chains(fitting, times), "beam_tree": _best_tree(fitting, times)}
    solved: dict[str, dict[str, Any]] = {}
    for name, rule in chosen.items():
        if rule is None or not (counts := _counts(held_out, rule)).steps.any():
            continue
        tokens, step_ms = times.predict(counts, weights)
        speedup = tokens * plain_ms / step_ms
        low, high = interval(speedup)
        solved[name] = rule.document() | {
            "speedup": rounded(speedup[0], 4),
            "low": rounded(low, 4),
            "high": rounded(high, 4),
        }
    return solved


def _best_chains(recording: Recording, times: PolicyTimes) -> dict[str, ThresholdChain | None]:
    """The fastest chain of each rule: coarse thresholds at every length, then finer ones."""
    lengths = [n for n in range(1, recording.levels + 1) if _has_size(times, n + 1)]
    replay = ChainReplay(recording)

    def fastest(chains: list[ThresholdChain]) -> ThresholdChain | None:
        return max(
            chains,
            key=lambda chain: times.rate(walk(recording.starts, replay.steps(chain))),
            default=None,
        )

    best: dict[str, ThresholdChain | None] = {}
    for name, keeps, tried in (
        ("dropping_chain", False, lengths),
        ("keeping_chain", True, lengths),
        ("endless_chain", True, lengths[-1:]),
    ):
        coarse = fastest([ThresholdChain(n, t, keeps) for n in tried for t in THRESHOLDS])
        if coarse is not None:
            finer = [rounded(coarse.threshold + by, 2) for by in (0.0, -FINER, FINER)]
            coarse = fastest([replace(coarse, threshold=t) for t in finer if 0 <= t < 1])
        best[name] = coarse
    return best


def _best_tree(recording: Recording, times: PolicyTimes) -> BeamTree | None:
    """The fastest tree of levels, width and nodes; of width 2 or more, a chain being a rule."""
    best, best_rate = None, 0.0
    for width in range(2, min(recording.slots, recording.width_of_node) + 1):
        if not times.has_width(width):
            continue
        replay = BeamReplay(recording, width)
        for levels in range(2, recording.levels + 1):
            for nodes in times.measured_sizes:
                if levels < nodes <= 1 + width + (levels - 1) * width**2:
                    tree = BeamTree(levels, width, nodes)
                    rate = times.rate(walk(recording.starts, replay.steps(tree)))
                    if rate > best_rate:
                        best, best_rate = tree, rate
    return best


def _has_size(times: PolicyTimes, size: int) -> bool:
    return size < times.target_ms.shape[1] and bool(np.isfinite(times.target_ms[0, size]))


def _counts(recording: Recording, rule: ThresholdChain | BeamTree) -> Counts:
    """What decoding takes by a rule."""
    if isinstance(rule, ThresholdChain):
        return walk(recording.starts, ChainReplay(recording).steps(rule))
    return walk(recording.starts, BeamReplay(recording, rule.width).steps(rule))


def _beam_products(recording: Recording, width: int) -> tuple[list[FloatArray], list[IntArray]]:
    """The products of each level's guesses, and which of them the text is.

    Returns:
        By level: [positions, nodes · width]; [positions], -1 where the text has left the tree.
    """
    text, ranks = text_ranks(recording), recording.width_of_node
    products = np.ones((len(recording.ranks), 1))
    slot = np.zeros(len(products), np.int64)
    values, path = [], []
    for level in range(recording.levels):
        nodes = products.shape[1]
        rows = recording.level(level)[:, :nodes, :width] * products[:, :, None]
        values.append(rows.reshape(len(rows), -1))
        rank = text[level]
        follows = (slot >= 0) & (rank > 0) & (rank <= width)
        path.append(np.where(follows, slot * width + rank - 1, -1))
        if level + 1 == recording.levels:
            break
        origins = recording.origins[:, level, :width].astype(np.int64)
        node, below = np.divmod(origins, ranks)
        exists = (node < nodes) & (below < width)
        guesses = np.where(exists, node * width + below, 0)
        products = np.where(exists, np.take_along_axis(values[-1], guesses, axis=1), 0.0)
        is_path = exists & (guesses == path[-1][:, None])
        slot = np.where(is_path.any(axis=1), is_path.argmax(axis=1), -1)
    return values, path


def _likelier_by_level(values: list[FloatArray], path: list[IntArray]) -> list[IntArray]:
    """By level of the text: [levels, positions], how many of each level's guesses are likelier.

    Of equal products, those of earlier levels and of earlier guesses count as likelier.
    """
    counts = []
    for level, level_path in enumerate(path):
        own = np.take_along_axis(values[level], np.maximum(level_path, 0)[:, None], axis=1)
        rows = []
        for other, candidates in enumerate(values):
            likelier = candidates > own
            if other < level:
                likelier |= candidates == own
            elif other == level:
                earlier = np.arange(candidates.shape[1]) < level_path[:, None]
                likelier |= (candidates == own) & earlier
            rows.append(likelier.sum(axis=1))
        counts.append(np.stack(rows))
    return counts
