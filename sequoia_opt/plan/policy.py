"""The policy of an adaptive plan: how each step's tree grows by what the draft says.

Decoding is a renewal process: the policy that yields most tokens per millisecond, λ, maximises
E[tokens] - λ E[time] in each step (renewal reward). Solved for one machine and one pair, the rule
is a handful of thresholds on calibrated probabilities. Knows nothing of tokens, models or times.

The same rule serves deterministic guesses and drawn ones. Which guesses are offered is decided
from the draft's distributions as soon as they are known, before anything is drawn from them; so
whether a draw is offered depends neither on its own value nor on what is drawn below it, and
verification stays lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.confidence import Confidence


@dataclass(frozen=True)
class Pause:
    """When to stop drafting for a while, where drafting brings nothing.

    Attributes:
        misses: steps in a row that drafted and accepted nothing, after which decoding goes on
            plainly.
        steps: how many plain steps follow: the first entry after the first pause, the next entry
            where the step after it missed again, and so on; the last entry repeats. An accepted
            guess starts over.
    """

    misses: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class PauseState:
    """Where a text stands with its policy's pause.

    Attributes:
        misses: steps in a row that drafted, or grew nothing, and accepted nothing.
        pauses: in a row; a step that accepts something starts over.
        plain: plain steps that are still to come in this pause.
    """

    misses: int = 0
    pauses: int = 0
    plain: int = 0

    def after(self, accepted: int, pause: Pause | None) -> PauseState:
        """The state after a step that accepted so many guesses."""
        if pause is None:
            return self
        if self.plain:
            return PauseState(self.misses, self.pauses, self.plain - 1)
        if accepted:
            return PauseState()
        misses = self.misses + 1
        if misses < pause.misses:
            return PauseState(misses, self.pauses)
        plain = pause.steps[min(self.pauses, len(pause.steps) - 1)]
        return PauseState(misses, self.pauses + 1, plain)


@dataclass(frozen=True)
class Policy:
    """How trees grow.

    Attributes:
        confidence: the calibration.
        depth: the most levels that are drafted.
        ranks: the most children of a node.
        expand: for each number of nodes that a draft pass may have, ascending: a level of so many
            nodes is drafted only if the sum of their probabilities of being reached exceeds this;
            of several numbers, the one whose sum exceeds it by most. The first level has one
            node, whose threshold is `first`.
        first: the threshold of the first level, below 1 where drafting pays at all.
        offer: a guess is verified if the probability that it is reached is at least this.
        sizes: numbers of nodes that a target pass may have, ascending, 1 being the first. A tree
            takes the smallest that has room for it; guesses that are not drawn at random fill it
            up with the likeliest that were not offered.
        pause: when to stop drafting for a while; None for never.

    Raises:
        SequoiaError: numbers out of range.
    """

    confidence: Confidence
    depth: int
    ranks: int
    expand: tuple[tuple[int, float], ...]
    first: float
    offer: float
    sizes: tuple[int, ...]
    pause: Pause | None = None

    def __post_init__(self) -> None:
        widths = [width for width, _ in self.expand]
        if self.depth < 1:
            raise SequoiaError(f"policy: depth: found {self.depth}, expected at least 1")
        if not 1 <= self.ranks <= self.confidence.ranks:
            raise SequoiaError(
                f"policy: ranks: found {self.ranks}, expected 1 to {self.confidence.ranks}, the "
                "ranks that the confidence has"
            )
        if not widths or widths[0] != 1 or widths != sorted(set(widths)):
            raise SequoiaError(f"policy: expand: found widths {widths}, expected ascending from 1")
        if not 0 <= self.offer <= 1:
            raise SequoiaError(f"policy: offer: found {self.offer:g}, expected 0 to 1")
        thresholds = [self.first, *(threshold for _, threshold in self.expand)]
        if any(not threshold >= 0 for threshold in thresholds):
            raise SequoiaError("policy: found a threshold that is not a number of at least 0")
        if not self.sizes or self.sizes[0] != 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise SequoiaError(
                f"policy: sizes: found {list(self.sizes)}, expected ascending from 1"
            )
        if self.pause is not None and (
            self.pause.misses < 1 or not self.pause.steps or min(self.pause.steps) < 1
        ):
            raise SequoiaError("policy: pause: expected misses and steps of at least 1")

    @property
    def width(self) -> int:
        """The most nodes that a level expands."""
        return self.expand[-1][0]

    @property
    def largest_size(self) -> int:
        """The most nodes that are verified."""
        return self.sizes[-1]

    @property
    def most_drafted(self) -> int:
        """The most nodes of a step's draft passes, the token before the root included."""
        return 2 + (self.depth - 1) * self.width

    @property
    def most_drafted_leaves(self) -> int:
        """The most leaves among the nodes of a step's draft passes."""
        return 1 + (self.depth - 1) * (self.width - 1)

    @property
    def is_chain(self) -> bool:
        """Whether every tree is a chain."""
        return self.ranks == 1

    def size_for(self, nodes: int) -> int:
        """Nodes of the target pass that verifies so many, the root included."""
        return next(size for size in self.sizes if size >= nodes)

    def document(self) -> dict[str, Any]:
        """As the plan's file has it."""
        document: dict[str, Any] = {
            "depth": self.depth,
            "ranks": self.ranks,
            "first": self.first,
            "expand": {str(width): threshold for width, threshold in self.expand},
            "offer": self.offer,
            "sizes": list(self.sizes),
        }
        if self.pause is not None:
            document["pause"] = {"misses": self.pause.misses, "steps": list(self.pause.steps)}
        return {**document, "confidence": self.confidence.document()}

    @classmethod
    def from_fields(cls, fields: Fields) -> Policy:
        """Read it from a plan's file.

        Raises:
            SequoiaError: it is malformed or out of range; the message names file and field.
        """
        expand = fields.section("expand")
        if not all(str(width).isdecimal() for width in expand.mapping):
            raise fields.fail("expand", "a threshold for each number of nodes")
        pause = None
        if "pause" in fields.mapping:
            section = fields.section("pause")
            pause = Pause(section.integer("misses", 1), tuple(section.integers("steps", 1)))
        try:
            return cls(
                confidence=Confidence.from_fields(fields.section("confidence")),
                depth=fields.integer("depth", 1),
                ranks=fields.integer("ranks", 1),
                expand=tuple(
                    sorted((int(width), expand.number(width, 0.0)) for width in expand.mapping)
                ),
                first=fields.number("first", 0.0),
                offer=fields.number("offer", 0.0, 1.0),
                sizes=tuple(fields.integers("sizes", 1)),
                pause=pause,
            )
        except SequoiaError as error:
            if str(error).startswith(fields.where):
                raise
            raise SequoiaError(f"{fields.where}: {error}") from None


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


