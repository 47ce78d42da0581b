"""Statistics of decoding with adaptive plans, beside predictions: lines of `decode --stats`.

An adaptive plan offers only guesses that the draft finds likely, so they give no rates by rank
(`decode_stats` has those of fixed trees, in the same file). Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sequoia_opt.files.documents import rounded
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.decode_stats import FORMAT, GROWN_VERSION, Setting, is_grown, read_lines_of
from sequoia_opt.plan.growth import STOPS
from sequoia_opt.plan.growth_counts import BINS, GuessCounts
from sequoia_opt.plan.tree import TokenTree

Key = TypeVar("Key", int, str)
Counts = dict[int, int]


class Prediction(NamedTuple):
    """The statistics that a plan's file predicts by replay.

    Attributes:
        tokens_per_step: tokens that a step yields.
        sizes, levels: shares of steps by number of nodes and of levels, see `Growths`.
    """

    tokens_per_step: float
    sizes: dict[int, float]
    levels: dict[int, float]

    @classmethod
    def of(cls, tree: TokenTree) -> Prediction | None:
        """The prediction of an adaptive plan; None if its file has none.

        Raises:
            SequoiaError: the file has it in another form.
        """
        origin = tree.metadata.get("adaptive")
        if tree.predicted_tokens is None or origin is None:
            return None
        fields = Fields(origin, "tree: adaptive")
        return cls(
            tree.predicted_tokens, _shares(fields, "sizes"), _shares(fields, "drafted_levels")
        )

    def document(self) -> dict[str, Any]:
        """Its section of a line."""
        return {
            "tokens_per_step": self.tokens_per_step,
            "sizes": _by_text(self.sizes),
            "drafted_levels": _by_text(self.levels),
        }


@dataclass(frozen=True)
class Growths:
    """Statistics of the steps of texts that one adaptive plan decoded.

    Attributes:
        plan: fingerprint of the plan's file.
        context: mean context length.
        accepted: numbers of steps by number of accepted guesses.
        sizes: numbers of steps by number of nodes that the target verified, the root included.
        levels: numbers of steps by number of drafted levels.
        stops: numbers of steps by the reason why no further level was drafted.
        guesses: counts of verified guesses.
        predicted: the plan's prediction for such texts; None if it has none.
        texts: number of texts.
    """

    setting: Setting
    plan: str
    context: float
    accepted: Counts
    sizes: Counts
    levels: Counts
    stops: dict[str, int]
    guesses: GuessCounts = field(default_factory=GuessCounts)
    predicted: Prediction | None = None
    texts: int = 1

    @property
    def steps(self) -> int:
        """Number of steps."""
        return sum(self.accepted.values())

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step yielded: the accepted guesses, and one more."""
        accepted = sum(number * count for number, count in self.accepted.items())
        return 1 + accepted / self.steps if self.steps else 0.0

    def document(self) -> dict[str, Any]:
        """A line of a file, as a mapping."""
        guesses = {
            "verified": self.guesses.verified,
            "predicted": rounded(self.guesses.predicted),
            "accepted": self.guesses.accepted,
        }
        return {
            "format": FORMAT,
            "version": GROWN_VERSION,
            **self.setting.document(),
            "context": round(self.context, 1),
            "plan": self.plan,
            "accepted": _by_text(self.accepted),
            "sizes": _by_text(self.sizes),
            "drafted_levels": _by_text(self.levels),
            "stopped": dict(self.stops),
            "guesses": guesses,
            **({"predicted": self.predicted.document()} if self.predicted else {}),
        }

    @classmethod
    def together(cls, parts: Sequence[Growths]) -> Growths:
        """The sum of several texts of one setting and plan."""
        steps = sum(part.steps for part in parts)
        return replace(
            parts[0],
            context=sum(part.steps * part.context for part in parts) / max(steps, 1),
            accepted=_sum(part.accepted for part in parts),
            sizes=_sum(part.sizes for part in parts),
            levels=_sum(part.levels for part in parts),
            stops=_sum(part.stops for part in parts),
            guesses=GuessCounts.together(part.guesses for part in parts),
            texts=sum(part.texts for part in parts),
        )


def load(path: Path) -> tuple[list[Growths], int]:
    """The statistics of each adaptive plan and setting of a file, and the number of other texts.

    The other texts were decoded with fixed trees.

    Raises:
        SequoiaError: the file is missing, or holds something else.
    """
    lines = read_lines_of(path)
    texts = [_read(fields) for fields in lines if is_grown(fields)]
    groups: dict[Any, list[Growths]] = {}
    for text in texts:
        groups.setdefault((text.setting, text.plan, str(text.predicted)), []).append(text)
    return [Growths.together(group) for group in groups.values()], len(lines) - len(texts)


def _read(fields: Fields) -> Growths:
    guesses = fields.section("guesses")
    counts = GuessCounts(
        guesses.integers("verified"),
        guesses.numbers("predicted", 0.0).tolist(),
        guesses.integers("accepted"),
    )
    for name, values in vars(counts).items():
        if len(values) != BINS:
            raise guesses.fail(name, f"a list of {BINS} numbers")
    stops = fields.section("stopped")
    if not set(stops.mapping) <= set(STOPS):
        raise fields.fail("stopped", f"a number of steps by {', '.join(STOPS)}")
    predicted = None
    if "predicted" in fields.mapping:
        section = fields.section("predicted")
        predicted = Prediction(
            section.number("tokens_per_step", 0.0),
            _shares(section, "sizes"),
            _shares(section, "drafted_levels"),
        )
    return Growths(
        setting=Setting.read(fields),
        plan=fields.text("plan"),
        context=fields.number("context", 0.0),
        accepted=_counts(fields, "accepted"),
        sizes=_counts(fields, "sizes"),
        levels=_counts(fields, "drafted_levels"),
        stops={stop: stops.integer(stop) for stop in stops.mapping},
        guesses=counts,
        predicted=predicted,
    )


def _counts(fields: Fields, key: str) -> Counts:
    """Numbers of steps by whole numbers."""
    section = _by_number(fields, key)
    return {int(number): section.integer(number) for number in section.mapping}


def _shares(fields: Fields, key: str) -> dict[int, float]:
    """Shares of the steps by whole numbers."""
    section = _by_number(fields, key)
    return {int(number): section.number(number, 0.0, 1.0) for number in section.mapping}


def _by_number(fields: Fields, key: str) -> Fields:
    section = fields.section(key)
    if not all(str(number).isdecimal() and len(str(number)) < 10 for number in section.mapping):
        raise fields.fail(key, "a mapping of whole numbers")
    return section


def _by_text(numbers: Mapping[int, float]) -> dict[str, float]:
    return {str(number): value for number, value in sorted(numbers.items())}


def _sum(parts: Iterable[Mapping[Key, int]]) -> dict[Key, int]:
    total: Counter[Key] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
