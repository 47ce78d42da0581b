"""Replays a policy over recorded drafts: the same tokens, steps and passes as decoding would have.

First every position's step at once, as if it were the root, by the same arithmetic and the same
rules for ties as `policy.Growth`; then the walk through each document. Knows nothing of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Pause, Policy
from sequoia_opt.plan.recording import Recording, text_ranks
from sequoia_opt.plan.tree import BoolArray, IntArray
from sequoia_opt.types import FloatArray

MOST_BEHIND = 64  # tokens that the draft's cache lacks; more are counted as so many


@dataclass(frozen=True)
class Steps:
    """The step from each position, were it a root; [positions] unless said otherwise.

    Attributes:
        accepted: guesses that verification accepts.
        sizes: nodes of the target pass.
        widths: [positions, levels], nodes of each draft pass, 0 for none.
        leaves_behind: whether the draft's cache then lacks the last accepted guess.
    """

    accepted: IntArray
    sizes: IntArray
    widths: NDArray[np.uint8]
    leaves_behind: BoolArray


@dataclass(frozen=True)
class Counts:
    """What decoding each document took; only steps that the document's end did not cut short.

    Attributes:
        tokens, steps: [documents].
        sizes: [documents, largest size + 1], target passes by their nodes.
        widths: [documents, width + 1], draft passes but the first of a step, by their nodes.
        first: [documents, MOST_BEHIND + 1], first draft passes of a step, by the number of tokens
            that the draft's cache lacked besides the root.
        levels: [documents, depth + 1], steps by the number of their draft passes.
    """

    tokens: IntArray
    steps: IntArray
    sizes: IntArray
    widths: IntArray
    first: IntArray
    levels: IntArray

    @property
    def tokens_per_step(self) -> float:
        """Mean over all documents; 0 where no step counts."""
        steps = int(self.steps.sum())
        return int(self.tokens.sum()) / steps if steps else 0.0


class PolicyReplay:
    """Recorded drafts, prepared for policies of one calibration."""

    def __init__(self, recording: Recording, confidence: Confidence) -> None:
        """Look up what does not depend on a policy's thresholds.

        Raises:
            SequoiaError: the calibration knows other ranks than the recording has.
        """
        if confidence.ranks != recording.width_of_node:
            raise SequoiaError(
                f"the calibration has {confidence.ranks} ranks, the recording "
                f"{recording.width_of_node}; record again with `sequoia-opt estimate`"
            )
        self.recording, self.confidence = recording, confidence
        self._rates = [
            confidence.of_many(level + 1, recording.level(level))
            for level in range(recording.levels)
        ]
        self._text = text_ranks(recording)
        self._path = _path_slots(recording, self._text)

    def steps(self, policy: Policy, fill: bool) -> Steps:
        """The step from each position.

        Args:
            fill: whether guesses that were not offered fill a target pass, see `Growth.finish`.

        Raises:
            SequoiaError: the policy goes past what was recorded, or has another calibration.
        """
        recording = self.recording
        if policy.confidence != self.confidence:
            raise SequoiaError("the policy has another calibration than the replay")
        for name, value, recorded in (
            ("levels", policy.depth, recording.levels),
            ("nodes a level", policy.width, recording.slots if recording.levels > 1 else 1),
        ):
            if value > recorded:
                raise SequoiaError(
                    f"the policy drafts up to {value} {name}, the recording has {recorded}"
                )
        return _Forest(self, policy).steps(fill)

    def replay(self, policy: Policy, fill: bool) -> Counts:
        """What decoding the documents takes.

        Args:
            fill: see `steps`.

        Raises:
            SequoiaError: the policy goes past what was recorded.
        """
        return self.walk(self.steps(policy, fill), policy)

    def walk(self, steps: Steps, policy: Policy) -> Counts:
        """What decoding the documents takes, by what the step from each position is."""
        return walk(self.recording.starts, steps, policy.pause, policy.largest_size, policy.width)


def walk(
    starts: IntArray, steps: Steps, pause: Pause | None = None, size: int = 1, width: int = 1
) -> Counts:
    """What decoding the documents takes, by what the step from each position is.

    Args:
        starts: where each document begins, and the last ends, see `Recording`.
        pause: when drafting stops for a while.
        size, width: the most nodes of target and draft passes that are counted, if no step has
            more.
    """
    depth = steps.widths.shape[1]
    roots, behind, plain = _walk(starts, steps, depth + 1, pause)
    document_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    documents, plain_documents = document_of[roots], document_of[plain]
    count = len(starts) - 1

    def histogram(values: IntArray, of: IntArray, most: int) -> IntArray:
        cells = of * (most + 1) + values
        counts = np.bincount(cells.ravel(), minlength=count * (most + 1))
        return counts.reshape(count, most + 1)

    widths = steps.widths[roots].astype(np.int64)
    sizes = histogram(steps.sizes[roots], documents, int(steps.sizes.max(initial=size)))
    sizes[:, 1] += np.bincount(plain_documents, minlength=count)
    levels = histogram((widths > 0).sum(axis=1), documents, depth)
    levels[:, 0] += np.bincount(plain_documents, minlength=count)
    drafts = widths[:, 0] > 0
    later = widths[:, 1:]
    of_later = np.broadcast_to(documents[:, None], later.shape)
    by_width = histogram(
        later[later > 0], of_later[later > 0], int(steps.widths.max(initial=width))
    )
    commits = np.bincount(documents, steps.accepted[roots] + 1, count).astype(np.int64)
    return Counts(
        tokens=commits + np.bincount(plain_documents, minlength=count),
        steps=sizes.sum(axis=1),
        sizes=sizes,
        widths=by_width,
        first=histogram(np.minimum(behind[drafts], MOST_BEHIND), documents[drafts], MOST_BEHIND),
        levels=levels,
    )


@dataclass(frozen=True)
class _Level:
    """One level's guesses for the positions that draft it; kept for filling.

    Attributes:
        rows: [rows], the positions, ascending.
        values: [rows, guesses], -1 or NaN where a guess does not exist or is offered.
        path: [rows], which guess the text is, -1 if none.
    """

    rows: IntArray
    values: FloatArray
    path: IntArray


class _Forest:
    """One tree for each position, growing level by level together."""

    def __init__(self, replay: PolicyReplay, policy: Policy) -> None:
        self._recording, self._policy = replay.recording, policy
        self._rates, self._text, self._path = replay._rates, replay._text, replay._path
        positions = len(replay.recording.ranks)
        self._accepted = np.zeros(positions, np.int64)
        self._expanded = np.zeros(positions, np.int64)  # levels whose draft pass has the text
        self._offered = np.zeros(positions, np.int64)
        self._widths = np.zeros((positions, policy.depth), np.uint8)
        self._levels: list[_Level] = []

    def steps(self, fill: bool) -> Steps:
        policy = self._policy
        if policy.first < 1:
            self._grow()
        sizes = np.array(policy.sizes)
        passes = sizes[np.searchsorted(sizes, self._offered + 1)]
        if fill:
            self._fill(passes - 1 - self._offered)
        return Steps(
            accepted=self._accepted,
            sizes=passes,
            widths=self._widths,
            leaves_behind=(self._accepted > 0) & (self._accepted == self._expanded),
        )

    def _grow(self) -> None:
        policy = self._policy
        rows = np.arange(len(self._accepted))
        values = np.ones((len(rows), 1))
        offered = np.ones((len(rows), 1), np.bool_)
        widths = np.ones(len(rows), np.int64)
        for level in range(policy.depth):
            if level:
                most = np.full(len(rows), values.shape[1]) if level == 1 else widths
                widths = self._chosen_widths(np.where(offered, values, 0.0), most)
                grows = widths > 0
                rows, widths = rows[grows], widths[grows]
                values, offered = values[grows], offered[grows]
            if not len(rows):
                break
            self._widths[rows, level] = widths
            values, offered = self._draft(level, rows, widths, values, offered)
            if level + 1 < policy.depth:
                values, offered = self._next_slots(level, rows, values, offered)

    def _chosen_widths(self, values: FloatArray, most: IntArray) -> IntArray:
        """How many nodes are expanded, [rows], see `Growth.next_level`.

        Args:
            values: [rows, slots], 0 for a node that is not offered.
            most: [rows], nodes that there are.
        """
        totals = np.cumsum(values, axis=1)
        best = np.zeros(len(values), np.int64)
        best_gain = np.zeros(len(values))
        for width, threshold in self._policy.expand:
            if width > totals.shape[1]:
                break
            gain = totals[:, width - 1] - threshold
            better = (gain > best_gain) & (width <= most)
            best[better] = width
            best_gain = np.where(better, gain, best_gain)
        return best

    def _draft(
        self, level: int, rows: IntArray, widths: IntArray, values: FloatArray, offered: BoolArray
    ) -> tuple[FloatArray, BoolArray]:
        """The values of a level's guesses, NaN of those that do not exist, and whether they are
        offered, [rows, guesses].

        Args:
            widths: [rows], nodes of the level.
            values, offered: [rows, slots], of the nodes.
        """
        policy, ranks = self._policy, self._policy.ranks
        slots = min(int(widths.max()), values.shape[1])
        rates = self._rates[level][rows, :slots, :ranks]
        exists = np.arange(slots) < widths[:, None]
        values = (values[:, :slots, None] * rates).reshape(len(rows), -1)
        takes = (values >= policy.offer) & np.repeat(offered[:, :slots] & exists, ranks, axis=1)
        counts = takes.sum(axis=1)
        room = policy.largest_size - 1 - self._offered[rows]
        over = np.flatnonzero(counts > room)
        if len(over):
            takes[over] &= np.cumsum(takes[over], axis=1) <= room[over, None]
            counts[over] = room[over]
        self._offered[rows] += counts

        slot, rank = self._path[level][rows], self._text[level][rows]
        expands = (slot >= 0) & (slot < widths)
        self._expanded[rows] += expands
        path = np.where(expands & (rank > 0) & (rank <= ranks), slot * ranks + rank - 1, -1)
        self._accepted[rows] += takes[np.arange(len(rows)), path] & (path >= 0)
        left = np.where(takes | ~np.repeat(exists, ranks, axis=1), -1.0, values)
        self._levels.append(_Level(rows, left, path))
        return values, takes

    def _next_slots(
        self, level: int, rows: IntArray, values: FloatArray, offered: BoolArray
    ) -> tuple[FloatArray, BoolArray]:
        """The same of the guesses that may be expanded next, [rows, slots], best first."""
        policy = self._policy
        slots = min(policy.width, policy.ranks) if level == 0 else policy.width
        origins = self._recording.origins[rows, level, :slots].astype(np.int64)
        node, rank = np.divmod(origins, self._recording.width_of_node)
        # A slot past a level's width may come from a node that the level lacks; it is not used.
        guesses = np.minimum(node * policy.ranks + rank, values.shape[1] - 1)
        return (
            np.take_along_axis(values, guesses, axis=1),
            np.take_along_axis(offered, guesses, axis=1),
        )

    def _fill(self, room: IntArray) -> None:
        """Accept guesses of the text that were not offered where they fill the pass.

        Args:
            room: [positions], nodes that the pass still has room for.
        """
        for number, level in enumerate(self._levels):
            is_next = self._accepted[level.rows] == number
            index = np.flatnonzero(is_next & (level.path >= 0) & (room[level.rows] > 0))
            index = index[level.values[index, level.path[index]] >= 0]
            if len(index):
                before = self._likelier(number, level, index)
                rows = level.rows[index]
                self._accepted[rows[before < room[rows]]] += 1

    def _likelier(self, number: int, level: _Level, index: IntArray) -> IntArray:
        """How many guesses that were not offered come before the text's own, [index]."""
        rows, path = level.rows[index], level.path[index]
        value = level.values[index, path][:, None]
        before = np.zeros(len(index), np.int64)
        for other_number, other in enumerate(self._levels):
            place = np.minimum(np.searchsorted(other.rows, rows), len(other.rows) - 1)
            drafts = other.rows[place] == rows
            values = other.values[place]
            precedes = values > value
            if other_number < number:
                precedes |= values == value
            elif other_number == number:
                precedes |= (values == value) & (np.arange(values.shape[1]) < path[:, None])
            before += np.where(drafts, precedes.sum(axis=1), 0)
        return before


