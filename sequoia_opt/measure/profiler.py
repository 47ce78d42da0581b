"""The profiler: how long one forward takes on this machine, and the rest of a step.

Times exactly what the decoder runs: the same runners, buffers, masks and step. Knows nothing of
acceptance.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import binom

from sequoia_opt.engine import cuda
from sequoia_opt.engine.decoder import Decoder, check_sampling
from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.memory import check_fits
from sequoia_opt.engine.models import ROLES, Pair
from sequoia_opt.engine.runner import Runner
from sequoia_opt.engine.step import State
from sequoia_opt.engine.verify import VERIFIERS
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.hardware import hardware, software
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.noise import Watch, slowdown
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Sampling
from sequoia_opt.plan.files import FloatArray, one_line
from sequoia_opt.plan.latency import (
    UNSURE,
    Curve,
    LatencyProfile,
    ModelLatency,
    Overhead,
    overhead_name,
)
from sequoia_opt.plan.tree import TokenTree

Progress = Callable[[int, int], None]
Point = tuple[str, int, int, int]
"""Role, sequences, cached tokens and query tokens of a forward."""

PLAIN_TURNS = 3  # of plain decoding, which every speed-up is measured against
# Runs of one thing in succession, before those that are timed and then timed: milliseconds of
# them, and at most so many.
RUN_IN_MS, TIMED_MS, RUNS = 60, 40, 16
LONG_MS = 100  # what takes longer is run once: what went before does not matter to it
REPEATS, OFFLOADED_REPEATS = 7, 5
LEAST_ROUNDS = 5  # that a median and its interval take
PATIENCE = 2  # times as many rounds, at most, where times spread too far to be trusted
GRAPHED = 4  # forwards in a graph that is timed, as levels follow one another in a step's
LOGIT_COPIES = 4  # of a step's logits, in float32: themselves, warped, sorted, what is left
COMPILED_TOKENS = (1, 2, 8)  # of forwards that say whether compiled ones are faster
# Sampling, and sampling from a cut distribution: what a step costs besides its forwards depends
# on which of these it does, not on the numbers.
TEMPERATURE, NUCLEI = 0.6, (1.0, 0.9)


@dataclass
class Options:
    """What to measure.

    Attributes:
        tokens: query tokens of a forward; by default 1 to 64, to 512 on CUDA.
        contexts: cached tokens.
        batches: numbers of sequences; larger ones than 1 with fewer tokens each.
        verifiers: those to measure the rest of a step for, besides greedy.
        repeats: rounds that count; each round times every point once.
        warm_up: rounds that do not.
    """

    tokens: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=lambda: [128, 512, 1024])
    batches: list[int] = field(default_factory=lambda: [1])
    verifiers: list[str] = field(default_factory=lambda: ["sequoia"])
    repeats: int = REPEATS
    warm_up: int = 1


@dataclass
class _Timed:
    """Something to run again and again, and how long it took, in milliseconds.

    It is run for a while before it is timed, as a step follows steps like it: on a CPU plain
    decoding takes 20 % longer right behind something else, 7 % after two runs, and is steady
    after ten; a large tree's step slows down instead. In a step the models take turns: what that
    costs counts as overhead.

    Attributes:
        turns: in a round, of which the median counts; what all else is compared with needs more.
        parts: how many of them one run is: a graph's beginning takes a while of its own.
        times: that counted, by round.
        queued: timed as the device sees it that does one piece of work behind another, and not
            from outside, where each takes a while to be issued and waited for.
        streams: it brings layers in, the first of which came while something else was timed.
    """

    run: Callable[[], object]
    turns: int = 1
    parts: int = 1
    queued: bool = False
    streams: bool = False
    times: list[float] = field(default_factory=list)

    def turn_ms(self, device: torch.device, world: World) -> float:
        """The median of runs in succession; all processes make as many."""
        once = world.agree_on(self.sample_ms(device))
        if once >= LONG_MS:
            return self.sample_ms(device) if self.streams else once
        for _ in range(_runs(RUN_IN_MS, once)):
            self.sample_ms(device)
        return float(np.median([self.sample_ms(device) for _ in range(_runs(TIMED_MS, once))]))

    def sample_ms(self, device: torch.device) -> float:
        """Run it once; milliseconds."""
        if self.queued:
            return cuda.elapsed_ms(self.run, device) / self.parts
        _synchronize(device)
        started = time.perf_counter()
        self.run()
        _synchronize(device)
        return 1000 * (time.perf_counter() - started)


def _runs(milliseconds: float, once: float) -> int:
    """How many runs fill a time, if one of them takes `once`."""
    return int(np.clip(np.ceil(milliseconds / max(once, 1e-3)), 1, RUNS))


def default_tokens(pair: Pair) -> list[int]:
    """Every size to 8, then four to each doubling; of an offloaded target, whose forwards take
    long and where large trees pay, fewer and larger ones."""
    offloaded = pair.offload != "none"
    largest = 512 if pair.device.type == "cuda" else 256 if offloaded else 64
    sizes = list(range(1, 5 if offloaded else 9))
    while sizes[-1] < largest:
        octave = 2 ** int(np.log2(sizes[-1]))
        sizes.append(sizes[-1] + octave // (2 if offloaded else 4))
    return sizes


def default_repeats(pair: Pair) -> int:
    """Rounds that count."""
    return REPEATS if pair.offload == "none" else OFFLOADED_REPEATS


def _streaming(pair: Pair) -> dict[str, Any]:
    """What of an offloaded target is where."""
    stream = pair.target.stream
    if stream is None:
        return {}
    return {
        "memory_budget": pair.memory_budget,
        "streamed_layers": len(stream.streamed),
        "moved_bytes": stream.moved_bytes,
    }


@torch.inference_mode()
def profile(
    pair: Pair,
    options: Options | None = None,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda message: None,
    journal: Journal | None = None,
) -> LatencyProfile:
    """Measure both models' forwards and the step's overhead.

    Forwards of a compiled pair are measured both ways first; a model that compiling makes no
    faster runs eagerly from then on, and the profile says so.

    Args:
        progress: called with rounds done and to do.
        note: called with what was left out because it does not fit into memory, or was cut short.
        journal: keeps each round, and says when the time is up.

    Raises:
        SequoiaError: options out of range, or a context that does not fit the models or memory.
    """
    options, journal = options or Options(), journal or Journal()
    tokens = sorted(set(options.tokens or default_tokens(pair)))
    contexts = sorted(set(options.contexts))
    _check(pair, tokens, contexts, options)
    batches = sorted({1, *options.batches})
    # The overhead is not the context's: one in the middle is enough.
    context = contexts[len(contexts) // 2]
    gains = _compile_gains(pair, context, options, journal)
    for role, gain in gains.items():
        getattr(pair, role).compiled = gain > 1
    steps: list[tuple[str, TokenTree, _Timed]] = []
    measured: dict[int, list[int]] = {}  # tokens of each batch
    watch: Watch | None = None
    disturbed: list[str] = []
    forwards: dict[Point, _Timed] = {}
    for number, batch in enumerate(batches):
        counts = _that_fit(pair, tokens_of_batch(tokens, batch), contexts[-1], batch, note)
        if not counts:
            continue
        # Not sooner: a GPU that has done nothing yet is at another clock.
        watch = watch or Watch(pair.device, pair.world)
        measured[batch] = counts
        points = _forwards(pair, counts, contexts, batch)
        forwards |= points
        timed = list(points.values())
        if batch == 1:  # sequences are decoded one at a time
            steps = _steps(pair, context, counts[-1], _ways(options.verifiers))
            timed += [step for _, _, step in steps]
        part = _part(progress, number, len(batches))
        rounds = _Rounds(options, pair.device, pair.world, journal, f"batch {batch}", PATIENCE)
        counted = rounds.run(timed, part, disturbed.append)
        if counted < options.repeats:
            note(f"batch {batch}: {counted} of {options.repeats} rounds; the time was up")
        for item in timed:
            item.run = _done  # graphs hold memory, and this batch's buffers are gone
    assert watch is not None  # one sequence fits, or there is an error
    models = _latencies(pair, measured, contexts, forwards)
    return LatencyProfile(
        hardware=hardware(pair.device),
        software=software(pair.device),
        engine={
            "dtype": pair.dtype,
            "graphs": pair.graphs,
            "compile": pair.compiled or False,
            "compile_gain": gains,
            "threads": torch.get_num_threads(),
            "offload": pair.offload,
            **_streaming(pair),
            "world_size": pair.world.size,
            **({"random_weights": True} if pair.random_weights else {}),
        },
        target=models["target"],
        draft=models["draft"],
        overhead=_overhead(steps, forwards, measured[1], context),
        disturbed="; ".join([*disturbed, *watch.notes()]),
    )


class Interleaved:
    """A profile at one context, taken round by round between other work on the pair: what both
    are set beside has met the same machine."""

    @torch.inference_mode()
    def __init__(self, pair: Pair, tokens: Sequence[int], context: int, sampling: Sampling) -> None:
        """Prepare it, and time everything once in vain.

        Args:
            tokens: query tokens of a forward, to the largest tree's; 1 among them.
        """
        self._pair, self._tokens, self._context = pair, sorted(set(tokens)), context
        self._order = random.Random(0)
        for runner in (pair.target, pair.draft):
            _fill(runner, context, self._tokens[-1], 1)
        self._forwards = _forwards(pair, self._tokens, [context], 1)
        self._steps = _steps(pair, context, self._tokens[-1], [sampling])
        self._timed = [*self._forwards.values(), *(step for _, _, step in self._steps)]
        _round(self._timed, pair.device, self._order, pair.world)

    @torch.inference_mode()
    def round(self) -> None:
        """Time everything once."""
        self._pair.user = None
        found = _round(self._timed, self._pair.device, self._order, self._pair.world)
        for item, milliseconds in zip(self._timed, found, strict=True):
            item.times.append(milliseconds)

    def profile(self, like: LatencyProfile) -> LatencyProfile:
        """What was measured, in a profile that is like another in all else."""
        _steady(self._timed)
        context, tokens = self._context, self._tokens
        models = _latencies(self._pair, {1: tokens}, [context], self._forwards)
        overhead = _overhead(self._steps, self._forwards, tokens, context)
        return replace(like, target=models["target"], draft=models["draft"], overhead=overhead)


def _latencies(
    pair: Pair,
    measured: dict[int, list[int]],
    contexts: list[int],
    forwards: dict[Point, _Timed],
) -> dict[str, ModelLatency]:
    """Both models' curves, by role.

    Args:
        measured: tokens of each batch.
    """
    return {
        role: ModelLatency(
            name,
            pair.fingerprints[role],
            [
                _curve(batch, c, counts, [forwards[role, batch, c, n].times for n in counts])
                for batch, counts in measured.items()
                for c in contexts
            ],
        )
        for role, name in (("target", pair.target_name), ("draft", pair.draft_name))
    }


def _compile_gains(
    pair: Pair, context: int, options: Options, journal: Journal
) -> dict[str, float]:
    """Eager time over compiled time of each compiled model's forwards."""
    gains = {}
    for role in pair.compiled:
        runner: Runner = getattr(pair, role)
        _fill(runner, context, max(COMPILED_TOKENS), 1)
        ways = {
            compiled: [_timed(pair, role, context, count, 1, compiled) for count in COMPILED_TOKENS]
            for compiled in (False, True)
        }
        rounds = _Rounds(options, pair.device, pair.world, journal, f"compiled {role}")
        rounds.run([*ways[False], *ways[True]])
        eager, compiled = (
            sum(float(np.median(item.times)) for item in ways[way]) for way in (False, True)
        )
        gains[role] = pair.world.agree_on(round(eager / compiled, 3))
    return gains


