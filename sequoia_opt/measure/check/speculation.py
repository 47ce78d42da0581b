"""Whether a server speculates at all, and whether its guesses are ever right.

Knows counts of guesses. Knows nothing of texts.
"""

from __future__ import annotations

from typing import Any

from sequoia_opt.measure.check.counters import ReportedSettings
from sequoia_opt.measure.check.dialects import Guesses
from sequoia_opt.measure.check.verdict import Finding, Status

SPECULATION, ACCEPTANCE = "speculation", "acceptance"
FEW_GUESSES = 50  # fewer say nothing about acceptance
HARDLY_ANY, HARDLY_ANY_PER_STEP = 0.02, 0.05
"""Accepted guesses, by guess and by step, below which a draft does not match the target at all.

A draft with the target's tokenizer is right more often, however poor it is: guessing frequent
tokens alone is enough for that.
"""


def check_speculation(
    guesses: Guesses | None, settings: ReportedSettings, is_expected: bool, new_tokens: int
) -> Finding:
    """Whether guesses were made, as they should or should not.

    Args:
        guesses: made while the texts of this run were decoded; None if the server does not tell.
        new_tokens: of these texts.
    """
    if guesses is None:
        return Finding(
            SPECULATION,
            Status.UNCHECKED,
            "the server does not report how many tokens it guesses; vLLM does at /metrics, "
            "llama.cpp and SGLang in their answers",
        )
    numbers: dict[str, Any] = {"drafted": guesses.drafted, "expected": is_expected}
    counted = f"{guesses.drafted} tokens were guessed while {new_tokens} were decoded"
    if is_expected and not guesses.drafted:
        sentence = f"speculation is not on: {counted}; {_why_not(settings)}"
        return Finding(SPECULATION, Status.FAILED, sentence, numbers)
    if not is_expected and guesses.drafted:
        sentence = f"speculation is on although it should not be: {counted}"
        return Finding(SPECULATION, Status.FAILED, sentence, numbers)
    state = "on" if is_expected else "off, as it should be"
    return Finding(SPECULATION, Status.OK, f"speculation is {state}: {counted}", numbers)


def _why_not(settings: ReportedSettings) -> str:
    """The likely reason why a server does not guess."""
    was_asked_for = settings.kind not in (None, "none", "")
    if settings.is_loaded is False and was_asked_for:
        return (
            f"it was started for {settings.kind}, but its draft was not loaded; the likely cause "
            "is a draft with another tokenizer, and its log says so"
        )
    if settings.kind == "none":
        return "it was started without speculation; llama-server needs --spec-type besides a draft"
    if was_asked_for and not str(settings.kind).startswith("draft"):
        return f"{settings.kind} found nothing to guess in these texts; try --prompts of your own"
    return "see in its log whether the draft was loaded; one with another tokenizer is refused"


def check_acceptance(guesses: Guesses | None) -> Finding:
    """Whether guesses are right at least now and then."""
    if guesses is None or guesses.drafted < FEW_GUESSES:
        count = "an unknown number of" if guesses is None else str(guesses.drafted)
        sentence = f"{count} guesses are too few to judge their acceptance"
        return Finding(ACCEPTANCE, Status.UNCHECKED, sentence)
    by_guess = guesses.accepted / guesses.drafted
    by_step = guesses.accepted / guesses.steps if guesses.steps else 0.0
    numbers: dict[str, Any] = {
        "drafted": guesses.drafted,
        "accepted": guesses.accepted,
        "steps": guesses.steps,
        "acceptance": by_guess,
        "accepted_per_step": by_step,
    }
    counted = f"{guesses.accepted} of {guesses.drafted} guesses were accepted"
    if by_guess < HARDLY_ANY and by_step < HARDLY_ANY_PER_STEP:
        sentence = (
            f"{counted}; the likely cause is a draft with another tokenizer than the target's, "
            "or one of another model family"
        )
        return Finding(ACCEPTANCE, Status.FAILED, sentence, numbers)
    sentence = f"{counted} ({100 * by_guess:.0f}%), {by_step:.2f} in each step"
    return Finding(ACCEPTANCE, Status.OK, sentence, numbers)
