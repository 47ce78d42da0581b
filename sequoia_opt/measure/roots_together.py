"""How many positions of a text are roots of trees in the same forward passes.

As many as the engine can tell apart. Knows envelopes and growing passes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sequoia_opt.engine.model import GrowingPasses
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.recording import Envelope

Passes = TypeVar("Passes", bound=GrowingPasses)

ROOTS = (16, 8, 4, 2, 1)


def extent(envelope: Envelope, roots: int) -> tuple[int, int]:
    """Nodes and leaves of the trees of several positions."""
    # One leaf more, since trees branch off inside the trunk.
    return roots * envelope.nodes, roots * envelope.leaves + 1


def widest_passes(make: Callable[[int, int], Passes], envelope: Envelope) -> tuple[int, Passes]:
    """As many positions together as the engine can run, and the passes for them.

    Args:
        make: see `Drafter.growing_passes`.

    Raises:
        SequoiaError: it cannot even run one position's tree.
    """
    for roots in ROOTS[:-1]:
        with suppress(SequoiaError):
            return roots, make(*extent(envelope, roots))
    return ROOTS[-1], make(*extent(envelope, ROOTS[-1]))
