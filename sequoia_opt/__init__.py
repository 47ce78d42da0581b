"""Finds the token tree that decodes fastest, from measurements of a machine and a pair of models.

The public names are imported on first use, since `solve` and everything in `plan` work without
torch, which takes seconds to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sequoia_opt.api import load_dataset, load_pair
    from sequoia_opt.engine.decoder import Decoder, Generation
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.errors import SequoiaError
    from sequoia_opt.measure.estimator import estimate
    from sequoia_opt.measure.profiler import profile
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.plan import Plan
    from sequoia_opt.plan.solver import solve
    from sequoia_opt.plan.tree import TokenTree

_MODULES = {
    "Acceptance": "plan.acceptance",
    "Decoder": "engine.decoder",
    "Generation": "engine.decoder",
    "LatencyProfile": "plan.latency",
    "Pair": "engine.pair",
    "Plan": "plan.plan",
    "SequoiaError": "errors",
    "TokenTree": "plan.tree",
    "estimate": "measure.estimator",
    "load_dataset": "api",
    "load_pair": "api",
    "profile": "measure.profiler",
    "solve": "plan.solver",
}

__all__ = [
    "Acceptance",
    "Decoder",
    "Generation",
    "LatencyProfile",
    "Pair",
    "Plan",
    "SequoiaError",
    "TokenTree",
    "__version__",
    "estimate",
    "load_dataset",
    "load_pair",
    "profile",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sequoia_opt' has no attribute {name!r}")
    module = import_module(f"sequoia_opt.{_MODULES[name]}")
    return getattr(module, name)
