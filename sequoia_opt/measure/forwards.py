"""Forward passes to time: each as it comes in a step, on a filled cache.

Reserves and fills the caches, finds out how many tokens fit into memory, and leaves the timing to
timing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.model import Caches, TimedModel
from sequoia_opt.engine.pair import ROLES, Pair
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.measure.fixed_growth import fixed_growths
from sequoia_opt.measure.timing import PLAIN_TURNS, Timed
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

Point = tuple[str, int, int, int]
"""Role, batch, context length and query tokens of a forward pass."""

GRAPHED = 4  # forward passes in a graph that is timed, as levels follow one another in a step
SPARE_SLOTS = 9  # decoding never reads a cache to its last slot, which would compile again


@dataclass(frozen=True)
class Filled:
    """Both models' caches, filled to a context length, for one batch.

    Attributes:
        batch: texts of a forward pass.
        tokens: the query tokens whose forward passes fit into memory.
        caches: by role.
    """

    batch: int
    tokens: list[int]
    caches: dict[str, Any]

    @property
    def as_text(self) -> Caches:
        """The caches as a step takes them."""
        return Caches(self.caches["target"], self.caches.get("draft"))

    def release(self, pair: Pair) -> None:
        """Give the caches back."""
        for role, cache in self.caches.items():
            pair.models[role].release(cache)


def fill(
    pair: Pair, context: int, most_tokens: int, batch: int = 1, roles: Collection[str] = ROLES
) -> Filled:
    """Reserve caches for `context` tokens of each text and `most_tokens` more, and fill them with
    random tokens.

    Args:
        roles: the models whose caches to fill.
    """
    filled = Filled(batch, [most_tokens], {})
    for role, model in pair.models.items():
        if role in roles:
            filled.caches[role] = _reserve(pair, model, context, most_tokens, batch)
            _fill(model, filled.caches[role], context)
    return filled


def fill_what_fits(
    pair: Pair, tokens: list[int], context: int, batch: int, note: Callable[[str], None]
) -> Filled | None:
    """Fill both models' caches and try the forward passes, the smallest first.

    Returns:
        The caches, and the token counts that fit in all processes; None if none does.

    Raises:
        SequoiaError: not even plain decoding fits, or one of several processes is out of memory
            where the others wait for it.
    """
    fitting: list[int] = []
    filled = Filled(batch, fitting, {})

    def reserve() -> None:
        for role, model in pair.models.items():
            filled.caches[role] = _reserve(pair, model, context, tokens[-1], batch)

    try:
        _all_can(pair.world, reserve)
        for role, model in pair.models.items():
            _fill(model, filled.caches[role], context)
        for count in tokens:
            _all_can(pair.world, lambda count=count: _check_logits(pair, count, batch))  # type: ignore[misc]
            for role, model in pair.models.items():
                model.pass_to_time(filled.caches[role], context, count, context)()
            fitting.append(count)
    except (SequoiaError, torch.OutOfMemoryError) as error:
        others_wait = pair.world.size > 1 and isinstance(error, torch.OutOfMemoryError)
        if others_wait or (batch == 1 and not fitting):
            raise SequoiaError(f"{one_line(error)}; profile shorter --contexts") from None
        outcome = f"measured to {fitting[-1]} tokens" if fitting else "left out"
        note(f"batch {batch}: {outcome}, more do not fit into memory ({one_line(error)[:200]})")
    return filled if fitting else None


def forwards_to_time(pair: Pair, filled: Filled, contexts: list[int]) -> dict[Point, Timed]:
    """Every forward pass of a batch, at each context length."""
    tokens = filled.tokens
    points = {
        (role, filled.batch, context, count): forward_to_time(pair, filled, role, context, count)
        for role in pair.models
        for context in contexts
        for count in tokens
    }
    for (*_, count), timed in points.items():
        is_power_of_two = count & (count - 1) == 0
        timed.optional = not is_power_of_two and count not in (tokens[0], tokens[-1])
    return points


def forward_to_time(
    pair: Pair, filled: Filled, role: str, context: int, count: int, compiled: bool | None = None
) -> Timed:
    """A forward pass of a model, as it comes in a step.

    Args:
        compiled: whether it is to be compiled; by default as the model's other forward passes.
    """
    model, machine = pair.models[role], pair.machine
    forward = model.pass_to_time(filled.caches[role], context, count, machine.bound_for(context))

    def run() -> object:
        if compiled is not None:
            model.compiled = compiled
        return forward()

    def several() -> None:
        for _ in range(GRAPHED):
            run()

    return Timed(
        machine.repeated(several) if pair.graphs else run,
        turns=PLAIN_TURNS if count == 1 and role == "target" else 1,
        runs_per_call=GRAPHED if pair.graphs else 1,
        queued=machine.queues,
        # Queued passes come behind themselves anyway.
        streams=model.streamed_layers > 0 and not machine.queues,
    )


def overhead_trees(largest: int, few: bool = False) -> list[TokenTree]:
    """Trees of different sizes and depths, to tell the overhead's parts from one another.

    Args:
        largest: nodes that any tree may have.
        few: half as many trees; up to 64 nodes still as many as there are parts.
    """
    trees = [
        shapes.chain(1),
        shapes.chain(2),
        shapes.chain(4),
        shapes.chain(8),
        shapes.k_ary(3, 1),
        shapes.k_ary(2, 3),
        shapes.k_sequences(3, 5),
        shapes.k_sequences(4, 8),
        shapes.k_sequences(8, 7),
        shapes.k_ary(7, 2),
    ]
    return [tree for tree in trees[:: 2 if few else 1] if tree.size <= largest]


def _reserve(pair: Pair, model: TimedModel, context: int, most_tokens: int, batch: int) -> Any:
    """A cache for `context` tokens of each text and `most_tokens` more."""
    capacity = pair.machine.capacity_for(context) + most_tokens + SPARE_SLOTS
    # Of one text whole steps are timed too, with trees of up to `most_tokens` nodes.
    branches = max(
        *(tree.leaves for tree in overhead_trees(most_tokens)),
        *(growth.plan.most_leaves for growth in fixed_growths(most_tokens)),
    )
    return model.reserve(capacity, batch, branches if batch == 1 else 1)


def _fill(model: TimedModel, cache: Any, context: int) -> None:
    """Put `context` random tokens of each text into a cache."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocabulary, (cache.batch, context), generator=generator)
    model.prefill(cache, tokens.to(model.device))


def _check_logits(pair: Pair, count: int, batch: int) -> None:
    """Refuse forward passes whose logits do not fit."""
    for model in pair.models.values():
        model.check_logits_fit(count, batch)


def _all_can(world: World, attempt: Callable[[], object]) -> None:
    """Attempt what may fail in some process for want of memory; all processes fail if one does.

    Raises:
        SequoiaError: with the first process's reason.
    """
    reason = ""
    try:
        attempt()
    except (SequoiaError, torch.OutOfMemoryError) as error:
        reason = one_line(error)
    if reasons := [text for text in world.gather(reason) if text]:
        raise SequoiaError(reasons[0])
