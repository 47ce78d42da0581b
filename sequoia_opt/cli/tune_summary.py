"""What `tune` prints: its measurements of chains, predictions beside the race, and the verdict.

Knows results. Knows nothing of how they were measured.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sequoia_opt.cli.bench_tables import interval_text, race_csv
from sequoia_opt.cli.csv_output import flat, print_csv
from sequoia_opt.cli.output import counted, digits, note, out, plain
from sequoia_opt.engine.library import NO_SPECULATION
from sequoia_opt.measure.tune.runs import with_draft
from sequoia_opt.measure.tune.tuning import label_of

if TYPE_CHECKING:
    from sequoia_opt.measure.tune.task import TunedEngine
    from sequoia_opt.measure.tune.tuning import ChainStudy, Tuned
    from sequoia_opt.plan.chain_tuning import ChainPrediction

SHOWN_POSITIONS = 8
ENGINES = ("llama-server", "xllamacpp", "openvino-genai")


def title(outcome: TunedEngine) -> str:
    """One line with what was decoded, and where."""
    tried = outcome.tried
    models = tried.target + (f" with {tried.draft}" if outcome.tuned.study else "")
    engine = [f"{name} {tried.software[name]}" for name in ENGINES if name in tried.software]
    machine = tried.hardware["name"]
    if "threads" in tried.hardware:
        machine += f", {counted(tried.hardware['threads'], 'thread')}"
    work = f"{tried.dataset}: {counted(outcome.prompts, 'prompt')}"
    return "; ".join(
        [f"{work}, {outcome.tuned.new_tokens} new tokens each", models, machine, *engine]
    )


def show_study(outcome: TunedEngine) -> None:
    """Print how often guesses are accepted, and what rounds take."""
    study = outcome.tuned.study
    if study is None:
        return
    reached = study.records[0].reached[:SHOWN_POSITIONS] / _steps(study)
    shares = ", ".join(f"{100 * share:.0f}%" for share in reached)
    out.print(f"steps that accept at least 1, 2, 3 … guesses: {shares}")
    rounds = [
        f"{digits(ms)} ms with {length}"
        for length, ms in zip(study.costs.lengths, study.costs.round_ms, strict=True)
    ]
    out.print(
        f"time of a step: {digits(study.costs.plain_ms)} ms plain, {', '.join(rounds)} guesses"
    )


def show_predictions(study: ChainStudy) -> None:
    """Print the predictions of chains that were not tried, by their guesses."""
    for prediction in sorted(study.predictions, key=lambda p: p.setting.guesses):
        interval = interval_text(prediction.low, prediction.high)
        name = label_of(with_draft(prediction.setting))
        out.print(f"{name}: at least {prediction.speedup:.2f}x plain decoding{interval}, predicted")


def show_verdict(outcome: TunedEngine) -> None:
    """Print predictions beside the measurements, and the command to use."""
    tuned = outcome.tuned
    if not tuned.results:
        out.print(
            "no setting is predicted to pay beyond doubt; leave speculation off, or tune with "
            "--model"
            if tuned.best == NO_SPECULATION
            else f"fastest by prediction: {label_of(tuned.best)}"
        )
        plain(outcome.command)
        return
    for speculation, result in zip(tuned.settings, tuned.results, strict=True):
        prediction = tuned.study.of(speculation) if tuned.study else None
        if prediction is not None:
            out.print(
                f"{result.name}: speedup predicted {prediction.speedup:.2f}x, measured "
                f"{result.speedup:.2f}x ({100 * (prediction.speedup / result.speedup - 1):+.1f}%)"
            )
    if (proof := tuned.proof) is not None:
        out.print(
            f"{proof.result.name} on {counted(proof.prompts, 'fresh prompt')}: "
            f"{proof.result.speedup:.2f}x plain decoding{interval_text(*proof.interval)}"
        )
    if tuned.best == NO_SPECULATION:
        _show_that_nothing_pays(tuned)
    else:
        number = tuned.settings.index(tuned.best)
        result = tuned.results[number]
        out.print(f"fastest: {result.name}, {_as_the_best(tuned, number)}")
        if result.agreement < 1:
            note(
                f"note: {100 * (1 - result.agreement):.0f}% of its texts differ from plain "
                "decoding's: the engine rounds differently when it computes several tokens at once"
            )
    plain(outcome.command)


def _show_that_nothing_pays(tuned: Tuned) -> None:
    """Print that no setting is faster, or how far it is from certain that one is."""
    if not tuned.fastest:
        out.print("speculation does not pay: no setting is faster beyond doubt; leave it off")
        return
    out.print(
        "no setting is faster beyond doubt; leave speculation off, or raise --limit: "
        f"{tuned.results[tuned.fastest].name} has {_as_the_best(tuned, tuned.fastest)}"
    )


def _as_the_best(tuned: Tuned, number: int) -> str:
    """A result's speedup, with the interval that allows for its choice among all that raced."""
    low, high = tuned.intervals[number] or (None, None)
    tried = len(tuned.results) - 1
    choice = f", as the best of {tried}" if tried > 1 else ""
    speedup = tuned.results[number].speedup
    return f"{speedup:.2f}x plain decoding{interval_text(low, high)}{choice}"


