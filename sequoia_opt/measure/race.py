"""A race: methods decode the same prompts in turn, and each is counted in the same way.

Tokens per second are those after the first, prefill excluded. Knows nothing of how methods
decode or how results are shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.errors import SequoiaError
from sequoia_opt.frames import with_room
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.methods import Method, Run
from sequoia_opt.measure.progress import Note, Progress, no_note, no_progress
from sequoia_opt.plan.intervals import TAIL, bootstrap, ratio_interval
from sequoia_opt.types import FloatArray

MIN_TURNS = 2  # prompts that are decoded even when the time is up
REPEAT_LENGTH = 4  # tokens of a run that counts as repeated


@dataclass(frozen=True)
class Result:
    """One method's numbers over all prompts.

    Attributes:
        nodes: size of its tree; 0 without a tree.
        tokens_per_step, tokens_per_second, ms_per_token, ms_per_step: over all prompts, from the
            median repetition of each.
        tokens_low, tokens_high: 95% interval of the tokens per step, prompts resampled; None for
            a single prompt.
        speedup: the baseline's time over this method's, for as many tokens.
        speedup_low, speedup_high: 95% interval of the speedup, prompts resampled; None for a
            single prompt.
        agreement: share of prompts with the same tokens as the baseline's.
        repeated: share of the new texts' 4-token runs that occurred before in the same text. A
            text that loops flatters every draft.
        prompts: number of prompts decoded.
        surplus: tokens that last steps yielded past the requested length, for each token of the
            texts. Decoding that goes on has no such loss, and predictions are of that.
    """

    name: str
    nodes: int
    tokens_per_step: float
    tokens_low: float | None
    tokens_high: float | None
    tokens_per_second: float
    ms_per_token: float
    ms_per_step: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    agreement: float
    repeated: float
    prompts: int
    surplus: float = 0.0

    @property
    def endless_speedup(self) -> float:
        """The speedup over plain decoding of texts that go on, where no step is cut short."""
        return self.speedup * (1 + self.surplus)


@dataclass(frozen=True)
class Race:
    """The runs of every method.

    Attributes:
        runs: for each method, its median run of each prompt.
    """

    methods: Sequence[Method]
    runs: Sequence[Sequence[Run]]

    def results(self, baseline: int = 0) -> list[Result]:
        """Every method's result, in the order of the methods.

        Args:
            baseline: index of the method that the others are compared with.

        Raises:
            SequoiaError: a method has no time to compare.
        """
        reference = self.runs[baseline]
        return [
            _result(method, runs, reference)
            for method, runs in zip(self.methods, self.runs, strict=True)
        ]

    def simultaneous_intervals(self, baseline: int = 0) -> list[tuple[float, float] | None]:
        """Intervals of all speedups that hold together with a probability of 95%.

        So the interval of the method that was the fastest holds too, although it was chosen for
        its speed; a 95% interval of its own does not. The tails share 5% (Bonferroni).

        Args:
            baseline: see `results`; every result must have a time.

        Returns:
            One for each method, in their order; None for a single prompt.
        """
        if len(self.runs[baseline]) < 2:
            return [None for _ in self.methods]
        tail = TAIL / max(1, len(self.methods) - 1)
        plain_tokens, plain_seconds = _tokens_and_seconds(self.runs[baseline])
        intervals: list[tuple[float, float] | None] = []
        for runs in self.runs:
            tokens, seconds = _tokens_and_seconds(runs)
            intervals.append(ratio_interval((tokens, plain_seconds), (seconds, plain_tokens), tail))
        return intervals


@with_room
def race(
    methods: Sequence[Method],
    prompts: Sequence[list[int]],
    new_tokens: int,
    repeats: int = 3,
    progress: Progress = no_progress,
    between: Callable[[], object] = lambda: None,
    note: Note = no_note,
    journal: Journal | None = None,
    world: World = ALONE,
) -> Race:
    """Decode every prompt with every method, interleaved so that drift of the machine cancels.

    The order of the methods is shuffled for every prompt, so that what one leaves in the caches
    does not always meet the same other. Each method first decodes one prompt that is not counted.

    Args:
        between: called before each prompt.
        note: called with one line if the time was up before all prompts were decoded.
        journal: keeps the runs of each prompt and says when the time is up; two prompts are
            decoded in any case.
        world: the processes that decode.
    """
    journal = journal or Journal()
    runs: dict[str, list[list[Run]]] = {method.name: [[] for _ in prompts] for method in methods}
    total, done = len(methods) * (1 + len(prompts) * repeats), 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for method in methods:
        method.run(prompts[0], new_tokens)
        advance()
    turns = [(repeat, index) for repeat in range(repeats) for index in range(len(prompts))]
    for number, (repeat, index) in enumerate(turns):
        part = f"repetition {repeat}, prompt {index}"
        recorded = journal.recall(part)
        if recorded is None and number >= MIN_TURNS and journal.time_is_up(world):
            note(f"the time is up: {number} of {len(turns)} prompts decoded, repetitions included")
            break
        if recorded is not None:
            with journal.resuming(part):
                turn = {method.name: Run(**recorded[method.name]) for method in methods}
            done += len(methods)
        else:
            between()
            turn = {}
            for method in random.Random(number).sample(methods, len(methods)):
                turn[method.name] = method.run(prompts[index], new_tokens)
                advance()
            journal.record(part, {name: asdict(run) for name, run in turn.items()})
        for name, run in turn.items():
            runs[name][index].append(run)
    decoded = [index for index, repetitions in enumerate(runs[methods[0].name]) if repetitions]
    return Race(methods, [[_median(runs[m.name][index]) for index in decoded] for m in methods])


def _median(runs: list[Run]) -> Run:
    """The run of median time."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def _tokens_and_seconds(runs: Sequence[Run]) -> tuple[FloatArray, FloatArray]:
    """The timed tokens and the seconds of runs, both [runs]."""
    tokens = np.array([run.timed for run in runs], dtype=np.float64)
    return tokens, np.array([run.seconds for run in runs])


