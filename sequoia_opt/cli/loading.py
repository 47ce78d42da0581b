"""Loads the models that a command's options name.

Knows what to tell the user of them. Knows nothing of what a command does with them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sequoia_opt.cli.engine_options import EngineOptions
from sequoia_opt.cli.options import (
    Device,
    Draft,
    Dtype,
    MemoryBudget,
    Offload,
    Target,
    byte_count,
)

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair


@dataclass(frozen=True)
class PairToMeasure(EngineOptions):
    """The models to measure, and how to run them."""

    target: Target = None
    draft: Draft = None
    device: Device = None
    dtype: Dtype = None
    offload: Offload = "none"
    memory_budget: MemoryBudget = None

    @property
    def budget(self) -> int | None:
        """Bytes that an offloaded target may take on the device; None for the default."""
        return byte_count("--memory-budget", self.memory_budget)

    def load(
        self,
        compiled: Collection[str] = (),
        graphs: bool | None = None,
        random_weights: bool = False,
        spread: bool = True,
    ) -> Pair:
        """Load the pair; see `load`."""
        return load(
            self.target,
            self.draft,
            self.device,
            self.dtype,
            compiled,
            graphs,
            random_weights,
            self.offload,
            self.budget,
            spread,
            self,
        )


def load(
    target: str | None,
    draft: str | None,
    device: str | None,
    dtype: str | None,
    compiled: Collection[str] = (),
    graphs: bool | None = None,
    random_weights: bool = False,
    offload: str = "none",
    memory_budget: int | None = None,
    spread: bool = True,
    running: EngineOptions | None = None,
) -> Pair:
    """Load the pair of models that the options name, and compile the roles in `compiled`.

    Args:
        running: the engine and its settings; by default the models' own and the machine's.
    """
    from sequoia_opt.api import load_pair
    from sequoia_opt.cli.output import note, waiting

    with waiting("loading the models"):
        pair = load_pair(
            target,
            draft,
            device,
            dtype,
            graphs,
            random_weights,
            offload,
            memory_budget,
            spread,
            running.engine if running else None,
            running.settings if running else None,
        )
    if pair.draft.parameters >= pair.target.parameters:
        note("the draft is no smaller than the target, so speculation can hardly pay")
    for role in compiled:
        if role == "target" and pair.world.size > 1:
            note("the target is not compiled, because several processes share it")
            continue
        if pair.models[role].streamed_layers:
            note(f"the {role} is not compiled, because its layers are streamed")
            continue
        with waiting(f"compiling the {role}'s forward passes"):
            pair.compile([role])
    return pair


def tell_unused_settings(pair: Pair) -> None:
    """Note that a measurement leaves out the penalties of the target's generation_config.json."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.engine.own_settings import own_settings

    if own_settings(pair).logits.change_anything:
        note(
            f"generation_config.json of {pair.target_name}: its penalties and suppressed tokens "
            "are not applied here; decode applies them"
        )
