"""The page's sections of an adaptive plan: its rule, what replay showed of it, its calibration.

Knows policies and what the plan's file says of where it comes from. Computes nothing itself.
"""

from __future__ import annotations

from typing import NamedTuple

from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.judge import kind
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report import policy_figures
from sequoia_opt.report.section import Section


class Prediction(NamedTuple):
    """A predicted speed relative to plain decoding, with its 95% interval."""

    speedup: float
    low: float
    high: float


def compared_plans(tree: TokenTree) -> dict[str, Prediction]:
    """What the file predicts of each kind of plan; none where it does not say.

    Raises:
        SequoiaError: the file says it in another form.
    """
    origin = _origin(tree)
    if "compared" not in origin.mapping:
        return {}
    compared = origin.section("compared")
    sections = {str(name): compared.section(name) for name in compared.mapping}
    return {
        name: Prediction(*(section.number(key, 0.0) for key in Prediction._fields))
        for name, section in sections.items()
    }


def policy_sections(tree: TokenTree) -> list[Section]:
    """The sections of an adaptive plan, as far as its file has their numbers.

    Raises:
        SequoiaError: the file has them in another form.
    """
    origin = _origin(tree)
    sections = []
    if predictions := compared_plans(tree):
        documents = ""
        if "predicted_documents" in origin.mapping:
            documents = (
                f" on {origin.integer('predicted_documents')} documents that no policy was fitted "
                "to"
            )
        sections.append(
            Section(
                "plans",
                "The policy beside fixed plans",
                f"Predicted speeds relative to plain decoding{documents}, with 95% intervals. No "
                "chain is faster than the oracle's.",
                policy_figures.plans(predictions, kind(tree)),
            )
        )
    for key, name, title, text, axis in (
        ("sizes", "sizes", "Nodes of the target's passes",
         "How often a target pass of each size verified a step, in replay.", "nodes"),
        ("drafted_levels", "levels", "Where drafting stopped",
         "How many levels steps drafted before they stopped, in replay; 0 is a plain step.",
         "levels"),
    ):  # fmt: skip
        if key in origin.mapping:
            shares = origin.section(key)
            numbers = {str(number): shares.number(number, 0.0, 1.0) for number in shares.mapping}
            sections.append(Section(name, title, text, policy_figures.shares(numbers, axis)))
    if "reliability" in origin.mapping:
        sections.append(_reliability(origin.section("reliability")))
    return sections


def _reliability(reliability: Fields) -> Section:
    text = (
        "How often guesses were accepted, by the probability that the calibration gave them, on "
        "documents that it was not fitted to. A point is larger the more guesses it stands for."
    )
    if {"error", "draft_error"} <= set(reliability.mapping):
        text += (
            f" The expected error is {reliability.number('error'):.4f}; that of the draft's own "
            f"probabilities is {reliability.number('draft_error'):.4f}."
        )
    predicted, accepted = (reliability.numbers(key, 0.0, 1.0) for key in ("predicted", "accepted"))
    figure = policy_figures.reliability(
        predicted.tolist(), accepted.tolist(), reliability.integers("guesses")
    )
    return Section("reliability", "Reliability of the calibration", text, figure)


def _origin(tree: TokenTree) -> Fields:
    return Fields(tree.metadata.get("adaptive", {}), "tree: adaptive")
