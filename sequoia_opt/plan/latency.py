"""The latency profile of a pair of models on a machine, its file, and the time of a step.

Knows the curves of both models and the overhead of a step. Knows nothing of acceptance, and does
no measuring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document, rounded, write_document
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.curves import UNSURE, ModelLatency, unknown_fields
from sequoia_opt.plan.draft_passes import FIRST_WIDTH, draft_passes
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import GREEDY

FORMAT, VERSION = "sequoia-opt/profile", 1
TOP_P = "-top-p"  # ending of the overhead of a verifier whose target distribution is cut


def overhead_name(sampling: Sampling) -> str:
    """The name that a profile gives to the overhead of decoding with this sampling.

    Only top-p is measured, which sorts the vocabulary; the other cuts take no longer.
    """
    if sampling.temperature == 0:
        return GREEDY
    return sampling.verifier + TOP_P if sampling.is_truncated else sampling.verifier


@dataclass(frozen=True)
class Overhead:
    """The part of a step outside the forward passes, in milliseconds, for one verifier.

    Attributes:
        constant_ms: every step, also one of the one-node tree.
        per_token_ms: for each node of the tree.
        per_level_ms: for each draft forward pass.
        drafting_ms: every step that drafts. After a target forward pass the draft's weights have
            left the cache, and its first passes take longer than they do by themselves.
        change_ms: every step whose target pass has another size than the one before, as steps of
            adaptive plans do: llama.cpp builds its graph anew then.
        catch_up_ms: every step of an adaptive plan whose first draft pass also reads tokens that
            the draft's cache lacks, besides what the longer pass takes by itself.
        extra: fields of the file that this program does not know; saving keeps them.
    """

    constant_ms: float
    per_token_ms: float
    per_level_ms: float
    drafting_ms: float = 0.0
    change_ms: float = 0.0
    catch_up_ms: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def at(self, size: int, passes: int) -> float:
        """Milliseconds for a tree of `size` nodes that takes `passes` draft forward passes."""
        drafting = self.drafting_ms + self.per_level_ms * passes if passes else 0.0
        return self.constant_ms + self.per_token_ms * size + drafting

    def document(self) -> dict[str, Any]:
        """The overhead's section of a profile."""
        return {
            "constant_ms": rounded(self.constant_ms),
            "per_token_ms": rounded(self.per_token_ms),
            "per_level_ms": rounded(self.per_level_ms),
            "drafting_ms": rounded(self.drafting_ms),
            **({"change_ms": rounded(self.change_ms)} if self.change_ms else {}),
            **({"catch_up_ms": rounded(self.catch_up_ms)} if self.catch_up_ms else {}),
            **self.extra,
        }

    @classmethod
    def read(cls, fields: Fields) -> Overhead:
        """The overhead that a section of a profile describes.

        Raises:
            SequoiaError: a malformed section.
        """
        return cls(
            constant_ms=fields.number("constant_ms"),
            per_token_ms=fields.number("per_token_ms"),
            per_level_ms=fields.number("per_level_ms"),
            drafting_ms=fields.number("drafting_ms", default=0.0),
            change_ms=fields.number("change_ms", default=0.0),
            catch_up_ms=fields.number("catch_up_ms", default=0.0),
            extra=unknown_fields(
                fields,
                "constant_ms",
                "per_token_ms",
                "per_level_ms",
                "drafting_ms",
                "change_ms",
                "catch_up_ms",
            ),
        )