def _result(method: Method, runs: Sequence[Run], baseline: Sequence[Run]) -> Result:
    tokens, seconds = _tokens_and_seconds(runs)
    if not tokens.all():
        raise SequoiaError(
            f"{method.name}: all of a prompt's tokens came at once, which leaves no time to "
            "compare; raise --max-new-tokens"
        )
    steps = np.array([run.steps for run in runs], dtype=np.float64)
    verified = np.array([run.verified for run in runs], dtype=np.float64)
    baseline_tokens, baseline_seconds = _tokens_and_seconds(baseline)

    def speedup(weights: FloatArray) -> FloatArray:
        rates = (weights @ tokens) / (weights @ seconds)
        baseline_rates = (weights @ baseline_tokens) / (weights @ baseline_seconds)
        return np.asarray(rates / baseline_rates)

    def tokens_per_step(weights: FloatArray) -> FloatArray:
        return np.asarray((weights @ verified) / (weights @ steps))

    every_prompt = np.ones(len(runs))
    speedup_low, speedup_high = _interval(speedup, len(runs))
    tokens_low, tokens_high = _interval(tokens_per_step, len(runs))
    same = [run.tokens == other.tokens for run, other in zip(runs, baseline, strict=True)]
    return Result(
        name=method.name,
        nodes=method.nodes,
        tokens_per_step=float(tokens_per_step(every_prompt)),
        tokens_low=tokens_low,
        tokens_high=tokens_high,
        tokens_per_second=float(tokens.sum() / seconds.sum()),
        ms_per_token=float(1000 * seconds.sum() / tokens.sum()),
        ms_per_step=float(1000 * seconds.sum() / steps.sum()),
        speedup=float(speedup(every_prompt)),
        speedup_low=speedup_low,
        speedup_high=speedup_high,
        agreement=float(np.mean(same)),
        repeated=repeated([run.tokens for run in runs]),
        prompts=len(runs),
        surplus=float(verified.sum() / tokens.sum() - 1),
    )


def _interval(
    statistic: Callable[[FloatArray], FloatArray], prompts: int
) -> tuple[float | None, float | None]:
    """95% interval of a statistic of the prompts' weights, see `bootstrap`; None for one prompt."""
    if prompts < 2:
        return None, None
    low, high = bootstrap(lambda weights: statistic(weights.astype(np.float64)), prompts)
    return float(low), float(high)


def repeated(texts: Sequence[Sequence[int]], length: int = REPEAT_LENGTH) -> float:
    """Share of all runs of `length` tokens that occurred before in their text."""
    total = distinct = 0
    for text in texts:
        runs = [tuple(text[i : i + length]) for i in range(len(text) - length + 1)]
        total, distinct = total + len(runs), distinct + len(set(runs))
    return 1 - distinct / total if total else 0.0