def _done() -> None:
    """What is left to run of what has been timed."""


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of one of several parts of equal length, as progress of the whole."""
    return lambda done, total: progress(number * total + done, parts * total)


def tokens_of_batch(tokens: list[int], batch: int) -> list[int]:
    """The sizes to measure for a batch: so many tokens in all as pay, and 1 to 8 of each."""
    most = max(8, 4 * tokens[-1] // batch)
    return [count for count in tokens if count <= most or batch == 1]


def _check(pair: Pair, tokens: list[int], contexts: list[int], options: Options) -> None:
    if min(tokens[0], contexts[0], *options.batches) < 1 or options.repeats < LEAST_ROUNDS:
        raise SequoiaError("tokens, contexts and batches must be at least 1, repeats at least 5")
    if tokens[0] != 1:
        raise SequoiaError("tokens: 1 is missing; plain decoding is measured with it")
    if not options.verifiers:
        raise SequoiaError(f"verifiers: found none, expected some of {', '.join(VERIFIERS)}")
    for verifier in options.verifiers:
        check_sampling(TEMPERATURE, 1.0, verifier)
    positions = min(pair.target.positions, pair.draft.positions)
    if contexts[-1] >= positions:
        raise SequoiaError(
            f"contexts: found {contexts[-1]}, but the models have only {positions} positions"
        )


def _forwards(
    pair: Pair, tokens: list[int], contexts: list[int], batch: int
) -> dict[Point, _Timed]:
    """Every forward of a batch to time."""
    return {
        (role, batch, context, count): _timed(pair, role, context, count, batch)
        for role in ROLES
        for context in contexts
        for count in tokens
    }


def _timed(
    pair: Pair, role: str, context: int, count: int, batch: int, compiled: bool | None = None
) -> _Timed:
    """A forward of a model to time, as it comes in a step.

    Args:
        compiled: whether it is to be, whatever the model's other forwards are.
    """
    runner: Runner = getattr(pair, role)
    length = cuda.bucketed(context) if pair.graphs else context
    forward = _forward(runner, context, count, batch, length)

    def run() -> object:
        if compiled is not None:
            runner.compiled = compiled
        return forward()

    def several() -> None:
        for _ in range(GRAPHED):
            run()

    queued = pair.device.type == "cuda"
    return _Timed(
        cuda.recorded(several, pair.device) if pair.graphs else run,
        turns=PLAIN_TURNS if count == 1 and role == "target" else 1,
        parts=GRAPHED if pair.graphs else 1,
        queued=queued,
        streams=runner.stream is not None and not queued,  # then it comes behind itself anyway
    )


def _that_fit(
    pair: Pair, tokens: list[int], context: int, batch: int, note: Callable[[str], None]
) -> list[int]:
    """Fill both models' buffers and try the forwards, the smallest first: those that fit, in all
    processes.

    Raises:
        SequoiaError: not even plain decoding fits, or one of several processes is out of memory
            where the others wait for it.
    """
    fitting: list[int] = []
    try:
        both = pair.target, pair.draft
        _all_can(pair.world, partial(_reserve, context, tokens[-1], batch, *both))
        for runner in both:
            _fill(runner, context, tokens[-1], batch)
        for count in tokens:
            _all_can(pair.world, partial(_check_logits, count, batch, *both))
            for runner in both:
                _forward(runner, context, count, batch, context)()
            fitting.append(count)
    except (SequoiaError, torch.OutOfMemoryError) as error:
        others_wait = pair.world.size > 1 and isinstance(error, torch.OutOfMemoryError)
        if others_wait or (batch == 1 and not fitting):
            raise SequoiaError(f"{one_line(error)}; profile shorter --contexts") from None
        kept = f"measured to {fitting[-1]} tokens" if fitting else "left out"
        note(f"batch {batch}: {kept}, more do not fit into memory ({one_line(error)[:200]})")
    return fitting


def _all_can(world: World, attempt: Callable[[], object]) -> None:
    """Attempt what a process may find no memory for: all find what one of them does.

    Raises:
        SequoiaError: what the first of them found.
    """
    found = ""
    try:
        attempt()
    except (SequoiaError, torch.OutOfMemoryError) as error:
        found = one_line(error)
    if refused := [each for each in world.gather(found) if each]:
        raise SequoiaError(refused[0])


def _reserve(context: int, room: int, batch: int, *runners: Runner) -> None:
    """Have buffers for `context` tokens of each sequence and `room` more."""
    for runner in runners:
        # Never read to the last slot, as in decoding: reading all of a buffer compiles anew.
        runner.reserve(cuda.room(context) + room, batch)


def _check_logits(count: int, batch: int, *runners: Runner) -> None:
    """Refuse forwards whose logits do not fit."""
    for runner in runners:
        each = runner.dtype.itemsize + LOGIT_COPIES * torch.float32.itemsize
        check_fits(
            batch * count * runner.vocabulary * each,
            runner.device,
            f"logits of {batch} × {count} tokens of {runner.name}",
            "measure fewer --tokens, or free memory",
        )


def _fill(runner: Runner, context: int, room: int, batch: int) -> None:
    """Put `context` random tokens of each sequence into the buffers."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(runner.vocabulary, (batch, context), generator=generator)
    _reserve(context, room, batch, runner)
    runner.prefill(tokens.to(runner.device))


