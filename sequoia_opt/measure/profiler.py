"""The profiler: how long a forward pass takes on this machine, and a step's overhead.

Times exactly what the decoder runs: the same models, caches, masks and step. Knows nothing of
acceptance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sequoia_opt.engine.pair import ROLES, Pair, short_name
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.disturbance import DisturbanceMonitor
from sequoia_opt.measure.forwards import (
    Point,
    fill,
    fill_what_fits,
    forward_to_time,
    forwards_to_time,
)
from sequoia_opt.measure.hardware import hardware, software
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.overhead import overhead_of, samplings, steps_to_time
from sequoia_opt.measure.progress import Progress
from sequoia_opt.measure.timing import (
    MIN_ROUNDS,
    Rounds,
    Timed,
    median_interval,
    remove_drift,
    time_round,
)
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import check_verifier

REPEATS, OFFLOADED_REPEATS = 7, 5
CONTEXTS = (128, 512, 1024)
PATIENCE = 2  # times as many rounds, at most, where times spread too far to be trusted
COMPILED_TOKENS = (1, 2, 8)  # of forwards that say whether compiled ones are faster


@dataclass
class Options:
    """What to measure.

    Attributes:
        tokens: query tokens of a forward; by default 1 to 64, to 512 on CUDA.
        contexts: cached tokens; by default 128, 512 and 1024, as far as the models go.
        batches: numbers of sequences; larger ones than 1 with fewer tokens each.
        verifiers: those to measure the rest of a step for, besides greedy; may be none.
        repeats: rounds that count; each round times every point once.
        warm_up: rounds that do not.
    """

    tokens: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=lambda: [1])
    verifiers: list[str] = field(default_factory=lambda: ["sequoia"])
    repeats: int = REPEATS
    warm_up: int = 1


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


def default_contexts(
    pair: Pair, most_tokens: int, note: Callable[[str], None] = lambda message: None
) -> list[int]:
    """Cached tokens to measure at: of those by default what the models have positions for, and
    the longest context that they have instead of what is longer."""
    positions = pair.positions
    longest = max(1, positions - most_tokens)
    contexts = [context for context in CONTEXTS if context <= longest]
    if len(contexts) < len(CONTEXTS):
        contexts.append(longest)
        note(
            f"contexts: {', '.join(map(str, contexts))}; the models have {positions} positions, "
            f"of which a forward takes up to {most_tokens}"
        )
    return contexts


def default_repeats(pair: Pair) -> int:
    """Rounds that count."""
    return REPEATS if pair.offload == "none" else OFFLOADED_REPEATS


def _streaming(pair: Pair) -> dict[str, Any]:
    """The profile's fields about an offloaded target."""
    if not pair.target.streamed_layers:
        return {}
    return {
        "memory_budget": pair.memory_budget,
        "streamed_layers": pair.target.streamed_layers,
        "moved_bytes": pair.target.moved_bytes,
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
        progress: called with how many turns were timed, and how many there are to time.
        note: called with what was left out because it does not fit, with what was cut short, and
            with what takes longer than was asked for.
        journal: keeps each round, and says when the time is up.

    Raises:
        SequoiaError: options out of range, or a context that does not fit the models or memory.
    """
    options, journal = options or Options(), journal or Journal()
    tokens = sorted(set(options.tokens or default_tokens(pair)))
    contexts = sorted(set(options.contexts or default_contexts(pair, tokens[-1], note)))
    _check(pair, tokens, contexts, options)
    batches = sorted({1, *options.batches})
    # The overhead is not the context's: one in the middle is enough.
    context = contexts[len(contexts) // 2]
    gains = _compile_gains(pair, context, options, journal, progress)
    for role, gain in gains.items():
        pair.models[role].compiled = gain > 1
    steps: list[tuple[str, TokenTree, Timed]] = []
    measured: dict[int, list[int]] = {}  # tokens of each batch
    watch: DisturbanceMonitor | None = None
    disturbed: list[str] = []
    forwards: dict[Point, Timed] = {}
    for number, batch in enumerate(batches):
        if measured and journal.time_is_up(pair.world):
            note(f"batch {batch}: left out; the time was up")
            continue
        sizes = tokens_of_batch(tokens, batch)
        filled = fill_what_fits(pair, sizes, contexts[-1], batch, note)
        if filled is None:
            continue
        # Not sooner: a GPU that has done nothing yet is at another clock.
        watch = watch or DisturbanceMonitor(pair.device, pair.world)
        measured[batch] = filled.tokens
        points = forwards_to_time(pair, filled, contexts)
        forwards |= points
        timed = list(points.values())
        if batch == 1:  # sequences are decoded one at a time
            steps = steps_to_time(pair, filled, context, samplings(options.verifiers))
            timed += [step for _, _, step in steps]
        part = _part(progress, number, len(batches))
        rounds = _rounds(pair, options, journal, f"batch {batch}", PATIENCE)
        counted = rounds.run(timed, part, disturbed.append, note)
        if counted < options.repeats:
            short = f"batch {batch}: {counted} of {options.repeats} rounds; the time was up"
            if counted < MIN_ROUNDS:
                short += ", and these times are thin"
                disturbed.append(short)
            note(short)
        for item in timed:
            item.run = _done  # graphs hold memory
        filled.release(pair)
    assert watch is not None  # one sequence fits, or there is an error
    models = _latencies(pair, measured, contexts, forwards)
    timed_steps = [step for step in steps if step[2].times]
    timed_tokens = [
        n for n in measured[1] if all(forwards[role, 1, context, n].times for role in ROLES)
    ]
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
        overhead=overhead_of(timed_steps, forwards, timed_tokens, context),
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
        filled = replace(fill(pair, context, self._tokens[-1]), tokens=self._tokens)
        self._forwards = forwards_to_time(pair, filled, [context])
        self._steps = steps_to_time(pair, filled, context, [sampling])
        self._timed = [*self._forwards.values(), *(step for _, _, step in self._steps)]
        time_round(self._timed, pair.machine, self._order, pair.world)

    @torch.inference_mode()
    def round(self) -> None:
        """Time everything once."""
        found = time_round(self._timed, self._pair.machine, self._order, self._pair.world)
        for item, milliseconds in zip(self._timed, found, strict=True):
            item.times.append(milliseconds)

    def profile(self, like: LatencyProfile) -> LatencyProfile:
        """What was measured, in a profile that is like another in all else."""
        remove_drift(self._timed)
        context, tokens = self._context, self._tokens
        models = _latencies(self._pair, {1: tokens}, [context], self._forwards)
        overhead = overhead_of(self._steps, self._forwards, tokens, context)
        return replace(like, target=models["target"], draft=models["draft"], overhead=overhead)


def _latencies(
    pair: Pair,
    measured: dict[int, list[int]],
    contexts: list[int],
    forwards: dict[Point, Timed],
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
                _curve(batch, c, timed, [forwards[role, batch, c, n].times for n in timed])
                for batch, counts in measured.items()
                for c in contexts
                for timed in [[n for n in counts if forwards[role, batch, c, n].times]]
            ],
            _path(name, pair.models[role].name),
        )
        for role, name in (("target", pair.target_name), ("draft", pair.draft_name))
    }


def _path(name: str, source: str) -> dict[str, str]:
    """Where a model's folder is, for other engines, if its name is the folder's: a bundled model
    has another name."""
    is_folder = Path(source).is_dir() and short_name(source) == name
    return {"path": str(Path(source).resolve())} if is_folder else {}


def _compile_gains(
    pair: Pair, context: int, options: Options, journal: Journal, progress: Progress
) -> dict[str, float]:
    """Eager time over compiled time of each compiled model's forwards."""
    gains = {}
    for role in pair.compiled:
        filled = fill(pair, context, max(COMPILED_TOKENS))
        eager, compiled = (
            [
                forward_to_time(pair, filled, role, context, count, is_compiled)
                for count in COMPILED_TOKENS
            ]
            for is_compiled in (False, True)
        )
        _rounds(pair, options, journal, f"compiled {role}").run([*eager, *compiled], progress)
        before, after = (
            sum(float(np.median(item.times)) for item in timed) for timed in (eager, compiled)
        )
        filled.release(pair)
        gains[role] = pair.world.agree_on(round(before / after, 3))
    return gains


def _rounds(pair: Pair, options: Options, journal: Journal, name: str, patience: int = 1) -> Rounds:
    """Rounds of one part of the profile."""
    return Rounds(
        pair.machine, options.repeats, options.warm_up, pair.world, journal, name, patience
    )


def _done() -> None:
    """What is left to run of what has been timed."""


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of one of several parts, as progress of the whole: each is a hundred."""
    if parts == 1:
        return progress
    return lambda done, total: progress(100 * number + 100 * done // total, 100 * parts)


def tokens_of_batch(tokens: list[int], batch: int) -> list[int]:
    """The sizes to measure for a batch: so many tokens in all as pay, and 1 to 8 of each."""
    most = max(8, 4 * tokens[-1] // batch)
    return [count for count in tokens if count <= most or batch == 1]


def _check(pair: Pair, tokens: list[int], contexts: list[int], options: Options) -> None:
    least = {
        "tokens": (tokens[0], 1),
        "contexts": (contexts[0], 1),
        "batches": (min(options.batches, default=1), 1),
        "repeats": (options.repeats, MIN_ROUNDS),
    }
    for name, (smallest, expected) in least.items():
        if smallest < expected:
            raise SequoiaError(f"{name}: found {smallest}, expected at least {expected}")
    if tokens[0] != 1:
        raise SequoiaError("tokens: 1 is missing; plain decoding is measured with it")
    for verifier in options.verifiers:
        check_verifier(verifier)
    positions = pair.positions
    if contexts[-1] >= positions:
        raise SequoiaError(
            f"contexts: found {contexts[-1]}, but the models have only {positions} positions"
        )


def _curve(batch: int, context: int, tokens: list[int], times: list[list[float]]) -> Curve:
    intervals = np.array([median_interval(values) for values in times])
    return Curve(batch, context, tokens, intervals[:, 0], intervals[:, 1], intervals[:, 2])
