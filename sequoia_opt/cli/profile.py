"""Commands that measure: profile and estimate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import (
    Chat,
    Compile,
    DatasetOption,
    Device,
    Draft,
    Dtype,
    Force,
    Graphs,
    Json,
    MaxSeconds,
    MemoryBudget,
    MinP,
    Offload,
    Output,
    RandomWeights,
    Resume,
    Seed,
    System,
    Target,
    TemplateOption,
    TopK,
    TopP,
    byte_count,
    check_output,
    integers,
    journal,
    load,
    names,
    numbers,
    print_json,
    tell_unused_settings,
    template_of,
)
from sequoia_opt.plan import acceptance, latency
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.repository.provenance import origins_of, source_of, sources_of

if TYPE_CHECKING:
    from sequoia_opt.plan.acceptance import Acceptance


@app.command(epilog="Example: sequoia-opt profile --contexts 128,1024 --tokens 1,2,4,8,16,32")
def profile(
    target: Target = None,
    draft: Draft = None,
    device: Device = None,
    dtype: Dtype = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Query tokens of a forward, 1,2,4,…", show_default="1 to 64; 512 on cuda"
        ),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(help="Cached tokens.", show_default="128,512,1024, as far as the models go"),
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Sequences of a forward, 1,4,16: what serving needs to know.")
    ] = "1",
    verifiers: Annotated[
        str, typer.Option(help="Whose share of a step is measured, sequoia,specinfer,topk.")
    ] = "sequoia",
    repeats: Annotated[
        int | None,
        typer.Option(min=5, help="Rounds that are timed.", show_default="7; 5 if offloaded"),
    ] = None,
    compile: Compile = False,
    graphs: Graphs = None,
    random_weights: RandomWeights = False,
    offload: Offload = "none",
    memory_budget: MemoryBudget = None,
    resume: Resume = False,
    max_seconds: MaxSeconds = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure how long a forward of each model takes here, by number of tokens."""
    counts = integers("--tokens", tokens) if tokens else []
    lengths = integers("--contexts", contexts) if contexts is not None else []
    sequences = integers("--batches", batches)
    started = monotonic()
    budget = byte_count("--memory-budget", memory_budget)
    check_output(output, latency.FORMAT, force=force)
    from sequoia_opt.cli import console
    from sequoia_opt.engine.pair import ROLES
    from sequoia_opt.measure import profiler
    from sequoia_opt.measure.hardware import hardware, software
    from sequoia_opt.repository import paths
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    roles = ROLES if compile else ()
    pair = load(target, draft, device, dtype, roles, graphs, random_weights, offload, budget)
    if compile and max(sequences) > 1:
        with console.waiting("compiling the forwards of several sequences"):
            pair.compile(batch=max(sequences))
    parts = hardware(pair.device)["slug"], pair.target_name, pair.draft_name, pair.dtype
    options = profiler.ProfileOptions(
        tokens=counts,
        contexts=lengths,
        batches=sequences,
        verifiers=names(verifiers),
        repeats=repeats or profiler.default_repeats(pair),
    )
    setting = random_weights, offload, pair.world.size
    about = {
        **asdict(options),
        "models": pair.fingerprints,
        "hardware": hardware(pair.device),
        "software": software(pair.device),
        "engine": [pair.dtype, pair.graphs, pair.compiled, *setting, pair.memory_budget],
    }
    sources = sources_of(target, draft)
    asked = {"tokens": counts, "contexts": lengths, "batches": sequences}
    wanted = output or paths.profile_path(*parts, bool(pair.compiled), *setting)
    if output is None:
        # Beside it parts are kept; what the file is called says what will have been measured.
        planned = Provenance(latency.FORMAT, origins_of(pair, sources), asked=asked)
        wanted = settled(wanted, planned, force)
    left = None if max_seconds is None else max(0.0, max_seconds - (monotonic() - started))
    with closing(journal(wanted, about, resume, left, force)) as kept:
        with console.progress("profiling") as advance:
            measured = profiler.profile(pair, options, advance, console.note, kept)
        for role in sources:
            getattr(measured, role).extra["source"] = sources[role]
        # A model that compiling makes no faster is not compiled any more.
        path = output or paths.profile_path(*parts, bool(pair.compiled), *setting)
        if output is None:
            maker = Provenance.of(measured.document(), **asked)
            path = settled(path, maker, force, console.note)
        measured.save(path)
        kept.finish()
    if as_json:
        print_json(measured.document())
    else:
        console.profile_summary(measured)
    console.written(path)