def show_csv(outcome: TunedEngine) -> None:
    """Print the results as CSV, or the predictions where nothing was tried."""
    if outcome.tuned.results or outcome.tuned.study is None:
        race_csv(outcome.tuned.results, settings_of(outcome))
    else:
        settings = flat(settings_of(outcome))
        print_csv([{**_prediction(p), **settings} for p in outcome.tuned.study.predictions])


def document(outcome: TunedEngine) -> dict[str, Any]:
    """The whole outcome as a mapping."""
    tuned = outcome.tuned
    best = tuned.best
    return {
        **settings_of(outcome),
        "pays": best != NO_SPECULATION,
        "setting": asdict(best),
        "command": outcome.command,
        "results": [_result(outcome, number) for number in range(len(tuned.results))],
        **({} if tuned.proof is None else {"proof": asdict(tuned.proof)}),
        **({} if tuned.study is None else _study(tuned.study)),
    }


def settings_of(outcome: TunedEngine) -> dict[str, Any]:
    """Models, prompts, machine and settings, as a mapping."""
    tried = outcome.tried
    return {
        "target": tried.target,
        "draft": tried.draft,
        "dataset": tried.dataset,
        "prompts": outcome.prompts,
        "max_new_tokens": outcome.tuned.new_tokens,
        "context": tried.context,
        "hardware": dict(tried.hardware),
        "software": dict(tried.software),
        "engine": dict(tried.engine),
    }


def _result(outcome: TunedEngine, number: int) -> dict[str, Any]:
    tuned = outcome.tuned
    speculation = tuned.settings[number]
    low, high = tuned.intervals[number] or (None, None)
    prediction = tuned.study.of(speculation) if tuned.study else None
    predicted = {} if prediction is None else {"predicted": _prediction(prediction)}
    return {
        **asdict(tuned.results[number]),
        "simultaneous_low": low,
        "simultaneous_high": high,
        "setting": asdict(speculation),
        **predicted,
    }


def _study(study: ChainStudy) -> dict[str, Any]:
    costs = study.costs
    return {
        "reached": (study.records[0].reached / _steps(study)).tolist(),
        "steps": _steps(study),
        "plain_ms": costs.plain_ms,
        "lengths": list(costs.lengths),
        "round_ms": costs.round_ms.tolist(),
        "pass_ms": costs.pass_ms,
        "predictions": [_prediction(prediction) for prediction in study.predictions],
    }


def _prediction(prediction: ChainPrediction) -> dict[str, Any]:
    values = asdict(prediction)
    return {**values.pop("setting"), **values}


def _steps(study: ChainStudy) -> int:
    return sum(len(text.accepted) for text in study.records[0].texts)
