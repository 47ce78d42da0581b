"""How long one forward takes on a machine, by number of tokens: measured curves and their file.

Knows how to interpolate between measured points, and refuses to go past them. Knows nothing of
acceptance, and does no measuring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document, rounded, write_document
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

FORMAT, VERSION = "sequoia-opt/profile", 1
QUANTITIES = ("median_ms", "low_ms", "high_ms")
GREEDY = "greedy"
TOP_P = "-top-p"  # ending of the overhead of a verifier whose target is cut
UNSURE = 0.5  # of a median: where its interval is wider, it is not to be trusted


def overhead_name(
    verifier: str, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> str:
    """What a profile calls the overhead of decoding so. Of all cuts of the target's distribution
    only top-p's is measured, which sorts the vocabulary; others take no longer."""
    if temperature == 0:
        return GREEDY
    return verifier + (TOP_P if top_p < 1 or top_k or min_p else "")


@dataclass
class Curve:
    """Latency of one forward of `batch` sequences with `context` cached tokens each.

    Attributes:
        tokens: measured numbers of query tokens per sequence, ascending.
        median_ms: median time at each.
        low_ms, high_ms: the 95 % interval of that median.
    """

    batch: int
    context: int
    tokens: list[int]
    median_ms: FloatArray
    low_ms: FloatArray
    high_ms: FloatArray
    extra: dict[str, Any] = field(default_factory=dict)

    def unsure(self) -> list[int]:
        """The numbers of tokens whose time is not to be trusted: it spread too far."""
        wide = self.high_ms - self.low_ms > UNSURE * self.median_ms
        return [count for count, is_wide in zip(self.tokens, wide, strict=True) if is_wide]


@dataclass
class ModelLatency:
    """One model's measured latency.

    Attributes:
        model: name of the model.
        fingerprint: of its config and weights.
        curves: one for each batch and context.
        extra: `path`, where the model's folder is, if it is one; and fields of the file that
            this program does not know. They are kept.
    """

    model: str
    fingerprint: str
    curves: list[Curve]
    extra: dict[str, Any] = field(default_factory=dict)

    def at(
        self, tokens: FloatArray | list[int], context: float, batch: int = 1, of: str = "median_ms"
    ) -> FloatArray:
        """Milliseconds of a forward for each number of query tokens.

        Linear between measured points, in tokens and in context; never past them.

        Raises:
            SequoiaError: a point outside the measured range.
        """
        wanted = np.asarray(tokens, dtype=np.float64)
        parts = self.between(context, batch)
        first = max(curve.tokens[0] for curve, _ in parts)
        last = min(curve.tokens[-1] for curve, _ in parts)
        for value in (wanted.min(initial=first), wanted.max(initial=last)):
            if not first <= value <= last:
                raise SequoiaError(
                    f"{self.model}: measured for {first} to {last} tokens a forward, not for "
                    f"{value:g}; profile with more --tokens"
                )
        return np.asarray(
            sum(share * np.interp(wanted, c.tokens, getattr(c, of)) for c, share in parts)
        )

    def between(self, context: float, batch: int = 1) -> list[tuple[Curve, float]]:
        """The curves around a context, and the share of each in a linear interpolation.

        Raises:
            SequoiaError: a batch or a context that was not measured.
        """
        curves = self._of_batch(batch)
        contexts = [c.context for c in curves]
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
        """The largest number of tokens measured at every context.

        Raises:
            SequoiaError: a batch that was not measured.
        """
        return min(curve.tokens[-1] for curve in self._of_batch(batch))

    def _of_batch(self, batch: int) -> list[Curve]:
        """The curves of a batch, by context."""
        curves = sorted((c for c in self.curves if c.batch == batch), key=lambda c: c.context)
        if not curves:
            batches = sorted({c.batch for c in self.curves})
            raise SequoiaError(
                f"{self.model}: measured for batches {batches}, not for {batch}; "
                "profile with --batches"
            )
        return curves


