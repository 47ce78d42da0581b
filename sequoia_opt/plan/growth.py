"""One step's tree while it grows by a policy, from the draft's probabilities.

The same rule serves deterministic guesses and drawn ones. Which guesses are offered is decided
from the draft's distributions as soon as they are known, before anything is drawn from them; so
whether a draw is offered depends neither on its own value nor on what is drawn below it, and
verification stays lossless. Knows nothing of tokens, models or times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sequoia_opt.plan.policy import Policy


@dataclass(frozen=True)
class GrownTree:
    """A tree that a policy has grown.

    Attributes:
        nodes: the offered guesses as indices of `Growth.parents`, parents before children and
            siblings in the order of rank; without the root.
        size: nodes of the target pass that verifies them, the root included.
    """

    nodes: list[int]
    size: int


# Why a tree stops growing: the step is a plain one of a pause; the tree has all levels; a further
# level would not pay; no guess is left to continue from, which happens only to lookups.
PAUSE, DEPTH, THRESHOLD, NO_GUESS = STOPS = ("pause", "depth", "threshold", "no guess")


class Growth:
    """One step's tree while it grows.

    Guesses are numbered as they become known, level by level: those of a level's first node,
    best first, then those of its second node, and so on. The root is number 0.

    Attributes:
        parents, ranks, depths: of each guess.
        rates, values: the probability that it is accepted if verification reaches its parent, and
            that verification reaches it, by the calibration.
        is_offered: whether it is to be verified; an offered guess's parent and elder siblings are
            offered too.
        widths: nodes of each draft pass so far.
        expected: how many of the offered guesses verification accepts, by the calibration.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.parents, self.ranks, self.depths = [-1], [0], [0]
        self.rates, self.values, self.is_offered = [1.0], [1.0], [True]
        self.widths: list[int] = []
        self.expected = 0.0
        self._products = [1.0]  # of the draft's own probabilities along the path
        self._slots = [0]  # nodes that may be expanded next, best first
        self._room = policy.largest_size - 1

    def next_level(self) -> list[int]:
        """The nodes whose guesses are drafted next, in order; none if growth ends."""
        policy = self._policy
        if len(self.widths) == policy.depth or not self._slots:
            return []
        if not self.widths:
            return [0] if policy.drafts else []
        best, best_gain, total, count = 0, 0.0, 0.0, 0
        for width, threshold in policy.expand:
            # After the second level no level is wider than the one before: slot j of a level
            # follows from slots 1 to j of the level above, so that recorded drafts of W slots
            # show what any policy of fewer slots does.
            if width > len(self._slots) or (len(self.widths) > 1 and width > self.widths[-1]):
                break
            for slot in self._slots[count:width]:
                total += self.values[slot] if self.is_offered[slot] else 0.0
            count = width
            if total - threshold > best_gain:
                best, best_gain = width, total - threshold
        return self._slots[:best]

    @property
    def offered(self) -> int:
        """How many guesses are offered."""
        return sum(self.is_offered) - 1

    @property
    def stop(self) -> str:
        """Why `next_level` names no node: one of `STOPS`; only the step itself knows of a pause."""
        if len(self.widths) == self._policy.depth:
            return DEPTH
        return THRESHOLD if self._slots else NO_GUESS

    def add(self, nodes: Sequence[int], probabilities: Sequence[Sequence[float]]) -> list[int]:
        """Take the guesses of the nodes that `next_level` named.

        Args:
            nodes: these nodes.
            probabilities: for each, the draft's `ranks` largest probabilities, in order.

        Returns:
            How many of each node's guesses are offered.
        """
        policy, depth = self._policy, len(self.widths) + 1
        self.widths.append(len(nodes))
        offered, expected = [], 0.0
        new: list[range] = []
        for node, row in zip(nodes, probabilities, strict=True):
            row = row[: policy.ranks]
            value, product = self.values[node], self._products[node]
            rates = policy.confidence.of(depth, row)
            values = [value * rate for rate in rates]
            guesses, most = len(values), min(len(values), self._room)
            count = 0
            if self.is_offered[node]:
                while count < most and values[count] >= policy.offer:
                    expected += values[count]
                    count += 1
            self._room -= count
            offered.append(count)
            new.append(range(len(self.parents), len(self.parents) + guesses))
            self.parents += [node] * guesses
            self.ranks += range(1, guesses + 1)
            self.depths += [depth] * guesses
            self.rates += rates
            self.values += values
            self.is_offered += [rank < count for rank in range(guesses)]
            self._products += [product * probability for probability in row[:guesses]]
        self.expected += expected
        self._slots = nested_slots(new, self._products, policy.width)
        return offered

    def finish(self, fill: bool) -> GrownTree:
        """The tree, once no level is left to draft.

        Args:
            fill: fill the target pass up with the likeliest guesses that were not offered; only
                for guesses that are not drawn at random.
        """
        nodes = [node for node in range(1, len(self.parents)) if self.is_offered[node]]
        size = self._policy.size_for(len(nodes) + 1)
        if fill and size > len(nodes) + 1:
            rest = [node for node in range(1, len(self.parents)) if not self.is_offered[node]]
            # A guess's parent and elder siblings come before it: they are at least as likely,
            # and of lower number.
            rest.sort(key=lambda node: (-self.values[node], node))
            nodes = sorted(nodes + rest[: size - 1 - len(nodes)])
        return GrownTree(nodes, size)


def nested_slots(
    guesses: Sequence[Sequence[int]], products: Sequence[float], width: int
) -> list[int]:
    """Which guesses may be expanded at the next level, best first.

    Slot j is the guess of highest product among those of the first j nodes, less the ones in
    slots before it. So the first w slots of a level depend on the first w nodes of the level
    above alone, for every w. A first level's single node serves all slots.

    Args:
        guesses: of each node of a level, in order, the numbers of its guesses, best first.
        products: by number, the product of the draft's probabilities along the path.
        width: the most slots.
    """
    slots: list[int] = []
    taken = [0] * len(guesses)
    for slot in range(width):
        best = -1
        for node in range(min(slot + 1, len(guesses))):
            if taken[node] < len(guesses[node]):
                guess = guesses[node][taken[node]]
                if best < 0 or products[guess] > products[guesses[best][taken[best]]]:
                    best = node
        if best < 0:
            break
        slots.append(guesses[best][taken[best]])
        taken[best] += 1
    return slots
