"""All checks of a server, one after another.

Knows which checks there are and what each needs. Knows nothing of how they are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import dataset
from sequoia_opt.measure.check.counters import counters, reported_settings
from sequoia_opt.measure.check.dialects import Guesses
from sequoia_opt.measure.check.greedy import GreedyTexts, check_greedy, greedy_texts
from sequoia_opt.measure.check.reference import Reference, reference_for
from sequoia_opt.measure.check.sampled import SamplingSpec, check_sampled
from sequoia_opt.measure.check.server import Server
from sequoia_opt.measure.check.settings import Optimum, check_settings
from sequoia_opt.measure.check.speculation import check_acceptance, check_speculation
from sequoia_opt.measure.check.speed import check_speed
from sequoia_opt.measure.check.verdict import CHECKS, NEAR_TIE, Finding, Status
from sequoia_opt.measure.progress import Note, ProgressBar, no_note, no_progress_bar
from sequoia_opt.measure.records import Document

COMPARISONS = ("sampled", "speed")  # mean nothing between two models
OTHER_WEIGHTS = "the servers run different weights or number types, see greedy"


@dataclass(frozen=True, kw_only=True)
class CheckSpec:
    """What to check, and how.

    Attributes:
        prompts: texts to continue.
        new_tokens: length of each greedy text.
        samples: number of short texts that each server samples after each of the first prompts.
        temperature: temperature of the sampled texts, above 0.
        seed: the seed from which their seeds are drawn.
        repeats: how often each prompt is timed.
        parallel: requests at a time while sampling.
        near_tie: largest gap of log-probabilities that may be rounding, in nats.
        expects_speculation: whether the server should speculate.
        checks: which of `CHECKS` to run; settings are checked only with an optimum.
    """

    prompts: Sequence[str]
    new_tokens: int = 48
    samples: int = 200
    temperature: float = 0.8
    seed: int = 0
    repeats: int = 3
    parallel: int = 1
    near_tie: float = NEAR_TIE
    expects_speculation: bool = True
    checks: Collection[str] = CHECKS


@dataclass(frozen=True)
class Report:
    """The findings about a server.

    Attributes:
        server: what it is.
        reference: what it was compared with; empty if nothing could be compared.
        findings: one for each check.
    """

    server: dict[str, Any]
    reference: str
    findings: list[Finding]

    def fails(self, is_strict: bool) -> bool:
        """Whether a check failed or, if that counts, could not be made."""
        failing = {Status.FAILED, Status.UNCHECKED} if is_strict else {Status.FAILED}
        return any(finding.status in failing for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The report as a mapping."""
        return {
            "server": self.server,
            "reference": self.reference,
            "checks": [finding.document() for finding in self.findings],
        }


def load_prompts(path: Path, limit: int, note: Note = no_note) -> list[str]:
    """Up to `limit` prompts of a dataset file, spread over it.

    Raises:
        SequoiaError: the file cannot be read, or none of its prompts is text.
    """
    _, documents = dataset.load_dataset(path, note)
    texts = [document for document in documents if _opening(document)]
    if not texts:
        raise SequoiaError(
            f"{path}: found no prompt with text, expected some; conversations and token ids need "
            "a tokenizer, so write them as `prompt`"
        )
    return [_opening(document) for document in dataset.spread_over(texts, limit)]


def _opening(document: Document) -> str:
    """The text to continue: the prompt, or the first half of a whole text."""
    if document.messages or document.tokens:
        return ""
    text = document.text[: (len(document.text) + 1) // 2] if document.is_whole else document.prompt
    return text if text.strip() else ""


def check(
    server: Server,
    baseline: Server | None,
    spec: CheckSpec,
    optimum: Optimum | None = None,
    progress: ProgressBar = no_progress_bar,
) -> Report:
    """Run the checks.

    Args:
        baseline: a server of the same model without speculation, if there is one.
        optimum: the solved settings, if they are given.

    Raises:
        SequoiaError: a server does not answer, or refuses a request.
    """
    reference = reference_for(server, baseline, spec.prompts[0])
    before = counters(server)  # behind the texts that showed what the server can do
    texts = greedy_texts(server, reference, spec.prompts, spec.new_tokens, progress)
    after = counters(server)
    guesses = _guesses_in(texts)
    if guesses is None and before is not None and after is not None:
        guesses = after.guesses - before.guesses
    reported = reported_settings(server)
    tests: dict[str, Callable[[], Finding]] = {
        "greedy": lambda: check_greedy(
            server, reference, texts, spec.new_tokens, spec.near_tie, progress
        ),
        "sampled": lambda: check_sampled(server, reference, _sampling(spec), guesses, progress),
        "speed": lambda: check_speed(
            server, reference, spec.prompts, reported, spec.new_tokens, spec.repeats, progress
        ),
        "speculation": lambda: check_speculation(
            guesses, reported, spec.expects_speculation, spec.new_tokens * len(spec.prompts)
        ),
    }
    if spec.expects_speculation:
        tests["acceptance"] = lambda: check_acceptance(guesses)
    if optimum is not None:
        tests["settings"] = lambda: check_settings(optimum, reported, guesses)
    findings: list[Finding] = []
    for name in (name for name in tests if name in spec.checks):
        if name in COMPARISONS and any(finding.shows_other_weights for finding in findings):
            findings.append(Finding(name, Status.UNCHECKED, OTHER_WEIGHTS))
        else:
            findings.append(tests[name]())
    return Report(_description(server), _reference_text(reference), findings)


def _guesses_in(texts: GreedyTexts) -> Guesses | None:
    """The guesses that the answers report; None if they report none."""
    counts = [completion.reading.guesses for completion in texts.completions]
    known = [count for count in counts if count is not None]
    return sum(known, Guesses(0, 0, 0)) if len(known) == len(counts) else None


def _sampling(spec: CheckSpec) -> SamplingSpec:
    return SamplingSpec(
        prompts=spec.prompts,
        samples=spec.samples,
        temperature=spec.temperature,
        seed=spec.seed,
        parallel=spec.parallel,
        needs_guesses=spec.expects_speculation,
    )


def _description(server: Server) -> dict[str, Any]:
    return {"url": server.url, "kind": server.dialect.name, "model": server.model}


def _reference_text(reference: Reference | None) -> str:
    return "" if reference is None else reference.description
