"""The oracle's bound: how fast a chain would decode that knows what will be accepted.

No chain is faster on the same text: at each step it drafts as many guesses as pay, all of which
are accepted, and it chooses their numbers for the whole document together. Knows rank traces and
the times of passes.
"""

from __future__ import annotations

import numpy as np

from sequoia_opt.plan.policy_replay import MOST_BEHIND, Counts
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.text_paths import text_ranks
from sequoia_opt.plan.tree import IntArray

MOST_GUESSES = 32  # of a step


def oracle_counts(recording: Recording, times: PolicyTimes) -> Counts:
    """The passes of the fastest such decoding of each document, by the times' medians."""
    costs = _chain_ms(times)
    most = len(costs) - 1
    documents = recording.documents
    lengths = np.diff(recording.starts)
    sizes = np.zeros((documents, most + 2), np.int64)
    own = _own_runs(recording)
    for document in range(documents):
        span = slice(recording.starts[document], recording.starts[document + 1])
        runs = _runs((recording.ranks[span] > 0).tolist(), own[span].tolist())
        for guesses in _cheapest_steps(runs, costs):
            sizes[document, guesses + 1] += 1
    drafts = np.arange(most + 2) - 1
    first = np.zeros((documents, MOST_BEHIND + 1), np.int64)
    first[:, 0] = sizes[:, 2:].sum(axis=1)
    widths = np.zeros((documents, 2), np.int64)
    widths[:, 1] = sizes[:, 2:] @ (drafts[2:] - 1)
    return Counts(
        tokens=lengths, steps=sizes.sum(axis=1), sizes=sizes, widths=widths, first=first,
        levels=sizes[:, 1:], changes=np.zeros(documents, np.int64),
    )  # fmt: skip


def _own_runs(recording: Recording) -> IntArray:
    """How many levels of the tree at each position accept the text, [positions], of a head; its
    guesses behind a root depend on where the step began. 0 of other drafts."""
    if not recording.is_of_head:
        return np.zeros(len(recording.ranks), np.int64)
    accepted = np.stack(text_ranks(recording), axis=1) > 0
    return np.asarray(accepted.cumprod(axis=1).sum(axis=1))


def _runs(accepted: list[bool], own: list[int]) -> list[int]:
    """The most guesses that a step from each position of a document accepts, as recorded.

    Args:
        accepted: whether some guess is, at each position.
        own: see `_own_runs`.
    """
    runs, run = list(own), 0
    for position in range(len(accepted) - 1, -1, -1):
        run = run + 1 if accepted[position] else 0
        runs[position] = max(runs[position], run)
    return runs


def _chain_ms(times: PolicyTimes) -> list[float]:
    """The median time of a step by its guesses, from 0; as many as the profile can price."""
    costs: list[float] = []
    for guesses in range(min(MOST_GUESSES, times.target_ms.shape[1] - 2) + 1):
        cost = times.target_ms[0, guesses + 1]
        if guesses:
            cost += times.first_ms[0, 0] + (guesses - 1) * times.draft_ms[0, 1]
        if not np.isfinite(cost):
            break
        costs.append(float(cost))
    return costs


def _cheapest_steps(runs: list[int], costs: list[float]) -> list[int]:
    """Guesses of each step of the cheapest way through a document: a shortest path.

    Args:
        runs: the most guesses that a step from each position accepts.
        costs: of a step, by its guesses.
    """
    length = len(runs)
    rest = [0.0] * (length + 1)  # the time from each position to the end
    choices = [0] * length
    for position in range(length - 1, -1, -1):
        most = min(runs[position], len(costs) - 1, length - position - 1)
        ways = [costs[n] + rest[position + n + 1] for n in range(most + 1)]
        rest[position] = min(ways)
        choices[position] = ways.index(rest[position])
    steps = []
    position = 0
    while position < length:
        steps.append(choices[position])
        position += choices[position] + 1
    return steps
