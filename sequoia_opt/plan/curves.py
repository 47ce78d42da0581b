"""How long one model's forward pass takes, by number of tokens: measured curves.

Knows how to interpolate between measured points, and refuses to go past them. Knows nothing of
trees, and does no measuring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import rounded
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.draft_passes import KINDS, NO_PASSES, OF_HEAD, PER_BLOCK, PER_LEVEL
from sequoia_opt.types import FloatArray

QUANTITIES = ("median_ms", "low_ms", "high_ms")
MEAN = "mean_ms"
UNSURE = 0.5  # a median whose interval is wider than this share of it is not to be trusted


@dataclass
class Curve:
    """Latency of one forward pass over `batch` sequences with `context` cached tokens each.

    Attributes:
        tokens: measured numbers of query tokens per sequence, ascending, [points].
        median_ms: median time at each, [points].
        low_ms, high_ms: the 95% interval of that median, [points].
        mean_ms: mean time at each, [points]; None if only the medians are known.
        extra: fields of the file that this program does not know; saving keeps them.
    """

    batch: int
    context: int
    tokens: list[int]
    median_ms: FloatArray
    low_ms: FloatArray
    high_ms: FloatArray
    mean_ms: FloatArray | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def expected_ms(self) -> FloatArray:
        """What a forward pass takes on average, [points]: a text's time is a sum."""
        return self.median_ms if self.mean_ms is None else self.mean_ms

    def unsure(self) -> list[int]:
        """The numbers of tokens whose time is not to be trusted, since it varied too much."""
        is_wide = self.high_ms - self.low_ms > UNSURE * self.median_ms
        return [tokens for tokens, wide in zip(self.tokens, is_wide, strict=True) if wide]


@dataclass
class ModelLatency:
    """One model's measured latency.

    Attributes:
        model: name of the model.
        fingerprint: of its config and weights.
        curves: one for each batch and context; none of what makes no forward pass. Tokens of a
            block drafter's pass are the positions that it guesses.
        passes: of a draft, see `draft_passes.PER_LEVEL`.
        extra: `path`, the model's folder, if it has one; and fields of the file that this
            program does not know. Saving keeps them.
    """

    model: str
    fingerprint: str
    curves: list[Curve]
    extra: dict[str, Any] = field(default_factory=dict)
    passes: str = PER_LEVEL

    @property
    def is_free(self) -> bool:
        """Whether it makes no forward pass, as a lookup does: then it takes no time."""
        return self.passes == NO_PASSES

    @property
    def reads_committed(self) -> bool:
        """Whether a static tree's first pass reads as many tokens as a step commits at most, as
        that of a head on the target does."""
        return self.passes == OF_HEAD

    @property
    def drafts_block(self) -> bool:
        """Whether one forward pass guesses all positions of a step. Of fewer positions than were
        measured it takes as long as of the fewest: what is not needed is left unused."""
        return self.passes == PER_BLOCK

    def at(
        self,
        tokens: FloatArray | list[int],
        context: float,
        batch: int = 1,
        of: str = "expected_ms",
    ) -> FloatArray:
        """Milliseconds of a forward pass for each number of query tokens, [tokens].

        Interpolates linearly between measured points, in tokens and in context length, and
        never goes past them.

        Args:
            tokens: query tokens per sequence, [tokens].
            of: name of one of a curve's times.

        Raises:
            SequoiaError: a point outside the measured range.
        """
        counts = np.asarray(tokens, dtype=np.float64)
        if self.is_free:
            return np.zeros(counts.shape)
        shares = self.between(context, batch)
        first = max(curve.tokens[0] for curve, _ in shares)
        if self.drafts_block:
            counts = np.maximum(counts, first)
        last = min(curve.tokens[-1] for curve, _ in shares)
        for value in (counts.min(initial=first), counts.max(initial=last)):
            if not first <= value <= last:
                raise SequoiaError(
                    f"{self.model}: measured for {first} to {last} tokens per forward pass, not "
                    f"for {value:g}; profile with more --tokens"
                )
        return np.asarray(
            sum(share * np.interp(counts, c.tokens, getattr(c, of)) for c, share in shares)
        )

    def between(self, context: float, batch: int = 1) -> list[tuple[Curve, float]]:
        """The curves around a context length, and each one's share in a linear interpolation.

        Raises:
            SequoiaError: a batch or a context that was not measured.
        """
        curves = self.of_batch(batch)
        contexts = [curve.context for curve in curves]
        if not contexts[0] <= context <= contexts[-1]:
            raise SequoiaError(
                f"{self.model}: measured for contexts of {contexts[0]} to {contexts[-1]} tokens, "
                f"not for {context:g}; profile with --contexts or choose another --context"
            )
        right = int(np.searchsorted(contexts, context))
        if contexts[right] == context:
            return [(curves[right], 1.0)]
        share = (context - contexts[right - 1]) / (contexts[right] - contexts[right - 1])
        return [(curves[right - 1], 1 - share), (curves[right], share)]

    def largest(self, batch: int = 1) -> int:
        """The largest number of tokens that was measured at every context.

        Raises:
            SequoiaError: a batch that was not measured.
        """
        return min(curve.tokens[-1] for curve in self.of_batch(batch))

    def of_batch(self, batch: int) -> list[Curve]:
        """The curves of a batch, in the order of their contexts.

        Raises:
            SequoiaError: a batch that was not measured.
        """
        curves = sorted((c for c in self.curves if c.batch == batch), key=lambda c: c.context)
        if not curves:
            batches = sorted({curve.batch for curve in self.curves})
            raise SequoiaError(
                f"{self.model}: measured for batches {batches}, not for {batch}; "
                "profile with --batches"
            )
        return curves

    def document(self) -> dict[str, Any]:
        """The model's section of a profile."""
        if self.is_free:
            latency: dict[str, Any] = {}
        else:
            latency = {"latency": [_curve_document(curve) for curve in self.curves]}
        passes = {} if self.passes == PER_LEVEL else {"passes": self.passes}
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            **passes,
            **latency,
            **self.extra,
        }

    @classmethod
    def read(cls, fields: Fields) -> ModelLatency:
        """The model that a section of a profile describes.

        Raises:
            SequoiaError: a malformed section, two curves of one batch and context, or no curve
                of batch 1 though it makes forward passes.
        """
        passes = fields.text("passes", PER_LEVEL)
        if passes not in KINDS:
            raise fields.fail("passes", f"{', '.join(KINDS[:-1])} or {KINDS[-1]}")
        is_free = passes == NO_PASSES
        if is_free and fields.mapping.get("latency"):
            raise fields.fail("latency", f"none, since `passes` is {NO_PASSES}")
        curves = [] if is_free else [_read_curve(c) for c in fields.sections("latency")]
        keys = [(curve.batch, curve.context) for curve in curves]
        if len(set(keys)) < len(keys):
            raise SequoiaError(f"{fields.where}: latency: two curves of one batch and context")
        if not is_free and not any(batch == 1 for batch, _ in keys):
            raise SequoiaError(f"{fields.where}: latency: no curve of batch 1")
        fields.text("path", "")  # stays in `extra`, for exports
        return cls(
            model=fields.text("model"),
            fingerprint=fields.text("fingerprint", ""),
            curves=curves,
            extra=unknown_fields(fields, "model", "fingerprint", "latency", "passes"),
            passes=passes,
        )


