"""A step's overhead: whole steps are timed, and their forward passes subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.fixed_growth import FixedGrowth, fixed_chains, fixed_growths
from sequoia_opt.measure.forwards import Filled, Point, forward_to_time, overhead_trees
from sequoia_opt.measure.repeated_step import RepeatedStep
from sequoia_opt.measure.timing import PLAIN_TURNS, Timed, clipped_mean
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.joint_times import LOOKUP
from sequoia_opt.plan.latency import Overhead, overhead_name
from sequoia_opt.plan.policy_times import ADAPTIVE
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.verifiers import DETERMINISTIC_VERIFIER, VERIFIERS
from sequoia_opt.types import FloatArray

# Sampling, and sampling from a cut distribution: the overhead depends on which of these a step
# does, not on the numbers.
TEMPERATURE, NUCLEI = 0.6, (1.0, 0.9)

CHANGE = "change"  # name of the work that shows what another size of the target pass costs
PLAIN_PASS = "plain pass"  # name of the target's pass of one token that plain steps take turns with
CHANGED_SIZE = 8  # nodes of its other pass, at most
PLAIN_IN_A_ROW = 8  # samples of a plain step in succession, as a text has them


def samplings(verifiers: Sequence[str]) -> list[Sampling]:
    """Ways to sample that differ in their overhead: greedy, and each verifier with and without a
    cut distribution."""
    greedy = [Sampling(0.0)]
    return greedy + [Sampling(TEMPERATURE, top_p, name) for name in verifiers for top_p in NUCLEI]


def verifiers_of(pair: Pair, asked: Sequence[str]) -> Sequence[str]:
    """The verifiers to measure of those asked for; a lookup has one only."""
    return asked if pair.drafter.model is not None else [DETERMINISTIC_VERIFIER]


@dataclass(frozen=True)
class TimedStep:
    """A whole step to time.

    Attributes:
        name: of the overhead that it is to show, or `CHANGE`, or `PLAIN_PASS`.
        size: nodes of its target pass.
        passes: tokens of each of its draft passes.
        timed: the step.
        is_free: whether its draft passes run no model.
        before: nodes of another target pass, right before it; 0 for none.
        like: the same step but for its first draft pass, which reads the root alone; None for a
            step that is like no other.
    """

    name: str
    size: int
    passes: tuple[int, ...]
    timed: Timed
    is_free: bool = False
    before: int = 0
    like: TimedStep | None = None

    def extra_ms(self, tokens: list[int], target: FloatArray, draft: FloatArray) -> float:
        """The part of it outside its forward passes, in milliseconds, on average.

        Args:
            tokens: query tokens of the forward passes that were timed.
            target, draft: [tokens, rounds], their times in the same rounds.
        """
        rounds = len(self.timed.times)
        target_ms, draft_ms = (
            [clipped_mean(times[:rounds]) for times in table] for table in (target, draft)
        )
        sizes = [self.size, self.before] if self.before else [self.size]
        passes_ms = np.interp(sizes, tokens, target_ms).sum()
        if not self.is_free:
            passes_ms += np.interp(self.passes, tokens, draft_ms).sum()
        return float(clipped_mean(self.timed.times) - passes_ms)


def steps_to_time(
    pair: Pair,
    filled: Filled,
    context: int,
    ways: Sequence[Sampling],
    adaptive: bool = True,
) -> list[TimedStep]:
    """Whole steps to time.

    Their tokens are random, which takes as long as a text's: shapes follow from the tree alone.
    Steps that stream layers take long, and the overhead is a small part of them, so fewer of them
    are timed.

    Args:
        adaptive: whether to time steps of trees that grow, too.
    """
    steps = []
    caches = _caches_of_text(pair, filled, context)
    largest = filled.tokens[-1]
    alone, index = None, caches
    if pair.lookup is not None:
        alone = replace(pair, drafter=pair.lookup, lookup=None)
        index = _caches_of_text(alone, filled, context)
    for way in ways:
        steps += _static_steps(pair, caches, largest, context, way)
        if adaptive and can_grow(way):
            steps += _adaptive_steps(pair, caches, largest, context, way, ADAPTIVE)
            if alone is not None:
                steps += _adaptive_steps(alone, index, largest, context, way, LOOKUP)
    if adaptive and largest > 1 and pair.machine.rebuilds:
        steps.append(_change(pair, filled, context))
    return [*steps, *_plain_pass(pair, filled, context, steps)]


def _plain_pass(
    pair: Pair, filled: Filled, context: int, steps: Sequence[TimedStep]
) -> list[TimedStep]:
    """The target's pass of one token, whose companions plain steps become.

    Every speedup is relative to a plain step, and its overhead is a small part of it. There is
    none where passes are timed in a queue, or stream layers.
    """
    timed = forward_to_time(pair, filled, "target", context, 1)
    if timed.queued or timed.streams:
        return []
    _in_turns_of(timed, [step.timed for step in steps if step.size == 1])
    timed.in_a_row = PLAIN_IN_A_ROW
    return [TimedStep(PLAIN_PASS, 1, (), timed)]


def _in_turns_of(timed: Timed, companions: Sequence[Timed]) -> None:
    """Time work within the turns of other work, see `Timed`."""
    timed.companions = companions
    for companion in companions:
        companion.turns = 0


def _change(pair: Pair, filled: Filled, context: int) -> TimedStep:
    """Target passes of two sizes in turn."""
    size = max(count for count in filled.tokens if count <= max(CHANGED_SIZE, filled.tokens[1]))
    single, other = (forward_to_time(pair, filled, "target", context, count) for count in (1, size))

    def run() -> object:
        single.run()
        return other.run()

    return TimedStep(CHANGE, size, (), Timed(run, optional=True), before=1)


def _caches_of_text(pair: Pair, filled: Filled, context: int) -> Caches:
    """The caches as a step takes them; a lookup's index has a text that repeats itself, so that
    steps draft as deep as they may."""
    if pair.drafter.model is not None:
        return filled.as_text
    random = np.random.default_rng(0)
    text = np.resize([0, *random.integers(1, pair.target.vocabulary, 1 + context // 2)], context)
    index = pair.drafter.reserve(context)
    pair.drafter.prefill(index, torch.from_numpy(text)[None])
    return Caches(filled.caches["target"], index)


def can_grow(way: Sampling) -> bool:
    """Whether trees can grow with this verifier: it decides node by node."""
    return way.temperature == 0 or VERIFIERS[way.verifier].has_rates


def _static_steps(
    pair: Pair, caches: Caches, largest: int, context: int, way: Sampling
) -> list[TimedStep]:
    """Steps of fixed trees; of a drafter that has none, of the one-node tree.

    Args:
        largest: nodes that any tree may have.
    """
    streams = pair.target.streamed_layers > 0
    largest = largest if pair.drafter.model is not None else 1
    enough = overhead_trees(largest, few=True)
    steps = []
    for tree in overhead_trees(largest, few=streams):
        decoder = Decoder(pair, tree, **asdict(way))
        timed = Timed(
            RepeatedStep(decoder, caches, context),
            turns=_turns(tree.size, streams),
            streams=streams,
            optional=tree not in enough,
        )
        passes = draft_passes(tree, pair.machine.first_pass_tokens, pair.drafter.passes)
        steps.append(TimedStep(overhead_name(way), tree.size, passes, timed))
    return steps


def _adaptive_steps(
    pair: Pair, caches: Caches, largest: int, context: int, way: Sampling, kind: str
) -> list[TimedStep]:
    """Steps of trees that grow; the draft's cache lacks nothing but the root, but in the last one.

    In a text chains of all sizes follow one another, and take a little longer than behind chains
    like themselves. So they are timed one after the other, except where they stream layers, and
    where another size costs something that is measured by itself.

    Args:
        largest: nodes that any forward pass may have.
        kind: what the name of their overhead begins with. A lookup verifies by matching, whatever
            tests the draws of the model beside it.
    """
    name = kind + overhead_name(way)
    if kind == LOOKUP:
        way = replace(way, verifier=DETERMINISTIC_VERIFIER)
    streams = pair.target.streamed_layers > 0
    growths = fixed_growths if pair.drafter.model is not None else fixed_chains
    is_free = pair.drafter.model is None
    enough = growths(largest, few=True)

    def step(growth: FixedGrowth, lacking: int = 0) -> TimedStep:
        decoder = Decoder(pair, growth.plan, **asdict(way))
        timed = Timed(
            RepeatedStep(decoder, caches, context, lacking),
            turns=_turns(growth.size, streams),
            streams=streams,
            optional=growth not in enough,
        )
        first = tuple(width + lacking for width in growth.widths[:1])
        return TimedStep(name, growth.size, (*first, *growth.widths[1:]), timed, is_free)

    timed_growths = growths(largest, few=streams)
    steps = [step(growth) for growth in timed_growths]
    drafting = [one for one in steps if one.passes]
    if drafting and not is_free and not streams:
        growth = timed_growths[steps.index(drafting[0])]
        drafting.append(replace(step(growth, lacking=1), like=drafting[0]))
        steps.append(drafting[-1])
    chains = [one.timed for one in drafting if max(one.passes[1:], default=1) == 1]
    if chains and not (streams or pair.machine.rebuilds):
        _in_turns_of(chains[0], chains[1:])
    return steps


def _turns(size: int, streams: bool) -> int:
    """Turns of a step in a round: plain steps have as many as their forward pass, since every
    speedup is relative to both."""
    return PLAIN_TURNS if size == 1 and not streams else 1


def overhead_of(
    steps: Sequence[TimedStep], forwards: dict[Point, Timed], tokens: list[int], context: int
) -> dict[str, Overhead]:
    """The part of whole steps outside their forward passes, by name.

    Of a step those forward passes are subtracted that were timed in the same rounds, of a plain
    step the one that was timed in turn with it, where there is one: the machine's drift, which is
    larger than any overhead, cancels.
    """
    times = {
        role: np.array([forwards[role, 1, context, count].times for count in tokens])
        for role in ("target", "draft")
        if (role, 1, context, tokens[0]) in forwards
    }
    target = times["target"]
    draft = times.get("draft", np.zeros_like(target))
    rows: dict[str, list[Residual]] = {}
    plain_ms = [clipped_mean(step.timed.times) for step in steps if step.name == PLAIN_PASS]
    change_ms = 0.0
    catch_up_ms: dict[str, float] = {}
    for step in steps:
        if step.name == PLAIN_PASS:
            continue
        extra_ms = step.extra_ms(tokens, target, draft)
        if step.like is not None:
            more_ms = extra_ms - step.like.extra_ms(tokens, target, draft)
            catch_up_ms[step.name] = max(0.0, more_ms)
            continue
        if step.name == CHANGE:  # to the other size, and back
            change_ms = max(0.0, extra_ms / 2)
            continue
        if step.size == 1 and plain_ms:
            extra_ms = clipped_mean(step.timed.times) - plain_ms[0]
        row = Residual(step.size, len(step.passes), extra_ms, float(np.median(step.timed.times)))
        rows.setdefault(step.name, []).append(row)
    overheads = {name: fit_overhead(residuals) for name, residuals in rows.items()}
    return {
        name: replace(overhead, change_ms=change_ms, catch_up_ms=catch_up_ms.get(name, 0.0))
        if ADAPTIVE in name
        else overhead
        for name, overhead in overheads.items()
    }


class Residual(NamedTuple):
    """What a measured step takes outside its forward passes.

    Attributes:
        size: nodes of its target pass.
        passes: how many draft passes it has.
        extra_ms, step_ms: that part of it, and all of it.
    """

    size: int
    passes: int
    extra_ms: float
    step_ms: float


def fit_overhead(rows: Sequence[Residual]) -> Overhead:
    """Fit the overhead by least squares, relative to each step's time.

    Its parts are a constant, a cost per token, a cost per level, and one for drafting at all; none
    is negative. Every speedup is measured against plain decoding, so the fit passes through the
    one-node tree, and the other parts share out what larger trees add to it.
    """
    plain = [row.extra_ms for row in rows if row.size == 1]
    # On a loaded machine a forward pass can take longer than a whole step that was timed at
    # another moment; that must not leave plain decoding no time.
    base = max(float(np.mean(plain)), 0.0)
    others = [row for row in rows if row.size > 1]
    if not others:
        return Overhead(base, 0.0, 0.0)
    weights = np.array([1 / row.step_ms for row in others])
    features = np.array([[row.size - 1, row.passes, 1] for row in others])
    added_ms = np.array([row.extra_ms - base for row in others])
    (per_token, per_level, drafting), _ = nnls(features * weights[:, None], added_ms * weights)
    return Overhead(base - float(per_token), float(per_token), float(per_level), float(drafting))
