"""Drafters: what proposes the tokens of a tree. `base` has the protocol, a file each the kinds."""

from __future__ import annotations

from sequoia_opt.engine.drafters.base import (
    Committed,
    Drafter,
    HiddenStates,
    State,
    TreeDrafter,
)
from sequoia_opt.engine.drafters.head import HeadDrafter, HeadModel
from sequoia_opt.engine.drafters.lookup import FINGERPRINT, LookupDrafter
from sequoia_opt.engine.drafters.model import ModelDrafter, ModelTreeDrafter

__all__ = [
    "FINGERPRINT",
    "Committed",
    "Drafter",
    "HeadDrafter",
    "HeadModel",
    "HiddenStates",
    "LookupDrafter",
    "ModelDrafter",
    "ModelTreeDrafter",
    "State",
    "TreeDrafter",
]