def _path_slots(recording: Recording, text: Sequence[IntArray]) -> list[IntArray]:
    """The slot of each level whose node the text is, [positions]; -1 where none is."""
    slots = [np.zeros(len(recording.ranks), np.int64)]
    for level in range(recording.levels - 1):
        slot, rank = slots[-1], text[level]
        origin = slot * recording.width_of_node + rank - 1
        is_path = recording.origins[:, level] == origin[:, None]
        # An empty slot has no probabilities; its origin says nothing.
        is_path &= recording.level(level + 1)[:, :, 0] > 0
        reached = (slot >= 0) & (rank > 0) & is_path.any(axis=1)
        slots.append(np.where(reached, is_path.argmax(axis=1), -1))
    return slots


def _walk(
    starts: IntArray, steps: Steps, longest: int, pause: Pause | None
) -> tuple[IntArray, IntArray, IntArray]:
    """The roots of the steps that decode each document.

    Args:
        longest: tokens of the longest possible step; a step counts only if it would fit.

    Returns:
        roots: of the steps that are not plain by a pause.
        behind: for each, the tokens that the draft's cache lacks besides the root.
        plain: the roots of paused steps.
    """
    accepted, leaves_behind = steps.accepted.tolist(), steps.leaves_behind.tolist()
    most_misses = pause.misses if pause is not None else 0
    lengths = pause.steps if pause is not None else ()
    roots: list[int] = []
    behind: list[int] = []
    plain: list[int] = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        root, lacks, misses, pauses = start, 0, 0, 0
        while root <= end - longest:
            roots.append(root)
            behind.append(lacks)
            lacks = int(leaves_behind[root])
            count = accepted[root]
            root += count + 1
            if count or not most_misses:
                misses = pauses = 0
                continue
            misses += 1
            if misses >= most_misses:
                length = lengths[min(pauses, len(lengths) - 1)]
                pauses += 1
                stop = min(root + length, max(root, end - longest + 1))
                plain.extend(range(root, stop))
                lacks += stop - root
                root = stop
    return np.array(roots, np.int64), np.array(behind, np.int64), np.array(plain, np.int64)
