"""Tunes an engine's own speculation: few runs, a prediction for every setting, and a race.

A run with a long chain for each threshold shows which guesses are right, and the times of a few
chains give the time of a round. From these the speed of every length and threshold is predicted.
The predicted best one is timed and predicted again, until the best one has been timed. Then it
races plain decoding, the engine's defaults and its other kinds of speculation. Where that leaves in
doubt whether the fastest pays, it races plain decoding alone once more, on fresh prompts. Knows
nothing of any engine's options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.methods import Method, Run
from sequoia_opt.measure.progress import Note, ProgressBar, no_note, no_progress_bar
from sequoia_opt.measure.race import Result, race
from sequoia_opt.measure.tune.runs import (
    MIN_TEXTS,
    WARM_UP_TOKENS,
    Clock,
    TextTimes,
    TunableEngine,
    recorded,
    timed,
    with_draft,
)
from sequoia_opt.plan.chain_replay import ChainRecord
from sequoia_opt.plan.chain_tuning import ChainPrediction, ChainSetting, predictions
from sequoia_opt.plan.round_costs import RoundCosts, TimedWalk, fit

RECORDING, TIMING, REFINING = 0.2, 0.4, 0.5  # shares of the time at which each stage ends
MEASURING = 0.98  # share of the time; loading the program and ending the engine take the rest
# Where fresh prompts can prove its winner, the race ends after this share of the time that is left,
# but not before it had the time for a few prompts.
RACING, RACED_PROMPTS = 0.5, 3
REFINEMENTS = 4
RACING_CHAINS = 3  # the default, the best and its rival
FEWEST_TOKENS = 16  # of a text, however little time there is
RIVAL = 0.95  # share of the best predicted speed at which a chain of the other rule races too


@dataclass(frozen=True, kw_only=True)
class TuneSpec:
    """What to try.

    Attributes:
        new_tokens: number of tokens to decode for each prompt.
        minutes: time for everything.
        repeats: how often each prompt is decoded in the race, if there is time.
        longest: number of guesses of the recorded chains.
        lengths: numbers of guesses of the chains that are timed first.
        thresholds: probabilities below which a chain may end; 0 for chains of fixed length.
    """

    new_tokens: int = 128
    minutes: float = 5.0
    repeats: int = 3
    longest: int = 16
    lengths: tuple[int, ...] = (1, 2, 4, 8)
    thresholds: tuple[float, ...] = (0.0, 0.3, 0.6)


@dataclass(frozen=True)
class ChainStudy:
    """Measurements of the draft's chains, and predictions from them.

    Attributes:
        records: one for each threshold.
        costs: times of rounds.
        predictions: for all settings, the fastest first.
    """

    records: Sequence[ChainRecord]
    costs: RoundCosts
    predictions: Sequence[ChainPrediction]

    def of(self, speculation: Speculation) -> ChainPrediction | None:
        """The prediction of a setting; None if it has none."""
        for prediction in self.predictions:
            if with_draft(prediction.setting) == speculation:
                return prediction
        return None


@dataclass(frozen=True)
class Proof:
    """The setting that was the fastest in the race, on prompts that had no part in its choice.

    Attributes:
        result: beside plain decoding.
        prompts: number of prompts.
        interval: 95% interval of its speedup.
    """

    result: Result
    prompts: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Tuned:
    """The outcome of `tune`, or of `fixed_settings.study_fixed_settings`.

    Attributes:
        study: measurements of chains; None without a draft model.
        settings: those that raced, plain decoding first, the engine's default second if it has
            a draft model.
        results: one for each setting; empty if no setting could be tried.
        new_tokens: number of tokens that were decoded for each prompt.
        intervals: for each result, the interval of its speedup that allows for the choice among
            all settings, see `Race.simultaneous_intervals`; None for a single prompt.
        proof: of the fastest setting, where the race left doubt and there was time.
    """

    study: ChainStudy | None
    settings: Sequence[Speculation]
    results: Sequence[Result]
    new_tokens: int
    intervals: Sequence[tuple[float, float] | None] = ()
    proof: Proof | None = None

    @property
    def best(self) -> Speculation:
        """The fastest setting that is faster than plain decoding beyond doubt, else none.

        Where all are as fast as plain decoding, it is none in 95% of all runs at least. If no
        setting could be tried, this is the one with the best prediction.
        """
        if not self.results and self.study is not None:
            first = self.study.predictions[0]
            pays = (first.speedup if first.low is None else first.low) > 1
            return with_draft(first.setting) if pays else NO_SPECULATION
        paying = [
            (result.speedup, number)
            for number, (result, interval) in enumerate(
                zip(self.results, self.intervals, strict=True)
            )
            if number and interval is not None and interval[0] > 1
        ]
        if paying:
            return self.settings[max(paying)[1]]
        if self.proof is not None and self.proof.interval[0] > 1:
            return self.settings[self.fastest]
        return NO_SPECULATION

    @property
    def fastest(self) -> int:
        """The place of the result with the largest speedup, beyond doubt or not; 0 is plain."""
        return max(range(len(self.results)), key=lambda number: self.results[number].speedup)


def label_of(speculation: Speculation) -> str:
    """A setting in words."""
    if speculation.kind != DRAFT:
        return "plain" if speculation == NO_SPECULATION else speculation.kind
    if speculation.guesses is None:
        return f"draft, threshold {speculation.threshold:g}"
    guesses = "1 guess" if speculation.guesses == 1 else f"{speculation.guesses} guesses"
    end = f", p-min {speculation.threshold:g}" if speculation.threshold else ""
    return f"draft, {guesses}{end}"


def tune(
    engine: TunableEngine,
    prompts: Sequence[list[int]],
    spec: TuneSpec,
    bar: ProgressBar = no_progress_bar,
    note: Note = no_note,
    fresh: Sequence[list[int]] = (),
) -> Tuned:
    """Find the engine's fastest setting on these prompts.

    Args:
        fresh: other prompts, for a proof.
        bar: shows how far each stage is.
        note: called with one line if the time was up before all prompts were decoded.

    Raises:
        SequoiaError: the engine fails, or has a draft that it never uses.
    """
    clock = Clock(60 * spec.minutes * MEASURING)
    if not engine.ends_unsure_chains:
        spec = replace(spec, thresholds=(0.0,))
    engine.answer(NO_SPECULATION, prompts[0], WARM_UP_TOKENS)  # starts it
    started = clock.passed
    engine.answer(NO_SPECULATION, prompts[0], spec.new_tokens)
    turn = clock.passed - started
    spec, turn = _in_time(engine, spec, turn, clock.left, note)
    study = _studied(engine, prompts, spec, clock, bar) if engine.has_draft else None
    settings = [
        NO_SPECULATION,
        *_candidates(study, engine.default_chain),
        *engine.others,
    ]
    default = with_draft(engine.default_chain)
    labels = [
        f"{label_of(setting)}, the default" if setting == default else label_of(setting)
        for setting in settings
    ]
    methods = [
        method_of(engine, setting, label) for setting, label in zip(settings, labels, strict=True)
    ]
    prompt_seconds = turn * len(settings)
    # Leave time for the prompt that is under way when the race's time is up.
    seconds = max(1.0, clock.left - prompt_seconds)
    if len(fresh) >= MIN_TEXTS:
        seconds = min(seconds, max(RACING * clock.left, RACED_PROMPTS * prompt_seconds))
    with bar("comparing") as progress:
        run = race(
            methods, prompts, spec.new_tokens, spec.repeats, progress, note=note,
            journal=Journal(max_seconds=seconds),
        )  # fmt: skip
    tuned = Tuned(study, settings, run.results(), spec.new_tokens, run.simultaneous_intervals())
    if tuned.best != NO_SPECULATION or not tuned.fastest or len(fresh) < MIN_TEXTS:
        return tuned
    if (seconds := clock.left - 2 * turn) < 2 * MIN_TEXTS * turn:
        return tuned
    with bar("trying the fastest on fresh prompts") as progress:
        run = race(
            [methods[0], methods[tuned.fastest]], fresh, spec.new_tokens, 1, progress,
            journal=Journal(max_seconds=seconds),
        )  # fmt: skip
    interval = run.simultaneous_intervals()[1]
    if interval is None:
        return tuned
    return replace(tuned, proof=Proof(run.results()[1], len(run.runs[0]), interval))


def _in_time(
    engine: TunableEngine, spec: TuneSpec, turn: float, seconds: float, note: Note
) -> tuple[TuneSpec, float]:
    """The spec with shorter texts if not even the fewest texts fit into the time.

    Args:
        turn: seconds of one text.

    Returns:
        The spec, and the seconds that one of its texts takes.
    """
    timed_settings = len(spec.lengths) + 2 * len(spec.thresholds)  # recorded ones included
    fewest = MIN_TEXTS * timed_settings if engine.has_draft else 0
    fewest += (1 + MIN_TEXTS) * (RACING_CHAINS * engine.has_draft + len(engine.others) + 1)
    share = seconds / (fewest * turn)
    new_tokens = max(FEWEST_TOKENS, int(share * spec.new_tokens))
    if new_tokens >= spec.new_tokens:
        return spec, turn
    note(
        f"{spec.minutes:g} minutes are too few for texts of {spec.new_tokens} new tokens: "
        f"{new_tokens} are decoded for each prompt; raise --minutes"
    )
    return replace(spec, new_tokens=new_tokens), turn * new_tokens / spec.new_tokens


def _studied(
    engine: TunableEngine,
    prompts: Sequence[list[int]],
    spec: TuneSpec,
    clock: Clock,
    bar: ProgressBar,
) -> ChainStudy:
    """Record long chains, time short ones, and predict all."""
    long_chains = [ChainSetting(spec.longest, threshold) for threshold in spec.thresholds]
    with bar("recording guesses") as progress:
        records = recorded(
            engine,
            prompts,
            spec.new_tokens,
            long_chains,
            lambda: clock.is_past(RECORDING / len(long_chains)),
            progress,
        )
    if not any(sum(text.drafted) for text in records[0].texts):
        raise SequoiaError(
            "found no guess in any step although there is a draft, expected a draft that the "
            "engine can use with this target; see its log"
        )
    # Steps are known only of recorded texts.
    texts = prompts[: len(records[0].texts)]
    longest_timed = spec.lengths[-1]
    settings = [ChainSetting(guesses) for guesses in spec.lengths]
    settings += [ChainSetting(longest_timed, t) for t in spec.thresholds if t]
    study = _Timings(records)
    with bar("timing rounds") as progress:
        study.add(timed(
            engine, texts, spec.new_tokens, [with_draft(setting) for setting in settings],
            lambda: clock.is_past(TIMING), progress,
        ))  # fmt: skip
        for _ in range(REFINEMENTS):
            best = study.predicted()[0]
            if best.timed or best.speedup <= 1 or clock.is_past(REFINING):
                break
            study.add(timed(
                engine, texts, spec.new_tokens, [with_draft(best.setting)],
                lambda: clock.is_past(REFINING), progress,
            ))  # fmt: skip
    return ChainStudy(records, study.costs(), study.predicted())


class _Timings:
    """Times of settings, all scaled to the time of a plain step in the first stage.

    The machine's speed changes from one stage to the next, so each stage times plain decoding too.
    """

    def __init__(self, records: Sequence[ChainRecord]) -> None:
        self._records = {record.threshold: record for record in records}
        self._runs: dict[ChainSetting, TimedWalk] = {}
        self._plain_ms = 0.0

    def add(self, times: Mapping[Speculation, TextTimes]) -> None:
        """Take the times of a stage."""
        plain = times[NO_SPECULATION]
        self._plain_ms = self._plain_ms or plain.step_ms
        for speculation, taken in times.items():
            if speculation == NO_SPECULATION:
                continue
            setting = ChainSetting(speculation.guesses or 0, speculation.threshold)
            walk = self._records[setting.threshold].walk(setting.guesses)
            ms = taken.step_ms / plain.step_ms * self._plain_ms * int(walk.steps.sum())
            self._runs[setting] = TimedWalk(setting.guesses, setting.threshold, walk, ms)

    def costs(self) -> RoundCosts:
        """Costs fitted to all times."""
        return fit(self._plain_ms, list(self._runs.values()))

    def predicted(self) -> list[ChainPrediction]:
        """All settings, the fastest first."""
        costs = self.costs()
        factors = {
            setting: float(run.ms / np.sum(costs.total_ms(run.walk)))
            for setting, run in self._runs.items()
        }
        return predictions(list(self._records.values()), costs, factors)


def _candidates(study: ChainStudy | None, default: ChainSetting) -> list[Speculation]:
    """Chains to race: the engine's default, the best one, and a close rival of the other rule.

    The two rules are chains of fixed length, and chains that a threshold may end. Where no chain
    is predicted to pay, the default races alone, which leaves time for lookups.
    """
    if study is None:
        return []
    best = study.predictions[0]
    if best.speedup <= 1:
        return [with_draft(default)]
    rivals = [
        prediction.setting
        for prediction in study.predictions
        if bool(prediction.setting.threshold) != bool(best.setting.threshold)
        and prediction.speedup >= RIVAL * best.speedup
    ]
    chains = dict.fromkeys([default, best.setting, *rivals[:1]])
    return [with_draft(chain) for chain in chains]


def method_of(engine: TunableEngine, speculation: Speculation, label: str) -> Method:
    """A setting as an entrant of a race."""

    def run(prompt: list[int], new_tokens: int) -> Run:
        answer = engine.answer(speculation, prompt, new_tokens)
        after_first = len(answer.tokens) - 1
        return Run(
            answer.tokens, answer.steps, after_first, answer.predicted_ms / 1000, after_first
        )

    return Method(label, run)