@dataclass
class LatencyProfile:
    """The measured latencies of a pair of models on a machine.

    Attributes:
        hardware, software, engine: the machine, the versions and the settings of the measurement.
        target, draft: the models' curves.
        overhead: by name: the verifier, or `greedy` for temperature 0; with the ending `-top-p`
            if the target's distribution is cut, which takes a sort.
        disturbed: other work of the machine during the measurement that made times longer.
        date: when the measurement ended, ISO 8601, UTC; empty if the file does not say.
        extra: fields of the file that this program does not know; saving keeps them.
    """

    hardware: dict[str, Any]
    software: dict[str, Any]
    engine: dict[str, Any]
    target: ModelLatency
    draft: ModelLatency
    overhead: dict[str, Overhead]
    disturbed: str = ""
    date: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def contexts(self, batch: int = 1) -> tuple[int, int]:
        """Smallest and largest context that was measured for both models with this batch.

        Raises:
            SequoiaError: a batch that was not measured.
        """
        contexts = [[curve.context for curve in m.of_batch(batch)] for m in self._models]
        return max(map(min, contexts)), min(map(max, contexts))

    def measured_contexts(self, batch: int = 1) -> list[int]:
        """The contexts measured with this batch that both models' curves reach, ascending.

        Raises:
            SequoiaError: a batch that was not measured.
        """
        low, high = self.contexts(batch)
        measured = {curve.context for m in self._models for curve in m.of_batch(batch)}
        return sorted(context for context in measured if low <= context <= high)

    def batches(self) -> list[int]:
        """The batches measured for both models, ascending."""
        batches = ({curve.batch for curve in model.curves} for model in self._models)
        return sorted(set.intersection(*batches))

    def doubts(self) -> list[str]:
        """Reasons to trust its times less than usual, one line each."""
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
    def _models(self) -> tuple[ModelLatency, ...]:
        """Those that make forward passes."""
        return tuple(model for model in (self.target, self.draft) if not model.is_free)

    def overhead_for(self, name: str) -> Overhead:
        """The overhead of that name, see `overhead_name`.

        Raises:
            SequoiaError: it was not measured.
        """
        if name not in self.overhead:
            raise SequoiaError(
                f"the profile has no overhead for verifier {name!r}, only for "
                f"{', '.join(sorted(self.overhead))}; profile again with "
                f"--verifiers {name.removesuffix(TOP_P)}"
            )
        return self.overhead[name]

    @property
    def first_pass(self) -> int:
        """Tokens of the draft's first forward pass in most steps; see `draft_passes`."""
        first = self.engine.get("first_pass_tokens")
        return first if isinstance(first, int) and first > 0 else FIRST_WIDTH

    def draft_passes(self, tree: TokenTree) -> list[int]:
        """Tokens of each forward pass of the draft in one step; see `draft_passes`."""
        return list(draft_passes(tree, self.first_pass, self.draft.passes))

    def step_ms(
        self,
        tree: TokenTree,
        overhead: str,
        context: float,
        batch: int = 1,
        of: str = "expected_ms",
    ) -> float:
        """t(T, L): milliseconds of a whole step with `tree` at context length `context`.

        Args:
            overhead: name of the overhead that applies, see `overhead_name`.
            of: name of one of a curve's times; the overhead has only one value.

        Raises:
            SequoiaError: the profile has no point for the step, or no such overhead.
        """
        overhead_ms = self.overhead_for(overhead).at(tree.size, len(self.draft_passes(tree)))
        return self.forwards_ms(tree, context, batch, of) + overhead_ms

    def forwards_ms(
        self, tree: TokenTree, context: float, batch: int = 1, of: str = "expected_ms"
    ) -> float:
        """Milliseconds of a step's forward passes: the target's and all of the draft's.

        Raises:
            SequoiaError: the profile has no point for one of them.
        """
        passes = self.draft_passes(tree)
        milliseconds = self.target.at([tree.size], context, batch, of).sum()
        if passes:
            milliseconds += self.draft.at(passes, context, batch, of).sum()
        return float(milliseconds)

    def document(self) -> dict[str, Any]:
        """The profile's file as a mapping."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "hardware": self.hardware,
            "software": self.software,
            "engine": self.engine,
            "target": self.target.document(),
            "draft": self.draft.document(),
            "overhead": {name: overhead.document() for name, overhead in self.overhead.items()},
            **({"disturbed": self.disturbed} if self.disturbed else {}),
            **({"date": self.date} if self.date else {}),
            **self.extra,
        }

    def save(self, path: str | Path) -> None:
        """Write the profile's file atomically."""
        write_document(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> LatencyProfile:
        """Read a profile.

        Raises:
            SequoiaError: the file is missing or malformed, or has times that are not above 0.
        """
        document = read_document(path, FORMAT, VERSION)
        fields = Fields(document, str(path))
        sections = ("hardware", "software", "engine", "target", "draft", "overhead")
        overhead = fields.section("overhead")
        _check_engine(fields.section("engine"))
        return cls(
            hardware=fields.section("hardware").mapping,
            software=fields.section("software").mapping,
            engine=fields.section("engine").mapping,
            target=ModelLatency.read(fields.section("target")),
            draft=ModelLatency.read(fields.section("draft")),
            overhead={name: Overhead.read(overhead.section(name)) for name in overhead.mapping},
            disturbed=fields.text("disturbed", ""),
            date=fields.text("date", ""),
            extra=unknown_fields(fields, "format", "version", "disturbed", "date", *sections),
        )


def _check_engine(engine: Fields) -> None:
    """Check the settings of the measurement that this program reads.

    Raises:
        SequoiaError: a setting has the wrong type or is out of range.
    """
    compiled = engine.mapping.get("compile", False)
    is_list_of_roles = isinstance(compiled, list) and all(isinstance(r, str) for r in compiled)
    if not isinstance(compiled, bool) and not is_list_of_roles:
        raise engine.fail("compile", "true, false or a list of models")
    if "compile_gain" in engine.mapping:
        gains = engine.section("compile_gain")
        for role in gains.mapping:
            gains.mapping[role] = gains.number(role, 0.0)
    for key in ("dtype", "offload"):
        engine.text(key, "")
