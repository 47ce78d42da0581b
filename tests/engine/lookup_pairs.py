"""Pairs and plans of a lookup for the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sequoia_opt.engine.drafters import FINGERPRINT, LookupDrafter
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.draft_names import LOOKUP, LOOKUP_FIRST
from sequoia_opt.plan.policy import LookupFirst, Pause, Policy
from sequoia_opt.plan.tree import TokenTree


def with_lookup(pair: Any, drafter: LookupDrafter | None = None) -> Any:
    """The pair with a lookup in the draft's place."""
    return replace(
        pair,
        drafter=drafter or LookupDrafter(),
        draft_name=LOOKUP,
        fingerprints={**pair.fingerprints, "draft": FINGERPRINT},
    )


def with_lookup_first(pair: Any, drafter: LookupDrafter | None = None) -> Any:
    """The pair with a lookup before its draft."""
    return replace(
        pair, lookup=drafter or LookupDrafter(), draft_name=LOOKUP_FIRST + pair.draft_name
    )


def looking_up(policy: Policy, lookup: Policy, least: float = 0.5) -> Policy:
    """The policy behind a lookup whose trees are verified above some expected guesses."""
    worth = tuple((size, least) for size in lookup.sizes[1:])
    return replace(policy, lookup=LookupFirst(lookup, worth))


def lookup_policy(
    depth: int = 6, ranks: int = 3, width: int = 2, offer: float = 0.05, pause: Pause | None = None
) -> Policy:
    """It offers what the match believes in, and goes on as long as anything is offered."""
    row = (0.02, 0.1, 0.3, 0.5, 0.9)
    return Policy(
        Confidence((0.05, 0.2, 0.4, 0.6), ((row,) * ranks,)),
        depth,
        ranks,
        expand=tuple((count, 0.0) for count in (1, 2, 4) if count <= width),
        first=0.0,
        offer=offer,
        sizes=(1, 2, 4, 8, 16),
        pause=pause,
    )


def plan(policy: Policy) -> TokenTree:
    return TokenTree([-1], [0], policy=policy)
