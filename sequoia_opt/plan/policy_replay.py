"""Replays a policy over recorded drafts: the same tokens, steps and passes as decoding would have.

First every position's step at once, as if it were the root, by the same arithmetic and the same
rules for ties as `growth.Growth`; then the `walk` through each document. Knows nothing of times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.text_paths import path_slots, text_ranks
from sequoia_opt.plan.tree import BoolArray, IntArray
from sequoia_opt.plan.walk import MOST_BEHIND, Counts, Steps, left_behind, walk
from sequoia_opt.types import FloatArray

__all__ = ["MOST_BEHIND", "Counts", "PolicyReplay", "Steps", "walk"]


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
        self._cut_rates: dict[tuple[int, int, int], FloatArray] = {}
        self._text = text_ranks(recording)
        self._path = path_slots(recording, self._text)

    def rates(self, level: int, slots: int, ranks: int) -> FloatArray:
        """The calibrated acceptance of the first guesses of a level's first slots, [positions,
        slots, ranks]. Cached as contiguous arrays, whose rows are faster to take."""
        key = level, slots, ranks
        if key not in self._cut_rates:
            self._cut_rates[key] = np.ascontiguousarray(self._rates[level][:, :slots, :ranks])
        return self._cut_rates[key]

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
        self._replay, self._text, self._path = replay, replay._text, replay._path
        positions = len(replay.recording.ranks)
        self._accepted = np.zeros(positions, np.int64)
        self._expanded = np.zeros(positions, np.int64)  # levels whose draft pass has the text
        self._offered = np.zeros(positions, np.int64)
        self._expected = np.zeros(positions)
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
            leaves_behind=left_behind(self._accepted, self._expanded, self._recording.is_of_head),
            expected=self._expected,
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
                grows = np.flatnonzero(widths)
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
        rates = self._replay.rates(level, slots, ranks)[rows]
        exists = np.arange(slots) < widths[:, None]
        by_node = values[:, :slots, None] * rates
        is_taken = (by_node >= policy.offer) & (offered[:, :slots] & exists)[:, :, None]
        values, takes = by_node.reshape(len(rows), -1), is_taken.reshape(len(rows), -1)
        counts = takes.sum(axis=1)
        room = policy.largest_size - 1 - self._offered[rows]
        over = np.flatnonzero(counts > room)
        if len(over):
            takes[over] &= np.cumsum(takes[over], axis=1) <= room[over, None]
            counts[over] = room[over]
        self._offered[rows] += counts
        # A running sum adds in the order of `Growth`, so that equal thresholds decide alike.
        self._expected[rows] += np.cumsum(np.where(takes, values, 0.0), axis=1)[:, -1]

        slot, rank = self._path[level][rows], self._text[level][rows]
        expands = (slot >= 0) & (slot < widths)
        self._expanded[rows] += expands
        path = np.where(expands & (rank > 0) & (rank <= ranks), slot * ranks + rank - 1, -1)
        self._accepted[rows] += takes[np.arange(len(rows)), path] & (path >= 0)
        is_left = ~takes.reshape(by_node.shape) & exists[:, :, None]
        left = np.where(is_left, by_node, -1.0).reshape(len(rows), -1)
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