def _forward(
    runner: Runner, context: int, count: int, batch: int, length: int
) -> Callable[[], object]:
    """One forward of `count` tokens a sequence as a step runs it, mask and slots included.

    Args:
        length: bound on the cached tokens that the step knows.
    """
    order = list(range(count))
    table = runner.mask_table(np.tri(count, dtype=np.bool_), order, order)
    place = torch.tensor([context], device=runner.device)
    offsets = torch.arange(count, device=runner.device)
    tokens = torch.zeros(batch, count, dtype=torch.long, device=runner.device)
    used = length + count

    def run() -> object:
        [masks] = table.masks(runner.places(place, used))
        return runner.forward(tokens, (place + offsets)[None], place + offsets, masks, 0)

    return run


@dataclass(frozen=True)
class _Rounds:
    """Rounds of one part of a profile, each kept when it is done.

    Attributes:
        name: of the part, for the journal.
        patience: how many times as many rounds there are at most, as long as times spread too far.
    """

    options: Options
    device: torch.device
    world: World = ALONE
    journal: Journal = field(default_factory=Journal)
    name: str = ""
    patience: int = 1

    def run(
        self,
        timed: Sequence[_Timed],
        progress: Progress = lambda done, total: None,
        tell: Callable[[str], None] = lambda what: None,
    ) -> int:
        """Time everything once a round, in an order that changes, so that drift hits all alike.

        Args:
            tell: called with what makes the times less than they seem.

        Returns:
            How many rounds count: as many as were asked for, fewer if the time was up, more where
            times spread.
        """
        order = random.Random(0)
        warm_up, repeats = self.options.warm_up, self.options.repeats
        counted, warm, number = 0, False, 0
        while counted < repeats or (counted < self.patience * repeats and self._are_unsure(timed)):
            name = f"{self.name}, round {number}"
            found = self.journal.recall(name)
            if found is None:
                if counted >= LEAST_ROUNDS and self.journal.is_over(self.world):
                    break
                if number >= warm_up and warm_up and not warm:  # taken up in another process
                    _round(timed, self.device, order, self.world)
                found, warm = _round(timed, self.device, order, self.world), True
                self.journal.keep(name, found)
            if number >= warm_up:
                counted += 1
                with self.journal.taking_up(name):
                    for item, milliseconds in zip(timed, found, strict=True):
                        item.times.append(float(milliseconds))
            number += 1
            progress(number, max(number, warm_up + repeats))
        if slower := slowdown(paces([item.times for item in timed])):
            tell(slower)
        _steady(timed)
        return counted

    def _are_unsure(self, timed: Sequence[_Timed]) -> bool:
        """Whether any time spreads too far to be trusted; all processes agree."""
        steady = without_drift([item.times for item in timed])
        intervals = np.array([median_interval(times) for times in steady])
        wide = intervals[:, 2] - intervals[:, 1] > UNSURE * intervals[:, 0]
        return bool(self.world.agree_on(bool(wide.any())))


