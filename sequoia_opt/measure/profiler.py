"""The profiler: how long a forward pass takes on this machine, and a step's overhead.

Times exactly what the decoder runs: the same models, caches, masks and step. Knows nothing of
acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sequoia_opt.engine.pair import Pair, short_name
from sequoia_opt.errors import SequoiaError
from sequoia_opt.frames import with_room
from sequoia_opt.measure.disturbance import DisturbanceMonitor
from sequoia_opt.measure.forwards import (
    Point,
    fill,
    fill_what_fits,
    forward_to_time,
    forwards_to_time,
)
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.overhead import (
    TimedStep,
    overhead_of,
    samplings,
    steps_to_time,
    verifiers_of,
)
from sequoia_opt.measure.progress import Note, Progress, no_note, no_progress
from sequoia_opt.measure.timing import (
    MIN_ROUNDS,
    Rounds,
    Timed,
    clipped_mean,
    median_interval,
)
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.draft_names import model_of
from sequoia_opt.plan.draft_passes import FIRST_WIDTH, PER_LEVEL
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, check_verifier

REPEATS, OFFLOADED_REPEATS = 7, 5
MAX_MULTIPLE = 2  # of the rounds that were asked for, as long as times are noisy
COMPILED_TOKENS = (1, 2, 8)  # of the forward passes that decide whether compiling pays


@dataclass
class ProfileOptions:
    """What to measure.

    Attributes:
        tokens: query tokens of a forward pass; by default 1 to 64, to 512 on CUDA.
        contexts: context lengths; by default the engine's, as far as the models go.
        batches: numbers of sequences; above 1 with fewer tokens each.
        verifiers: verifiers whose overhead to measure, besides greedy; may be empty.
        repeats: rounds that count; each times every point once.
        warm_up: rounds before these that do not count.
    """

    tokens: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=lambda: [1])
    verifiers: list[str] = field(default_factory=lambda: [DEFAULT_VERIFIER])
    repeats: int = REPEATS
    warm_up: int = 1


def default_tokens(pair: Pair) -> list[int]:
    """Query tokens to measure: every size to 8, then four to each doubling.

    For an offloaded target, whose forward passes take long and for which large trees pay, they
    are fewer and larger.
    """
    is_offloaded = pair.offload != "none"
    largest = 512 if pair.machine.queues else 256 if is_offloaded else 64
    sizes = list(range(1, 5 if is_offloaded else 9))
    while sizes[-1] < largest:
        octave = 2 ** int(np.log2(sizes[-1]))
        sizes.append(sizes[-1] + octave // (2 if is_offloaded else 4))
    return sizes


def default_contexts(pair: Pair, most_tokens: int, note: Note = no_note) -> list[int]:
    """Context lengths to measure: the engine's default ones that the models have positions for.

    The longest possible context replaces those that are too long.
    """
    positions = pair.positions
    longest = max(1, positions - most_tokens)
    usual = pair.machine.contexts
    contexts = [context for context in usual if context <= longest]
    if len(contexts) < len(usual):
        contexts.append(longest)
        note(
            f"contexts: {', '.join(map(str, contexts))}; the models have {positions} positions, "
            f"of which a forward pass takes up to {most_tokens}"
        )
    return contexts


def default_repeats(pair: Pair) -> int:
    """Rounds that count."""
    return REPEATS if pair.offload == "none" else OFFLOADED_REPEATS


@with_room
@torch.inference_mode()
def profile(
    pair: Pair,
    options: ProfileOptions | None = None,
    progress: Progress = no_progress,
    note: Note = no_note,
    journal: Journal | None = None,
) -> LatencyProfile:
    """Measure both models' forward passes and a step's overhead.

    The forward passes of a compiled pair are measured compiled and eager first. A model that
    compiling does not speed up runs eagerly from then on, and the profile says so.

    Args:
        progress: called with the turns that were timed, and the turns to time in total.
        note: called with a line about what does not fit, was cut short, or takes longer than asked.
        journal: records each round, and says when the time is up.

    Raises:
        SequoiaError: options out of range, or a context that does not fit the models or memory.
    """
    return _Profiling(
        pair, options or ProfileOptions(), progress, note, journal or Journal()
    ).profile()


class _Profiling:
    """One run of the profiler."""

    def __init__(
        self,
        pair: Pair,
        options: ProfileOptions,
        progress: Progress,
        note: Note,
        journal: Journal,
    ) -> None:
        self.pair, self.options, self.journal = pair, options, journal
        self.progress, self.note = progress, note
        self.tokens = sorted(set(options.tokens or default_tokens(pair)))
        self.contexts = sorted(
            set(options.contexts or default_contexts(pair, self.tokens[-1], note))
        )
        _check(pair, self.tokens, self.contexts, options)
        self.batches = sorted({1, *options.batches})
        # The overhead does not depend on the context length: one in the middle is enough.
        self.context = self.contexts[len(self.contexts) // 2]
        self.measured: dict[int, list[int]] = {}  # token counts of each batch
        self.forwards: dict[Point, Timed] = {}
        self.steps: list[TimedStep] = []
        self.monitor: DisturbanceMonitor | None = None
        self.warnings: list[str] = []

    def profile(self) -> LatencyProfile:
        """Measure everything."""
        gains = self._compile_gains()
        for role, gain in gains.items():
            self.pair.models[role].compiled = gain > 1
        for number, batch in enumerate(self.batches):
            if self.measured and self.journal.time_is_up(self.pair.world):
                self.note(f"batch {batch}: left out; the time limit was reached")
                continue
            self._measure(number, batch)
        assert self.monitor is not None  # one sequence fits, or there is an error
        return self._document(gains, self.monitor)

    def _measure(self, number: int, batch: int) -> None:
        """Time the forward passes of a batch; of one sequence, whole steps too.

        Args:
            number: of the batch, from 0.
        """
        sizes = tokens_of_batch(self.tokens, batch)
        filled = fill_what_fits(self.pair, sizes, self.contexts[-1], batch, self.note)
        if filled is None:
            return
        # Not sooner: an idle GPU runs at another clock.
        self.monitor = self.monitor or DisturbanceMonitor(self.pair.device, self.pair.world)
        self.measured[batch] = filled.tokens
        points = forwards_to_time(self.pair, filled, self.contexts)
        self.forwards |= points
        timed = list(points.values())
        if batch == 1:  # sequences are decoded one at a time
            ways = samplings(verifiers_of(self.pair, self.options.verifiers))
            self.steps = steps_to_time(self.pair, filled, self.context, ways)
            timed += [step.timed for step in self.steps]
        part = _part(self.progress, number, len(self.batches))
        rounds = self._rounds(f"batch {batch}", MAX_MULTIPLE)
        counted = rounds.run(timed, part, self.warnings.append, self.note)
        if counted < self.options.repeats:
            short = (
                f"batch {batch}: {counted} of {self.options.repeats} rounds; the time limit was "
                "reached"
            )
            if counted < MIN_ROUNDS:
                short += ", so these times are not to be trusted"
                self.warnings.append(short)
            self.note(short)
        for item in timed:
            item.run = _nothing  # graphs hold memory
        filled.release(self.pair)

    def _compile_gains(self) -> dict[str, float]:
        """Eager time over compiled time of each compiled model's forward passes, by role."""
        pair, gains = self.pair, {}
        for role in pair.compiled:
            filled = fill(pair, self.context, max(COMPILED_TOKENS), roles=[role])
            eager, compiled = (
                [
                    forward_to_time(pair, filled, role, self.context, count, is_compiled)
                    for count in COMPILED_TOKENS
                ]
                for is_compiled in (False, True)
            )
            self._rounds(f"compiled {role}").run([*eager, *compiled], self.progress)
            before, after = (
                sum(float(np.median(item.times)) for item in timed) for timed in (eager, compiled)
            )
            filled.release(pair)
            gains[role] = pair.world.agree_on(round(before / after, 3))
        return gains

    def _rounds(self, name: str, max_multiple: int = 1) -> Rounds:
        """Rounds of one part of the profile."""
        options = self.options
        return Rounds(
            self.pair.machine,
            options.repeats,
            options.warm_up,
            self.pair.world,
            self.journal,
            name,
            max_multiple,
        )

    def _document(self, gains: dict[str, float], monitor: DisturbanceMonitor) -> LatencyProfile:
        """The profile of everything that was timed."""
        pair = self.pair
        models = latencies(pair, self.measured, self.contexts, self.forwards)
        steps = [step for step in self.steps if step.timed.times]
        tokens = [
            count
            for count in self.measured[1]
            if all(self.forwards[role, 1, self.context, count].times for role in pair.models)
        ]
        return LatencyProfile(
            hardware=pair.machine.hardware,
            software=pair.machine.software,
            engine={
                "dtype": pair.dtype,
                "graphs": pair.graphs,
                "compile": pair.compiled or False,
                "compile_gain": gains,
                **pair.machine.settings,
                **_first_pass(pair),
                "offload": pair.offload,
                **_streaming(pair),
                "world_size": pair.world.size,
                **({"random_weights": True} if pair.random_weights else {}),
            },
            target=models["target"],
            draft=models["draft"],
            overhead=overhead_of(steps, self.forwards, tokens, self.context),
            disturbed="; ".join([*self.warnings, *monitor.notes()]),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _first_pass(pair: Pair) -> dict[str, int]:
    """The profile's field about the draft's first forward pass, where it is not the usual one."""
    first = pair.machine.first_pass_tokens
    return {} if first == FIRST_WIDTH else {"first_pass_tokens": first}


def _streaming(pair: Pair) -> dict[str, Any]:
    """The profile's fields about an offloaded target."""
    if not pair.target.streamed_layers:
        return {}
    return {
        "memory_budget": pair.memory_budget,
        "streamed_layers": pair.target.streamed_layers,
        "moved_bytes": pair.target.moved_bytes,
    }


def latencies(
    pair: Pair,
    measured: dict[int, list[int]],
    contexts: list[int],
    forwards: dict[Point, Timed],
) -> dict[str, ModelLatency]:
    """Both models' curves, by role.

    Args:
        measured: token counts of each batch.
    """
    roles = pair.models
    names = {"target": pair.target_name, "draft": pair.draft_name}
    measured_models = {
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
            pair.drafter.passes if role == "draft" else PER_LEVEL,
        )
        for role, name in names.items()
        if role in roles
    }
    if "draft" not in roles:
        measured_models["draft"] = ModelLatency(
            pair.draft_name, pair.fingerprints["draft"], [], passes=pair.drafter.passes
        )
    return measured_models


def _path(name: str, source: str) -> dict[str, str]:
    """Where a model's folder is, for other engines, if its name is the folder's: a bundled model
    has another name."""
    is_folder = Path(source).is_dir() and short_name(source) == model_of(name)
    return {"path": str(Path(source).resolve())} if is_folder else {}


def _nothing() -> None:
    """Replaces work that was timed."""


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of one of several parts, as progress of the whole; each counts a hundred."""
    if parts == 1:
        return progress
    return lambda done, total: progress(100 * number + 100 * done // total, 100 * parts)


def tokens_of_batch(tokens: list[int], batch: int) -> list[int]:
    """Query tokens of each sequence to measure for a batch: 1 to 8, and more if the batch is small
    enough for trees of that size to pay."""
    most = max(8, 4 * tokens[-1] // batch)
    return [count for count in tokens if count <= most or batch == 1]


def _check(pair: Pair, tokens: list[int], contexts: list[int], options: ProfileOptions) -> None:
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
    median_ms, low_ms, high_ms = np.array([median_interval(values) for values in times]).T
    means = np.array([clipped_mean(values) for values in times])
    return Curve(batch, context, tokens, median_ms, low_ms, high_ms, means)
