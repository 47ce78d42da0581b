"""The walk through each recorded document: the steps, tokens and passes that decoding it takes.

Knows what the step from each position is. Knows nothing of how trees grow, nor of times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.plan.pause import Pause, PauseState
from sequoia_opt.plan.tree import IntArray
from sequoia_opt.types import FloatArray

MOST_BEHIND = 64  # tokens that the draft's cache lacks; larger numbers are counted as this one
MOST_BEHIND_LOOKUPS = 512  # the same where steps by a lookup come between


@dataclass(frozen=True)
class Steps:
    """The step from each position, were it a root; [positions] unless said otherwise.

    Attributes:
        accepted: guesses that verification accepts.
        sizes: nodes of the target pass.
        widths: [positions, levels], nodes of each draft pass, 0 for none.
        leaves_behind: accepted guesses that the draft's cache lacks after the step.
        expected: expected number of accepted guesses by the calibration; None where it is not
            needed.
    """

    accepted: IntArray
    sizes: IntArray
    widths: NDArray[np.uint8]
    leaves_behind: IntArray
    expected: FloatArray | None = None


@dataclass(frozen=True)
class Counts:
    """Numbers of steps, tokens and passes that decoding each document took.

    Only steps that the document's end did not cut short are counted.

    Attributes:
        tokens, steps: [documents].
        sizes: [documents, largest size + 1], target passes by their nodes.
        widths: [documents, width + 1], draft passes but the first of a step, by their nodes.
        first: [documents, MOST_BEHIND + 1], first draft passes of a step, by the number of tokens
            that the draft's cache lacked besides the root; up to `MOST_BEHIND_LOOKUPS` where steps
            by a lookup come between.
        levels: [documents, depth + 1], steps by the number of their draft passes.
        changes: [documents], steps whose target pass has another size than the one before.
    """

    tokens: IntArray
    steps: IntArray
    sizes: IntArray
    widths: IntArray
    first: IntArray
    levels: IntArray
    changes: IntArray

    @property
    def tokens_per_step(self) -> float:
        """Mean over all documents; 0 where no step counts."""
        steps = int(self.steps.sum())
        return int(self.tokens.sum()) / steps if steps else 0.0


def left_behind(accepted: IntArray, passed: IntArray, of_head: bool) -> IntArray:
    """Accepted guesses that the draft's cache lacks after a step, see `Steps`.

    A draft model's cache lacks the last one if no pass has run over it, a head's lacks all of them.

    Args:
        accepted: guesses that verification accepts.
        passed: levels whose draft pass has run over the text.
    """
    if of_head:
        return accepted
    return np.where(accepted == passed, np.minimum(accepted, 1), 0)


def walk(
    starts: IntArray, steps: Steps, pause: Pause | None = None, size: int = 1, width: int = 1
) -> Counts:
    """What decoding the documents takes, from the step at each position.

    Args:
        starts: where each document begins, and the last ends, see `Recording`.
        pause: when drafting stops for a while.
        size, width: the most nodes of target and draft passes that are counted, if no step has
            more.
    """
    roots, behind, plain = _walk(starts, steps, steps.widths.shape[1] + 1, pause)
    return counted(starts, steps, roots, behind, plain, size, width)


def counted(
    starts: IntArray,
    steps: Steps,
    roots: IntArray,
    behind: IntArray,
    plain: IntArray,
    size: int = 1,
    width: int = 1,
    most_behind: int = MOST_BEHIND,
) -> Counts:
    """What the steps of a walk take.

    Args:
        starts, size, width: see `walk`.
        most_behind: larger numbers of tokens that the draft's cache lacks are counted as this one.
        roots: of the steps that are as `steps` has them.
        behind: for each, the tokens that the draft's cache lacks besides the root.
        plain: the roots of plain steps.
    """
    depth = steps.widths.shape[1]
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
        first=histogram(np.minimum(behind[drafts], most_behind), documents[drafts], most_behind),
        levels=levels,
        changes=size_changes(starts, (roots, steps.sizes[roots]), (plain, np.ones_like(plain))),
    )


def size_changes(starts: IntArray, *parts: tuple[IntArray, IntArray]) -> IntArray:
    """Steps whose target pass has another size than the one before, [documents].

    Args:
        starts: see `walk`.
        parts: roots of steps, and the nodes of their target passes.
    """
    roots, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(roots, kind="stable")
    documents = np.searchsorted(starts, roots[order], side="right") - 1
    sizes = sizes[order]
    is_changed = (np.diff(sizes) != 0) & (np.diff(documents) == 0)
    changes: IntArray = np.bincount(documents[1:][is_changed], minlength=len(starts) - 1)
    return changes


def _walk(
    starts: IntArray, steps: Steps, longest: int, pause: Pause | None
) -> tuple[IntArray, IntArray, IntArray]:
    """The roots of the steps that decode each document.

    Args:
        longest: tokens of the longest possible step; a step counts only if it would fit.

    Returns:
        roots: the roots of steps outside of pauses.
        behind: for each, the tokens that the draft's cache lacks besides the root.
        plain: the roots of paused steps.
    """
    accepted = steps.accepted.tolist()
    roots: list[int] = []
    plain: list[int] = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        root, last, state = start, end - longest, PauseState()
        while root <= last:
            if state.plain:
                plain.append(root)
                root += 1
                state = state.after(0, pause)
                continue
            roots.append(root)
            guesses = accepted[root]
            if pause is not None and (not guesses or state.misses):  # else it stays as it is
                state = state.after(guesses, pause)
            root += guesses + 1
    drafted, paused = np.array(roots, np.int64), np.array(plain, np.int64)
    return drafted, _behind(starts, steps.leaves_behind, drafted, paused), paused


def _behind(
    starts: IntArray, leaves_behind: IntArray, roots: IntArray, plain: IntArray
) -> IntArray:
    """For each root, the tokens that the draft's cache lacks besides it, see `_walk`: those that
    the step before left, and one for each plain step since."""
    behind = np.zeros(len(roots), np.int64)
    behind[1:] = leaves_behind[roots[:-1]] + np.diff(np.searchsorted(plain, roots))
    behind[np.isin(roots, starts)] = 0  # a document's first step drafts, and lacks nothing
    return behind