@dataclass(frozen=True)
class Overhead:
    """All of a step that is no forward, in milliseconds, for one verifier.

    Attributes:
        constant_ms: every step, also one of the one-node tree.
        per_token_ms: for each node of the tree.
        per_level_ms: for each draft forward.
        drafting_ms: every step that drafts at all. After a target forward the draft's weights
            have left the cache, and its first forwards take longer than they do by themselves.
    """

    constant_ms: float
    per_token_ms: float
    per_level_ms: float
    drafting_ms: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def at(self, size: int, levels: int) -> float:
        """Milliseconds for a tree of `size` nodes that takes `levels` draft forwards."""
        drafting = self.drafting_ms + self.per_level_ms * levels if levels else 0.0
        return self.constant_ms + self.per_token_ms * size + drafting


@dataclass
class LatencyProfile:
    """The measured latencies of a pair of models on a machine.

    Attributes:
        hardware, software, engine: what was measured, on what, and how.
        target, draft: the models' curves.
        overhead: by verifier; `greedy` for temperature 0, and with `-top-p` where the target's
            distribution is cut, which takes a sort.
        disturbed: what else the machine did meanwhile that makes times longer.
        extra: fields of the file that this program does not know; they are kept.
    """

    hardware: dict[str, Any]
    software: dict[str, Any]
    engine: dict[str, Any]
    target: ModelLatency
    draft: ModelLatency
    overhead: dict[str, Overhead]
    disturbed: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def contexts(self, batch: int = 1) -> tuple[int, int]:
        """Smallest and largest context measured for both models with this batch.

        Raises:
            SequoiaError: a batch that was not measured.
        """
        ranges = [[c.context for c in m._of_batch(batch)] for m in self._models]
        return max(min(r) for r in ranges), min(max(r) for r in ranges)

    def measured_contexts(self, batch: int = 1) -> list[int]:
        """The contexts measured with this batch that both models' curves reach, ascending.

        Raises:
            SequoiaError: a batch that was not measured.
        """
        low, high = self.contexts(batch)
        measured = {c.context for m in self._models for c in m._of_batch(batch)}
        return sorted(context for context in measured if low <= context <= high)

    def batches(self) -> list[int]:
        """The batches measured for both models, ascending."""
        return sorted(set.intersection(*({c.batch for c in m.curves} for m in self._models)))

    def doubts(self) -> list[str]:
        """What makes its times less than they seem, a line each."""
        lines = []
        if self.disturbed:
            lines.append(f"disturbed while it was measured: {self.disturbed}")
        unsure = [
            f"{role}{f' in batches of {curve.batch}' if curve.batch > 1 else ''} at "
            f"{curve.context}: {', '.join(map(str, curve.unsure()))}"
            for role, model in (("target", self.target), ("draft", self.draft))
            for curve in model.curves
            if curve.unsure()
        ]
        if unsure:
            lines.append(
                f"not to be trusted, with intervals wider than {UNSURE:.0%} of the median (tokens "
                f"by model and context): {'; '.join(unsure)}"
            )
        return lines

    @property
    def _models(self) -> tuple[ModelLatency, ModelLatency]:
        return self.target, self.draft

    def overhead_for(self, verifier: str) -> Overhead:
        """The overhead of a verifier.

        Raises:
            SequoiaError: it was not measured.
        """
        if verifier not in self.overhead:
            raise SequoiaError(
                f"the profile has no overhead for verifier {verifier!r}, only for "
                f"{', '.join(sorted(self.overhead))}; profile again with "
                f"--verifiers {verifier.removesuffix(TOP_P)}"
            )
        return self.overhead[verifier]

    def step_ms(
        self, tree: TokenTree, verifier: str, context: float, batch: int = 1, of: str = "median_ms"
    ) -> float:
        """t(T, L): milliseconds of a whole step with `tree` at `context` cached tokens."""
        overhead = self.overhead_for(verifier).at(tree.size, len(draft_passes(tree)))
        return self.forwards_ms(tree, context, batch, of) + overhead

    def forwards_ms(
        self, tree: TokenTree, context: float, batch: int = 1, of: str = "median_ms"
    ) -> float:
        """Milliseconds of a step's forwards: the target's and every draft level's."""
        forwards = self.target.at([tree.size], context, batch, of).sum()
        if draft_passes(tree):
            forwards += self.draft.at(list(draft_passes(tree)), context, batch, of).sum()
        return float(forwards)

    def document(self) -> dict[str, Any]:
        """The profile's file as a mapping."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "hardware": self.hardware,
            "software": self.software,
            "engine": self.engine,
            "target": _model_document(self.target),
            "draft": _model_document(self.draft),
            "overhead": {
                name: {
                    "constant_ms": rounded(o.constant_ms),
                    "per_token_ms": rounded(o.per_token_ms),
                    "per_level_ms": rounded(o.per_level_ms),
                    "drafting_ms": rounded(o.drafting_ms),
                    **o.extra,
                }
                for name, o in self.overhead.items()
            },
            **({"disturbed": self.disturbed} if self.disturbed else {}),
            **self.extra,
        }

    def save(self, path: str | Path) -> None:
        """Write the profile's file, in one piece."""
        write_document(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> LatencyProfile:
        """Read a profile.

        Raises:
            SequoiaError: missing, malformed, or with times that cannot be.
        """
        document = read_document(path, FORMAT, VERSION)
        fields = Fields(document, str(path))
        parsed = ("hardware", "software", "engine", "target", "draft", "overhead")
        overhead = fields.section("overhead")
        _check_engine(fields.section("engine"))
        return cls(
            hardware=fields.section("hardware").mapping,
            software=fields.section("software").mapping,
            engine=fields.section("engine").mapping,
            target=_read_model(fields.section("target")),
            draft=_read_model(fields.section("draft")),
            overhead={name: _read_overhead(overhead.section(name)) for name in overhead.mapping},
            disturbed=fields.text("disturbed", ""),
            extra=_unknown(fields, "format", "version", "disturbed", *parsed),
        )


def _check_engine(engine: Fields) -> None:
    """What the program itself reads of how a profile was measured must be readable."""
    compiled = engine.mapping.get("compile", False)
    named = isinstance(compiled, list) and all(isinstance(role, str) for role in compiled)
    if not isinstance(compiled, bool) and not named:
        raise engine.fail("compile", "true, false or a list of models")
    if "compile_gain" in engine.mapping:
        gains = engine.section("compile_gain")
        for role in gains.mapping:
            gains.mapping[role] = gains.number(role, 0.0)
    for key in ("dtype", "offload"):
        engine.text(key, "")


def _model_document(model: ModelLatency) -> dict[str, Any]:
    return {
        "model": model.model,
        "fingerprint": model.fingerprint,
        "latency": [
            {
                "batch": curve.batch,
                "context": curve.context,
                "tokens": curve.tokens,
                **{name: rounded(getattr(curve, name), 5) for name in QUANTITIES},
                **curve.extra,
            }
            for curve in model.curves
        ],
        **model.extra,
    }


def _read_model(fields: Fields) -> ModelLatency:
    curves = [_read_curve(curve) for curve in fields.sections("latency")]
    places = [(curve.batch, curve.context) for curve in curves]
    if len(set(places)) < len(places):
        raise SequoiaError(f"{fields.where}: latency: two curves of one batch and context")
    if not any(batch == 1 for batch, _ in places):
        raise SequoiaError(f"{fields.where}: latency: no curve of batch 1")
    fields.text("path", "")  # kept as it is, for exports
    return ModelLatency(
        model=fields.text("model"),
        fingerprint=fields.text("fingerprint", ""),
        curves=curves,
        extra=_unknown(fields, "model", "fingerprint", "latency"),
    )


def _read_curve(fields: Fields) -> Curve:
    tokens = fields.integers("tokens", minimum=1)
    if not tokens or any(b <= a for a, b in pairwise(tokens)):
        raise fields.fail("tokens", "ascending numbers of tokens")
    quantities = {name: fields.numbers(name, 0.0) for name in QUANTITIES}
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
        extra=_unknown(fields, "batch", "context", "tokens", *QUANTITIES),
    )


def _read_overhead(fields: Fields) -> Overhead:
    return Overhead(
        constant_ms=fields.number("constant_ms"),
        per_token_ms=fields.number("per_token_ms"),
        per_level_ms=fields.number("per_level_ms"),
        drafting_ms=fields.number("drafting_ms", default=0.0),
        extra=_unknown(fields, "constant_ms", "per_token_ms", "per_level_ms", "drafting_ms"),
    )


def _unknown(fields: Fields, *known: str) -> dict[str, Any]:
    """The fields of a mapping that this program does not know; they are kept."""
    return {key: value for key, value in fields.mapping.items() if key not in known}
