"""The fastest token tree for speculative decoding, from measurements of this machine.

`solve` and everything in `plan` work without torch; names that need it are imported on first
use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sequoia_opt.api import load_pair
    from sequoia_opt.engine.decoder import Decoder, Generation
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.errors import SequoiaError
    from sequoia_opt.measure.dataset import load_dataset
    from sequoia_opt.measure.estimator import estimate
    from sequoia_opt.measure.profiler import profile
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.plan import Plan
    from sequoia_opt.plan.solver import solve
    from sequoia_opt.plan.tree import TokenTree

_HOMES = {
    "Acceptance": "plan.acceptance",
    "Decoder": "engine.decoder",
    "Generation": "engine.decoder",
    "LatencyProfile": "plan.latency",
    "Pair": "engine.pair",
    "Plan": "plan.plan",
    "SequoiaError": "errors",
    "TokenTree": "plan.tree",
    "estimate": "measure.estimator",
    "load_dataset": "measure.dataset",
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
    if name not in _HOMES:
        raise AttributeError(f"module 'sequoia_opt' has no attribute {name!r}")
    return getattr(import_module(f"sequoia_opt.{_HOMES[name]}"), name)