def _curve_document(curve: Curve) -> dict[str, Any]:
    """A curve as a profile has it."""
    return {
        "batch": curve.batch,
        "context": curve.context,
        "tokens": curve.tokens,
        **{name: rounded(getattr(curve, name), 5) for name in QUANTITIES},
        **({} if curve.mean_ms is None else {MEAN: rounded(curve.mean_ms, 5)}),
        **curve.extra,
    }


def _read_curve(fields: Fields) -> Curve:
    tokens = fields.integers("tokens", minimum=1)
    if not tokens or any(b <= a for a, b in pairwise(tokens)):
        raise fields.fail("tokens", "ascending numbers of tokens")
    names = [*QUANTITIES, MEAN] if MEAN in fields.mapping else QUANTITIES
    quantities = {name: fields.numbers(name, 0.0) for name in names}
    for name, values in quantities.items():
        if values.size != len(tokens):
            raise fields.fail(name, f"{len(tokens)} numbers, one for each of `tokens`")
    for name, values in quantities.items():
        if (values <= 0).any():
            raise fields.fail(name, "times above 0")
    for first, second in (("low_ms", "median_ms"), ("median_ms", "high_ms")):
        if (quantities[first] > quantities[second]).any():
            raise fields.fail(first, f"nothing above {second}")
    return Curve(
        batch=fields.integer("batch", minimum=1),
        context=fields.integer("context"),
        tokens=tokens,
        **quantities,
        extra=unknown_fields(fields, "batch", "context", "tokens", *QUANTITIES, MEAN),
    )


def unknown_fields(fields: Fields, *known: str) -> dict[str, Any]:
    """The fields of a mapping that this program does not know."""
    return {key: value for key, value in fields.mapping.items() if key not in known}