def _round(
    timed: Sequence[_Timed], device: torch.device, order: random.Random, world: World
) -> list[float]:
    """Milliseconds of each, timed once; all processes run the same, as often."""
    places = [place for place, item in enumerate(timed) for _ in range(item.turns)]
    order.shuffle(places)
    found: list[list[float]] = [[] for _ in timed]
    for place in places:
        found[place].append(timed[place].turn_ms(device, world))
    return [float(np.median(turns)) for turns in found]


def _steady(timed: Sequence[_Timed]) -> None:
    """Divide out of all times what is a round's and not a point's."""
    steady = without_drift([item.times for item in timed])
    for item, times in zip(timed, steady, strict=True):
        item.times = times


def without_drift(times: Sequence[Sequence[float]]) -> list[list[float]]:
    """Times of each point by round, with what made a whole round faster or slower divided out.

    A shared machine's speed wanders by tens of per cent over a minute. Within a round it hits
    all points alike, and speed-ups are ratios of them: only what a point does of its own is
    its spread.
    """
    steady: list[list[float]] = (np.asarray(times) / paces(times)).tolist()
    return steady


def paces(times: Sequence[Sequence[float]]) -> list[float]:
    """How long each round took beside the others, of times of each point by round."""
    table: FloatArray = np.asarray(times, dtype=np.float64)
    found: list[float] = np.median(table / np.median(table, axis=1, keepdims=True), axis=0).tolist()
    return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _curve(batch: int, context: int, tokens: list[int], times: list[list[float]]) -> Curve:
    intervals = np.array([median_interval(values) for values in times])
    return Curve(batch, context, tokens, intervals[:, 0], intervals[:, 1], intervals[:, 2])


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval, from order statistics: no distribution is assumed.

    The number of values below the median is binomial. Of fewer than six values the interval is
    all of them, and covers less.
    """
    ordered: FloatArray = np.sort(np.asarray(values, dtype=np.float64))
    left_out = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)  # at either end
    return float(np.median(ordered)), float(ordered[left_out]), float(ordered[-1 - left_out])


def overhead_trees(largest: int, few: bool = False) -> list[TokenTree]:
    """Trees of different sizes and depths to tell the overhead's parts from one another; of those
    to 64 nodes no fewer than the parts, with `few` too."""
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


def _ways(verifiers: Sequence[str]) -> list[Sampling]:
    """The kinds of sampling that differ in what a step costs besides its forwards."""
    ways = [Sampling(0.0, 1.0, verifiers[0])]
    return ways + [Sampling(TEMPERATURE, top_p, name) for name in verifiers for top_p in NUCLEI]


def _steps(
    pair: Pair, context: int, largest: int, ways: Sequence[Sampling]
) -> list[tuple[str, TokenTree, _Timed]]:
    """Whole steps to time: the overhead's name, the tree, and the step.

    Tokens are random, which costs what a text's cost: shapes follow from the tree alone. Steps
    that bring weights in take long, and what no forward accounts for is little of them: of these,
    fewer.
    """
    streams = pair.target.stream is not None
    steps = []
    for way in ways:
        for tree in overhead_trees(largest, few=streams):
            decoder = Decoder(pair, tree, **asdict(way))
            name = overhead_name(decoder.verifier.name, way.temperature, way.top_p)
            turns = PLAIN_TURNS if tree.size == 1 and not streams else 1
            timed = _Timed(_whole_step(decoder, context), turns=turns, streams=streams)
            steps.append((name, tree, timed))
    return steps


def _overhead(
    steps: list[tuple[str, TokenTree, _Timed]],
    forwards: dict[Point, _Timed],
    tokens: list[int],
    context: int,
) -> dict[str, Overhead]:
    """What no forward accounts for in whole steps, by verifier.

    Taken round by round, step less forwards of the same round: the machine's drift, which is
    larger than any overhead, cancels.
    """
    target, draft = (
        np.array([forwards[role, 1, context, count].times for count in tokens])
        for role in ("target", "draft")
    )
    residuals: dict[str, list[tuple[TokenTree, float, float]]] = {}
    for name, tree, timed in steps:
        extra = [
            step
            - np.interp(tree.size, tokens, target[:, number])
            - np.interp(tree.draft_widths, tokens, draft[:, number]).sum()
            for number, step in enumerate(timed.times)
        ]
        row = (tree, float(np.median(extra)), float(np.median(timed.times)))
        residuals.setdefault(name, []).append(row)
    return {name: fit_overhead(rows) for name, rows in residuals.items()}


def _whole_step(decoder: Decoder, context: int) -> Callable[[], object]:
    """One step at `context` cached tokens, again and again from the same state."""
    device = decoder.pair.device
    state = State(
        torch.tensor([context], device=device), torch.zeros(2, dtype=torch.long, device=device)
    )
    return lambda: decoder.advance(state, context, decoder.pair.user)


def fit_overhead(rows: Sequence[tuple[TokenTree, float, float]]) -> Overhead:
    """Least squares of constant, per token, per level and for drafting at all, relative to each
    step's time.

    Plain decoding is what every speed-up is measured against, so the fit passes through the
    one-node tree; the rest share out what larger trees add to it. None of it is negative.

    Args:
        rows: for each measured step its tree, what no forward accounts for, and its time.
    """
    plain = [extra for tree, extra, _ in rows if tree.size == 1]
    # On a loaded machine a forward timed between others can take longer than a whole step; that
    # must not leave plain decoding no time.
    base = max(float(np.mean(plain)), 0.0)
    others = [row for row in rows if row[0].size > 1]
    if not others:
        return Overhead(base, 0.0, 0.0)
    weights = np.array([1 / step for _, _, step in others])
    features = np.array([[tree.size - 1, len(tree.draft_widths), 1] for tree, _, _ in others])
    wanted = np.array([extra - base for _, extra, _ in others])
    (per_token, per_level, drafting), _ = nnls(features * weights[:, None], wanted * weights)
    return Overhead(base - float(per_token), float(per_token), float(per_level), float(drafting))
