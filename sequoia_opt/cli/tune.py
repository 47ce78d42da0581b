"""The command `tune`: the fastest setting of an engine's own speculation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.bench_options import Format, PrintFormat
from sequoia_opt.cli.engine_options import EngineSettings
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import MODELS, SERVER, ApiKey, Force, Json, check_output, print_json
from sequoia_opt.engine.names import LLAMA_CPP, OPENVINO

if TYPE_CHECKING:
    from sequoia_opt.measure.tune.task import Task, TunedEngine

TUNABLE = (LLAMA_CPP, OPENVINO)
PROFILE, ACCEPTANCE = "profile.yaml", "acceptance.yaml"


def _checked_engine(engine: str) -> str:
    if engine not in TUNABLE:
        raise typer.BadParameter(f"found {engine!r}, expected {' or '.join(TUNABLE)}")
    return engine


@app.command(
    epilog="Example: sequoia-opt tune llama.cpp --model big.gguf --draft small.gguf "
    "--prompts prompts.jsonl"
)
@with_option_groups
def tune(
    engine: Annotated[
        str,
        typer.Argument(help=f"Engine to tune: {' or '.join(TUNABLE)}.", callback=_checked_engine),
    ] = LLAMA_CPP,
    *,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to serve: a .gguf file; for openvino also a folder in its format.",
            show_default="bundled, on llama.cpp",
            rich_help_panel=MODELS,
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="Draft model, as for --model.",
            show_default="bundled, or none with --model",
            rich_help_panel=MODELS,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Tune the llama.cpp server that runs at this address, e.g. "
            "http://127.0.0.1:8080, instead of starting servers.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    api_key: ApiKey = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Decode prompts of this dataset, which should be like those that will be served; "
            "see `estimate --dataset`.",
            show_default="bundled",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Number of prompts to decode.")] = 8,
    max_new_tokens: Annotated[
        int, typer.Option(min=8, help="New tokens to decode for each prompt.")
    ] = 128,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Stop after about this many minutes.")
    ] = 5.0,
    settings: EngineSettings,
    save: Annotated[
        Path | None,
        typer.Option(help=f"Write the measurements to this folder, as {PROFILE} and {ACCEPTANCE}."),
    ] = None,
    force: Force = False,
    form: PrintFormat = Format.table,
    as_json: Json = False,
) -> None:
    """Find the fastest setting of an engine's own speculation, and race it.

    The command predicts the speed of every length and threshold of the draft's
    chains from a few runs. Then plain decoding, the engine's default, the best
    setting and the engine's lookups race on the prompts. It prints how to use
    the fastest one.
    """
    if engine == OPENVINO:
        _check_for_openvino(model, url, settings)
    if url is not None and (model or draft or settings.settings):
        raise typer.BadParameter(
            "found models or settings too, expected only the address: a running server has its own",
            param_hint="--url",
        )
    outputs = _outputs(save, force)
    from sequoia_opt.api import load_dataset
    from sequoia_opt.cli.output import note, progress, written
    from sequoia_opt.measure.tune.llama_cpp import tune_files, tune_url
    from sequoia_opt.measure.tune.task import Task
    from sequoia_opt.measure.tune.tuning import TuneSpec

    name, documents = load_dataset(prompts, note)
    task = Task(name, documents, limit, TuneSpec(new_tokens=max_new_tokens, minutes=minutes))
    if engine == OPENVINO:
        outcome = _tuned_pipelines(model, draft, settings, task)
    elif url is not None:
        outcome = tune_url(url, api_key, task, progress, note)
    else:
        outcome = tune_files(_files(model, draft), settings.settings, task, progress, note)
    for path in _saved(outcome, outputs):
        written(path)
    _print(outcome, Format.json if as_json else form)


def _check_for_openvino(model: str | None, url: str | None, settings: EngineSettings) -> None:
    if model is None:
        raise typer.BadParameter(
            "found none, expected one: the bundled draft has no form that OpenVINO GenAI reads",
            param_hint="--model",
        )
    if url is not None:
        raise typer.BadParameter(
            "found an address, expected none: OpenVINO GenAI runs in this process",
            param_hint="--url",
        )
    others = sorted(set(settings.settings) - {"threads"})
    if others:
        raise typer.BadParameter(
            "found a setting of llama.cpp, expected at most --threads for openvino",
            param_hint=f"--{others[0].replace('_', '-')}",
        )


def _tuned_pipelines(
    model: str | None, draft: str | None, settings: EngineSettings, task: Task
) -> TunedEngine:
    from sequoia_opt.cli.output import note, progress
    from sequoia_opt.measure.tune.openvino import tune_pipelines

    files = {role: name for role, name in (("target", model), ("draft", draft)) if name}
    return tune_pipelines(files, settings.settings.get("threads"), task, progress, note)


def _files(model: str | None, draft: str | None) -> dict[str, str]:
    """The models' files by role; the bundled pair's without any."""
    from sequoia_opt import demo

    if model is None:
        model, draft = demo.TARGET_NAME, draft or demo.DRAFT_NAME
    named = {"target": model} | ({"draft": draft} if draft else {})
    return {role: demo.resolve(name, LLAMA_CPP) for role, name in named.items()}


def _outputs(folder: Path | None, force: bool) -> list[Path]:
    """The files to write, checked before anything that takes long; none without a folder."""
    from sequoia_opt.plan import acceptance, latency

    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    formats = {PROFILE: latency.FORMAT, ACCEPTANCE: acceptance.FORMAT}
    for file, kind in formats.items():
        check_output(folder / file, kind, force=force)
    return [folder / file for file in formats]


def _saved(outcome: TunedEngine, outputs: list[Path]) -> list[Path]:
    """Write the measurements of chains, and return the files that were written."""
    from sequoia_opt.cli.output import note
    from sequoia_opt.measure.tune.files import acceptance_of, profile_of

    if not outputs:
        return []
    if outcome.tuned.study is None:
        note("note: nothing to save, since no chains are measured without a draft model")
        return []
    profile, acceptance = outputs
    profile_of(outcome.tuned.study, outcome.tried).save(profile)
    acceptance_of(outcome.tuned.study, outcome.tried).save(acceptance)
    return outputs


def _print(outcome: TunedEngine, form: Format) -> None:
    from sequoia_opt.cli import bench_tables, tune_summary

    results = outcome.tuned.results
    if form is Format.json:
        print_json(tune_summary.document(outcome))
    elif form is Format.csv:
        tune_summary.show_csv(outcome)
    else:
        show = bench_tables.race_markdown if form is Format.md else bench_tables.race_table
        tune_summary.show_study(outcome)
        if results:
            show(results, tune_summary.title(outcome), True)
        elif outcome.tuned.study is not None:
            tune_summary.show_predictions(outcome.tuned.study)
        tune_summary.show_verdict(outcome)
