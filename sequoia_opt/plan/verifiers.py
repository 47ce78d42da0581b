"""The verifiers by name: the one list that options, help, imports and checks derive from.

Knows what planning needs of each verifier. Knows nothing of how they verify: that is
`engine/verify`, whose registry a test holds equal to this one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sequoia_opt.errors import SequoiaError


@dataclass(frozen=True)
class VerifierSpec:
    """One verifier for temperatures above 0.

    Attributes:
        name: its name in options and files.
        summary: what it does, for help.
        planned_as: the verifier whose acceptance its trees are solved with: its own name if it
            accepts each guess by itself, and so has an acceptance by rank.
    """

    name: str
    summary: str
    planned_as: str

    @property
    def has_rates(self) -> bool:
        """Whether its acceptance by rank can be estimated."""
        return self.planned_as == self.name


GREEDY = "greedy"
"""The verifier at temperature 0: accepts the target's most likely token if the tree has it."""

DEFAULT_VERIFIER = "sequoia"

DETERMINISTIC_VERIFIER = "topk"
"""The verifier whose rates hold for engines that draft the most likely tokens."""

VERIFIERS: dict[str, VerifierSpec] = {
    spec.name: spec
    for spec in (
        VerifierSpec("sequoia", "tests the draft's draws, made without replacement", "sequoia"),
        VerifierSpec("specinfer", "tests the draft's draws, made with replacement", "specinfer"),
        VerifierSpec("topk", "draws from the target, among the draft's likeliest tokens", "topk"),
        VerifierSpec("traversal", "tests whole paths of draws, from the leaves up", "sequoia"),
    )
}


def verifier_at(temperature: float, name: str) -> str:
    """The verifier that decides at a temperature: greedy at 0, else the one of that name."""
    return GREEDY if temperature == 0 else name


def has_rates(name: str) -> bool:
    """Whether a verifier has an acceptance by rank; one that is not in the list has.

    Files may name verifiers of other programs.
    """
    return name not in VERIFIERS or VERIFIERS[name].has_rates


def check_verifier(name: str) -> None:
    """Refuse a name that is not in the list.

    Raises:
        SequoiaError: it lists the names.
    """
    if name not in VERIFIERS:
        raise SequoiaError(f"verifier: found {name!r}, expected {' or '.join(VERIFIERS)}")
