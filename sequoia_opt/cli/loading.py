"""Loads the models that a command's options name.

Knows what to tell the user of them. Knows nothing of what a command does with them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sequoia_opt.cli.engine_options import EngineOptions
from sequoia_opt.cli.options import (
    Corpus,
    Device,
    Draft,
    Dtype,
    MemoryBudget,
    Offload,
    Target,
    byte_count,
)
from sequoia_opt.plan.draft_names import LOOKUP, model_of
from sequoia_opt.repository.provenance import sources_of

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair


@dataclass(frozen=True)
class PairToMeasure(EngineOptions):
    """The models to measure, and how to run them."""

    target: Target = None
    draft: Draft = None
    corpus: Corpus = None
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
            self.corpus,
        )

    @property
    def sources(self) -> dict[str, str]:
        """The paths of the models; of a lookup, the corpus's."""
        return sources_of(self.target, draft_source(self.draft, self.corpus))


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
    corpus: Path | None = None,
) -> Pair:
    """Load the pair of models that the options name, and compile the roles in `compiled`.

    Args:
        running: the engine and its settings; by default the models' own and the machine's.
        corpus: of a lookup.
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
            corpus,
        )
    draft_model = pair.drafter.model
    if draft_model is not None and draft_model.parameters >= pair.target.parameters:
        note("the draft is no smaller than the target, so speculation can hardly pay")
    for role in compiled:
        if role not in pair.models:
            continue
        if role == "target" and pair.world.size > 1:
            note("the target is not compiled, because several processes share it")
            continue
        if pair.models[role].streamed_layers:
            note(f"the {role} is not compiled, because its layers are streamed")
            continue
        with waiting(f"compiling the {role}'s forward passes"):
            pair.compile([role])
    return pair


def draft_source(draft: str | None, corpus: Path | None) -> str | None:
    """Where a drafter was read from: a model's name or path, a lookup's corpus if it has one."""
    if draft == LOOKUP:
        return None if corpus is None else str(corpus)
    return None if draft is None else model_of(draft) or None


def tell_unused_settings(pair: Pair) -> None:
    """Note that a measurement leaves out the penalties of the target's generation_config.json."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.engine.own_settings import own_settings

    if own_settings(pair).logits.change_anything:
        note(
            f"generation_config.json of {pair.target_name}: its penalties and suppressed tokens "
            "are not applied here; decode applies them"
        )
