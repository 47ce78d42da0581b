"""The command `profile`: how long forward passes take on this machine."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.loading import PairToMeasure
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import (
    Compile,
    Contexts,
    Force,
    Graphs,
    Json,
    MaxSeconds,
    Output,
    RandomWeights,
    Resume,
    TokenCounts,
    check_output,
    integers,
    journal,
    names,
    print_json,
)
from sequoia_opt.plan import latency
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, VERIFIERS
from sequoia_opt.repository.provenance import origins_of

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.profiler import ProfileOptions


@app.command(epilog="Example: sequoia-opt profile --contexts 128,1024 --tokens 1,2,4,8,16,32")
@with_option_groups
def profile(
    *,
    models: PairToMeasure,
    tokens: TokenCounts = None,
    contexts: Contexts = None,
    batches: Annotated[
        str,
        typer.Option(help="Numbers of sequences in a forward pass, e.g. 1,4,16 to plan serving."),
    ] = "1",
    verifiers: Annotated[
        str,
        typer.Option(
            help="Verifiers whose step overhead to measure, besides greedy's, e.g. sequoia,topk. "
            f"Choose from {', '.join(VERIFIERS)}."
        ),
    ] = DEFAULT_VERIFIER,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=5,
            help="Time every point this many times.",
            show_default="7, for an offloaded target 5",
        ),
    ] = None,
    compile: Compile = False,
    graphs: Graphs = None,
    random_weights: RandomWeights = False,
    resume: Resume = False,
    max_seconds: MaxSeconds = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Time each model's forward pass by number of tokens."""
    asked: dict[str, Any] = {
        "tokens": integers("--tokens", tokens) if tokens is not None else [],
        "contexts": integers("--contexts", contexts) if contexts is not None else [],
        "batches": integers("--batches", batches),
    }
    started = monotonic()
    _ = models.budget  # a size that cannot be read is refused before the models are
    check_output(output, latency.FORMAT, force=force)
    from sequoia_opt.cli.output import note, progress, waiting, written
    from sequoia_opt.cli.profile_summary import profile_summary
    from sequoia_opt.engine.pair import ROLES
    from sequoia_opt.measure import profiler
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    roles = ROLES if compile else ()
    pair = models.load(roles, graphs, random_weights)
    largest_batch = max(asked["batches"])
    if compile and largest_batch > 1:
        with waiting("compiling the forward passes of several sequences"):
            pair.compile(batch=largest_batch)
    options = profiler.ProfileOptions(
        **asked, verifiers=names(verifiers), repeats=repeats or profiler.default_repeats(pair)
    )
    sources = models.sources
    journal_beside = output or _usual_path(pair)
    if output is None:
        # Finished parts are kept next to the file that is named after the measurement.
        planned = Provenance(latency.FORMAT, origins_of(pair, sources), asked=asked)
        journal_beside = settled(journal_beside, planned, force)
    left = None if max_seconds is None else max(0.0, max_seconds - (monotonic() - started))
    with closing(journal(journal_beside, _identity(pair, options), resume, left, force)) as opened:
        with progress("profiling") as advance:
            measured = profiler.profile(pair, options, advance, note, opened)
        for role in sources:
            getattr(measured, role).extra["source"] = sources[role]
        # Named only now: profiling stops compiling a model that it makes no faster.
        path = output or _usual_path(pair)
        if output is None:
            path = settled(path, Provenance.of(measured.document(), **asked), force, note)
        measured.save(path)
        opened.finish()
    if as_json:
        print_json(measured.document())
    else:
        profile_summary(measured)
    written(path)


def _usual_path(pair: Pair) -> Path:
    """The file of the pair's profile on this machine, where no other is named."""
    from sequoia_opt.repository import paths

    return paths.profile_path(
        str(pair.machine.hardware["slug"]),
        pair.target_name,
        pair.draft_name,
        pair.dtype,
        bool(pair.compiled),
        pair.random_weights,
        pair.offload,
        pair.world.size,
        pair.engine,
    )


def _identity(pair: Pair, options: ProfileOptions) -> dict[str, Any]:
    """What another run must have in common with this one to resume it."""
    engine = pair.dtype, pair.graphs, pair.compiled, pair.random_weights, pair.offload
    return {
        **asdict(options),
        "models": pair.fingerprints,
        "hardware": pair.machine.hardware,
        "software": pair.machine.software,
        "engine": [*engine, pair.world.size, pair.memory_budget, pair.machine.settings],
    }
