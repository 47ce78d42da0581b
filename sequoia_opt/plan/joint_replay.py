"""Replays a policy that looks up before a model drafts: one walk over both recordings.

At each position the lookup's tree is verified if it is worth that; else the model drafts, after it
has read the tokens that it missed. Knows nothing of times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sequoia_opt.plan.pause import Pause, PauseState
from sequoia_opt.plan.policy import LookupFirst, Policy
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.tree import BoolArray, IntArray
from sequoia_opt.plan.walk import MOST_BEHIND_LOOKUPS, Counts, Steps, counted, size_changes


@dataclass(frozen=True)
class JointCounts:
    """Numbers of steps, tokens and passes that decoding each document took.

    Attributes:
        model: steps in which the model drafted, and plain ones.
        lookup: steps that verified the lookup's guesses.
        passed_over: [documents], levels of lookup trees that were grown but not verified.
    """

    model: Counts
    lookup: Counts
    passed_over: IntArray

    @cached_property
    def tokens(self) -> IntArray:
        """[documents]."""
        return self.model.tokens + self.lookup.tokens

    @cached_property
    def steps(self) -> IntArray:
        """[documents]."""
        return self.model.steps + self.lookup.steps

    @cached_property
    def sizes(self) -> IntArray:
        """Target passes by their nodes, [documents, largest size + 1]."""
        return _sum(self.model.sizes, self.lookup.sizes)

    @cached_property
    def levels(self) -> IntArray:
        """Steps by the levels of their trees, [documents, depth + 1]."""
        return _sum(self.model.levels, self.lookup.levels)

    @property
    def looked_up(self) -> float:
        """The share of the steps that verified the lookup's guesses; 0 where no step counts."""
        steps = int(self.steps.sum())
        return int(self.lookup.steps.sum()) / steps if steps else 0.0


def _sum(first: IntArray, second: IntArray) -> IntArray:
    """Counts of documents, [documents, numbers], of two kinds of steps together."""
    most = max(first.shape[1], second.shape[1])
    padded = [np.pad(counts, ((0, 0), (0, most - counts.shape[1]))) for counts in (first, second)]
    return np.asarray(padded[0] + padded[1])


class JointReplay:
    """Two recordings of the same documents, prepared for policies of two calibrations."""

    def __init__(self, model: PolicyReplay, lookup: PolicyReplay) -> None:
        """Keep both replays."""
        self.model, self.lookup = model, lookup

    @classmethod
    def of(cls, recording: Recording, policy: Policy) -> JointReplay:
        """A model's recording, with a lookup's, prepared for a policy with a lookup.

        Raises:
            SequoiaError: see `PolicyReplay`.
        """
        assert recording.lookup is not None
        assert policy.lookup is not None
        return cls(
            PolicyReplay(recording, policy.confidence),
            PolicyReplay(recording.lookup, policy.lookup.policy.confidence),
        )

    def replay(self, policy: Policy, fill: bool) -> JointCounts:
        """What decoding the documents takes.

        Args:
            policy: with a lookup.
            fill: whether the model's guesses that were not offered fill a target pass, see
                `Growth.finish`; a lookup's always do.

        Raises:
            SequoiaError: see `PolicyReplay.steps`.
        """
        assert policy.lookup is not None
        model = self.model.steps(policy, fill)
        return self.walk(policy, model, self.lookup.steps(policy.lookup.policy, fill=True))

    def walk(self, policy: Policy, model: Steps, lookup: Steps) -> JointCounts:
        """What decoding the documents takes, from the step of either kind at each position.

        Args:
            policy: with a lookup.
        """
        assert policy.lookup is not None
        starts, first = self.model.recording.starts, policy.lookup
        longest = max(part.depth for part in policy.parts) + 1
        is_looked_up = taken(first, lookup)
        roots = _walk(starts, model, lookup, is_looked_up, longest, policy.pause)
        drafted = counted(
            starts,
            model,
            roots.drafted,
            roots.behind,
            roots.plain,
            policy.largest_size,
            policy.width,
            MOST_BEHIND_LOOKUPS,
        )
        extent = first.policy.largest_size, first.policy.width
        nothing = np.zeros(0, np.int64)
        behind = np.zeros_like(roots.looked_up)
        looked_up = counted(starts, lookup, roots.looked_up, behind, nothing, *extent)
        changes = size_changes(
            starts,
            (roots.drafted, model.sizes[roots.drafted]),
            (roots.looked_up, lookup.sizes[roots.looked_up]),
            (roots.plain, np.ones_like(roots.plain)),
        )
        drafted = replace(drafted, changes=changes)
        looked_up = replace(looked_up, changes=np.zeros_like(changes))
        others = np.concatenate([roots.drafted, roots.plain])
        documents = np.searchsorted(starts, others, side="right") - 1
        levels = np.zeros(len(starts) - 1, np.int64)
        np.add.at(levels, documents, (lookup.widths[others] > 0).sum(axis=1))
        return JointCounts(drafted, looked_up, levels)


def taken(first: LookupFirst, steps: Steps) -> BoolArray:
    """Whether the lookup's tree is verified at each position; see `LookupFirst.takes`."""
    assert steps.expected is not None
    least = np.full(first.policy.largest_size + 1, np.inf)
    for size, expected in first.worth:
        least[size] = expected
    return np.asarray(steps.expected >= least[steps.sizes])


class _Roots(NamedTuple):
    """The roots of the steps that decode all documents, each array [steps].

    Attributes:
        drafted: roots of the steps in which the model drafts.
        behind: for each of these, the tokens that the model's cache lacks besides the root.
        plain: roots of paused steps.
        looked_up: roots of the steps that verify the lookup's guesses.
    """

    drafted: IntArray
    behind: IntArray
    plain: IntArray
    looked_up: IntArray


def _walk(
    starts: IntArray,
    model: Steps,
    lookup: Steps,
    is_looked_up: BoolArray,
    longest: int,
    pause: Pause | None,
) -> _Roots:
    """Walk from step to step through each document.

    Args:
        is_looked_up: whether the step from each position verifies the lookup's guesses.
        longest: tokens of the longest possible step; a step counts only if it would fit.
    """
    accepted, guessed = model.accepted.tolist(), lookup.accepted.tolist()
    leaves_behind, looks_up = model.leaves_behind.tolist(), is_looked_up.tolist()
    drafts = (model.widths[:, 0] > 0).tolist()
    drafted: list[int] = []
    behind: list[int] = []
    plain: list[int] = []
    looked_up: list[int] = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        root, lacks, state = start, 0, PauseState()
        while root <= end - longest:
            tokens = 1
            if looks_up[root]:
                looked_up.append(root)
                tokens += guessed[root]
                lacks += tokens
            elif state.plain:
                plain.append(root)
                lacks += tokens
                state = state.after(0, pause)
            else:
                drafted.append(root)
                behind.append(lacks)
                tokens += accepted[root]
                lacks = leaves_behind[root] if drafts[root] else lacks + tokens
                state = state.after(tokens - 1, pause)
            root += tokens
    lists = (drafted, behind, plain, looked_up)
    return _Roots(*(np.array(numbers, np.int64) for numbers in lists))