class Growth:
    """One step's tree while it grows.

    Guesses are numbered as they come to be known, level by level: those of a level's first node,
    best first, then those of its second node, and so on. The root is number 0.

    Attributes:
        parents, ranks, depths: of each guess.
        values: the probability that verification reaches it, by the calibration.
        is_offered: whether it is to be verified; an offered guess's parent and elder siblings are
            offered too.
        widths: nodes of each draft pass so far.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.parents, self.ranks, self.depths = [-1], [0], [0]
        self.values, self.is_offered = [1.0], [True]
        self.widths: list[int] = []
        self._products = [1.0]  # of the draft's own probabilities along the path
        self._slots = [0]  # nodes that may be expanded next, best first
        self._room = policy.largest_size - 1

    def next_level(self) -> list[int]:
        """The nodes whose guesses are to be drafted next, in order; none where growth ends."""
        policy = self._policy
        if len(self.widths) == policy.depth or not self._slots:
            return []
        if not self.widths:
            return [0] if policy.first < 1 else []
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
        offered = []
        new: list[range] = []
        for node, row in zip(nodes, probabilities, strict=True):
            row = row[: policy.ranks]
            value, product = self.values[node], self._products[node]
            values = [value * rate for rate in policy.confidence.of(depth, row)]
            guesses, most = len(values), min(len(values), self._room)
            count = 0
            if self.is_offered[node]:
                while count < most and values[count] >= policy.offer:
                    count += 1
            self._room -= count
            offered.append(count)
            new.append(range(len(self.parents), len(self.parents) + guesses))
            self.parents += [node] * guesses
            self.ranks += range(1, guesses + 1)
            self.depths += [depth] * guesses
            self.values += values
            self.is_offered += [rank < count for rank in range(guesses)]
            self._products += [product * probability for probability in row[:guesses]]
        self._slots = nested_slots(new, self._products, policy.width)
        return offered

    def finish(self, fill: bool) -> GrownTree:
        """The tree, once no level is left to draft.

        Args:
            fill: use the room that the pass has for the likeliest guesses that were not offered;
                only for guesses that are not drawn at random.
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
