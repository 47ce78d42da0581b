"""Drafters: what proposes the tokens of a tree. `base` has the protocol, a file each the kinds."""

from __future__ import annotations

from sequoia_opt.engine.drafters.base import Drafter, State, TreeDrafter
from sequoia_opt.engine.drafters.model import ModelDrafter, ModelTreeDrafter

__all__ = ["Drafter", "ModelDrafter", "ModelTreeDrafter", "State", "TreeDrafter"]