@app.command(epilog="Example: sequoia-opt estimate --dataset prompts.jsonl --temperature 0.6")
def estimate(
    target: Target = None,
    draft: Draft = None,
    dataset: DatasetOption = None,
    chat: Chat = False,
    system: System = None,
    template_option: TemplateOption = None,
    temperature: Annotated[str, typer.Option(help="0 for greedy; several: 0,0.6,1.")] = "0",
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    verifier: Annotated[
        str, typer.Option(help="Above temperature 0: some of sequoia,specinfer,topk.")
    ] = "sequoia",
    width: Annotated[int, typer.Option(min=1, help="Ranks to sample.")] = 32,
    depths: Annotated[
        int, typer.Option(min=1, help="Depths with rates of their own; 1: the same for all.")
    ] = 1,
    teacher_forced: Annotated[
        bool,
        typer.Option(
            "--teacher-forced",
            help="On the dataset's text, all temperatures and verifiers in one pass; not on the "
            "target's continuations.",
        ),
    ] = False,
    from_stats: Annotated[
        list[Path] | None,
        typer.Option(
            help="What `decode --stats` wrote: rates of the texts decoded so, and nothing is "
            "sampled; may be repeated."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents to use.", show_default="all")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each document.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Documents run together.")] = 16,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    memory_budget: MemoryBudget = None,
    resume: Resume = False,
    max_seconds: MaxSeconds = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Sample how often the target accepts the draft's 1st, 2nd, 3rd … guess."""
    if from_stats:
        unused = {
            "--dataset": dataset,
            "--chat": chat,
            "--system": system,
            "--template-option": template_option,
            "--top-k": top_k,
            "--min-p": min_p,
        }
        if given := [option for option, value in unused.items() if value]:
            raise typer.BadParameter(
                "takes what was decoded as it was; leave it out", param_hint=given[0]
            )
        _from_stats(from_stats, output, force, as_json)
        return
    samplings = [
        Sampling(warm, top_p, name, top_k, min_p) if warm else Sampling(verifier=name)
        for warm in numbers("--temperature", temperature)
        for name in (names(verifier) if warm else names(verifier)[:1])
    ]
    if output is not None and len(samplings) > 1:
        raise typer.BadParameter(
            f"names one file, but {len(samplings)} are to be written", param_hint="--output"
        )
    source = sources_of(dataset=dataset)
    check_output(output, acceptance.FORMAT, [*map(Path, source.values())], force)
    from sequoia_opt.api import load_dataset
    from sequoia_opt.cli import console
    from sequoia_opt.engine.decoder import check_sampling
    from sequoia_opt.engine.verify import Greedy
    from sequoia_opt.measure import estimator
    from sequoia_opt.measure.encoding import check_template
    from sequoia_opt.measure.journal import Journal
    from sequoia_opt.repository import paths
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    for sampling in samplings:
        check_sampling(**asdict(sampling))
    template = template_of(chat, system, template_option)
    name, documents = load_dataset(dataset, console.note)
    name += template.label
    budget = byte_count("--memory-budget", memory_budget)
    pair = load(target, draft, device, dtype, offload=offload, memory_budget=budget, spread=False)
    sampled = f"{name}-teacher-forced" if teacher_forced else name
    files = [
        output
        or paths.acceptance_path(
            pair.target_name,
            pair.draft_name,
            sampled,
            sampling.verifier if sampling.temperature else Greedy.name,
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.min_p,
        )
        for sampling in samplings
    ]
    prints = pair.fingerprints | {"dataset": estimator.fingerprint(documents)}
    sources = sources_of(target, draft) | source
    if output is None:
        origins = origins_of(pair, sources, sampled, prints["dataset"])
        planned = Provenance(acceptance.FORMAT, origins, asked={"limit": limit, "width": width})
        named = [settled(path, planned, force) for path in files]
    else:
        named = files
    options = estimator.EstimateOptions(
        width=width,
        depths=depths,
        max_new_tokens=max_new_tokens,
        limit=limit,
        batch=batch,
        teacher_forced=teacher_forced,
        seed=seed,
        template=template,
    )
    check_template(pair, documents, template, console.note)
    tell_unused_settings(pair)
    if resume and pair.peers.size > 1:
        raise typer.BadParameter("goes with one process", param_hint="--resume")
    about = {
        **asdict(options),
        "samplings": [asdict(sampling) for sampling in samplings],
        "models": pair.fingerprints,
        "dtype": pair.dtype,
        "documents": prints["dataset"],
    }
    # Of several processes each would have to keep its own.
    alone = pair.peers.size == 1
    with closing(
        journal(named[0], about, resume, max_seconds, force)
        if alone
        else Journal(max_seconds=max_seconds)
    ) as kept:
        with console.progress("sampling") as advance:
            found = estimator.estimate(
                pair, documents, sampled, samplings, options, advance, console.note, kept
            )
        for rates in found:
            rates.extra |= {"fingerprints": prints, "max_new_tokens": max_new_tokens}
            rates.extra |= {"sources": sources} if sources else {}
        files = _saved(files, found, output is not None, force, limit=limit, width=width)
        kept.finish()
    _show(files, found, as_json)


def _from_stats(files: list[Path], output: Path | None, force: bool, as_json: bool) -> None:
    """The rates of what was decoded, for each way of sampling that there was."""
    check_output(output, acceptance.FORMAT, files, force)
    from sequoia_opt.plan import decode_stats
    from sequoia_opt.repository import paths

    found = decode_stats.acceptances([text for path in files for text in decode_stats.load(path)])
    if output is not None and len(found) > 1:
        raise typer.BadParameter(
            f"names one file, but the texts were decoded in {len(found)} ways",
            param_hint="--output",
        )
    usual = [
        paths.acceptance_path(
            a.target,
            a.draft,
            a.dataset,
            a.verifier,
            a.temperature,
            a.top_p,
            a.top_k,
            a.min_p,
        )
        for a in found
    ]
    for rates in found:
        names = [source_of(path) or str(path) for path in files]
        rates.extra["sources"] = {"dataset": ", ".join(sorted(names))}
    chosen = usual if output is None else [output]
    _show(_saved(chosen, found, output is not None, force), found, as_json)


def _saved(
    files: Sequence[Path],
    found: Sequence[Acceptance],
    are_named: bool,
    force: bool,
    **asked: object,
) -> list[Path]:
    """Write rates; the files that they are in.

    Args:
        are_named: whether a user named the files.
        asked: what says how much they cover.
    """
    from sequoia_opt.cli import console
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance

    written = []
    for path, rates in zip(files, found, strict=True):
        if not are_named:
            path = settled(path, Provenance.of(rates.document(), **asked), force, console.note)
        rates.save(path)
        written.append(path)
    return written


def _show(files: Sequence[Path], found: Sequence[Acceptance], as_json: bool) -> None:
    """Print rates, and where they are."""
    from sequoia_opt.cli import console

    if as_json:
        entries = [rates.document() for rates in found]
        print_json(entries[0] if len(entries) == 1 else {"estimates": entries})
    for path, rates in zip(files, found, strict=True):
        if not as_json:
            console.acceptance_summary(rates)
        console.written(path)
