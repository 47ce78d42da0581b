"""The policy of an adaptive plan: how each step's tree grows by the draft's probabilities.

Decoding is a renewal process: the policy that yields most tokens per millisecond, λ, maximises
E[tokens] - λ E[time] in each step (renewal reward). Solved for one machine and one pair, the rule
is a handful of thresholds on calibrated probabilities. `growth` applies it to one step. Knows
nothing of tokens, models or times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.pause import Pause

__all__ = ["LookupFirst", "Pause", "Policy"]

LACKING, LACKING_BEHIND_LOOKUPS = 2, 16  # tokens of a text that a draft pass takes at most


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
        lookup: of a plan that looks up before it drafts, when a step does so; else None.

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
    # Not in `repr`, so that the fingerprints of plans without a lookup stay as they were.
    lookup: LookupFirst | None = field(default=None, repr=False)

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
    def parts(self) -> tuple[Policy, ...]:
        """The policy, and that of the lookup's trees if there is one."""
        return (self,) if self.lookup is None else (self, self.lookup.policy)

    @property
    def drafts(self) -> bool:
        """Whether any step drafts by the policy itself, whatever a lookup does before."""
        return self.first < 1

    @property
    def guesses(self) -> bool:
        """Whether any step verifies a guess; where none does, every step is a plain one."""
        return (self.drafts and self.largest_size > 1) or self.lookup is not None

    @property
    def width(self) -> int:
        """The most nodes that a level expands."""
        return self.expand[-1][0]

    @property
    def largest_size(self) -> int:
        """The most nodes that are verified."""
        return self.sizes[-1]

    @property
    def most_lacking(self) -> int:
        """The most tokens of the text that a step's first draft pass takes, the root included."""
        return LACKING if self.lookup is None else LACKING_BEHIND_LOOKUPS

    @property
    def most_drafted(self) -> int:
        """The most nodes of a step's draft passes, the text's included."""
        return self.most_lacking + self.most_drafted_below

    @property
    def most_drafted_below(self) -> int:
        """The most nodes of a step's draft passes after the first."""
        return (self.depth - 1) * self.width

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
        if self.lookup is not None:
            document["lookup"] = self.lookup.document()
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
        pause, lookup = None, None
        if "pause" in fields.mapping:
            section = fields.section("pause")
            pause = Pause(section.integer("misses", 1), tuple(section.integers("steps", 1)))
        if "lookup" in fields.mapping:
            lookup = LookupFirst.from_fields(fields.section("lookup"))
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
                lookup=lookup,
            )
        except SequoiaError as error:
            if str(error).startswith(fields.where):
                raise
            raise SequoiaError(f"{fields.where}: {error}") from None


@dataclass(frozen=True)
class LookupFirst:
    """When a step verifies what a lookup guesses, and drafts nothing.

    A lookup's guesses take no time, so each step asks for them first. What the draft would bring
    instead is only known on average; so they are verified where they are worth more than that.

    Attributes:
        policy: how the lookup's trees grow. It has neither a pause nor a lookup.
        worth: for each of its sizes but the first, ascending: a tree whose target pass has so many
            nodes is verified if the number of its guesses that are expected to be accepted is at
            least this.

    Raises:
        SequoiaError: the two do not go together.
    """

    policy: Policy
    worth: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        policy = self.policy
        if policy.pause is not None or policy.lookup is not None or not policy.drafts:
            raise SequoiaError(
                "policy: lookup: found a pause, a lookup or a first threshold of 1, expected none "
                "of them"
            )
        sizes = [size for size, _ in self.worth]
        if sizes != list(policy.sizes[1:]):
            raise SequoiaError(
                f"policy: lookup: worth: found sizes {sizes}, expected {list(policy.sizes[1:])}"
            )
        if any(not least >= 0 for _, least in self.worth):
            raise SequoiaError("policy: lookup: worth: found a number that is not at least 0")

    def takes(self, offered: int, expected: float) -> bool:
        """Whether a step verifies the tree that the lookup has grown.

        Args:
            offered: its guesses.
            expected: how many of them are expected to be accepted.
        """
        return offered > 0 and expected >= self._least[self.policy.size_for(offered + 1)]

    @cached_property
    def _least(self) -> dict[int, float]:
        return dict(self.worth)

    def document(self) -> dict[str, Any]:
        """As the plan's file has it."""
        worth = {str(size): least for size, least in self.worth}
        return {"worth": worth, **self.policy.document()}

    @classmethod
    def from_fields(cls, fields: Fields) -> LookupFirst:
        """Read it from a plan's file.

        Raises:
            SequoiaError: see `Policy.from_fields`.
        """
        policy, worth = Policy.from_fields(fields), fields.section("worth")
        if not all(str(size).isdecimal() for size in worth.mapping):
            raise fields.fail("worth", "a number for each size of a target pass")
        numbers = sorted((int(size), worth.number(size, 0.0)) for size in worth.mapping)
        try:
            return cls(policy, tuple(numbers))
        except SequoiaError as error:
            raise SequoiaError(f"{fields.where}: {error}") from None
