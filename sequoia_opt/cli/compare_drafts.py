"""The command that says which draft decodes fastest: compare-drafts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.options import (
    Chat,
    Compile,
    DatasetOption,
    Device,
    Dtype,
    Force,
    Graphs,
    Json,
    MinP,
    System,
    Target,
    Temperature,
    TemplateOption,
    TopK,
    TopP,
    integers,
    load,
    print_json,
    tell_unused_settings,
    template_of,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.processes import is_one_of_several

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair


@app.command(
    name="compare-drafts", epilog="Example: sequoia-opt compare-drafts --draft small --draft tiny"
)
def compare_drafts(
    target: Target = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(help="A draft model, a hub id or a folder; give several, one by one."),
    ] = None,
    dataset: DatasetOption = None,
    chat: Chat = False,
    system: System = None,
    template_option: TemplateOption = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    verifier: Annotated[
        str, typer.Option(help="Above temperature 0: sequoia, specinfer or topk.")
    ] = "sequoia",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents to sample.", show_default="all")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each document.")] = 128,
    contexts: Annotated[
        str | None,
        typer.Option(help="Cached tokens.", show_default="128,512,1024, as far as the models go"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=5, help="Rounds that are timed.")] = 15,
    compile: Compile = False,
    graphs: Graphs = None,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Profile, sample and solve for each draft with one target, and rank them by predicted speed.

    Writes the profile, the acceptance and the tree of each where they belong.
    """
    if is_one_of_several():
        raise SequoiaError("compare-drafts runs in one process; start it without torchrun")
    names = list(dict.fromkeys(draft or []))
    if len(names) < 2:
        raise typer.BadParameter(
            f"found {len(names)}, expected two or more to compare", param_hint="--draft"
        )
    lengths = integers("--contexts", contexts) if contexts is not None else []
    sampling = Sampling(temperature, top_p, verifier, top_k, min_p)
    from sequoia_opt.api import load_dataset
    from sequoia_opt.cli import console
    from sequoia_opt.engine.pair import ROLES, short_name
    from sequoia_opt.measure import compare_drafts, estimator, profiler
    from sequoia_opt.repository import paths, tree_provenance
    from sequoia_opt.repository.outputs import settled
    from sequoia_opt.repository.provenance import Provenance, sources_of

    estimator.check_sampled(sampling)
    if len({short_name(name) for name in names}) < len(names):
        raise SequoiaError(
            "two drafts' folders have the same name, and so would their files; rename one"
        )
    template = template_of(chat, system, template_option)
    source, documents = load_dataset(dataset, console.note)
    source += template.label
    content = estimator.fingerprint(documents)
    measuring = profiler.ProfileOptions(
        contexts=lengths,
        repeats=repeats,
        verifiers=[sampling.verifier],
    )
    estimating = estimator.EstimateOptions(
        max_new_tokens=max_new_tokens, limit=limit, template=template
    )
    judged = []

    def loaded(name: str) -> Pair:
        pair = load(target, name, device, dtype, ROLES if compile else (), graphs)
        if name == names[0]:
            tell_unused_settings(pair)
        return pair

    for name in names:
        try:
            found = compare_drafts.judge(
                # Nothing holds on to the pair: the next one needs its memory.
                loaded(name),
                documents, source, sampling, measuring, estimating, console.progress, console.note,
            )  # fmt: skip
        except SequoiaError as error:
            console.note(f"left out: {error}")
            continue
        slug, engine = str(found.profile.hardware["slug"]), found.profile.engine
        own = found.profile.target.model, found.profile.draft.model
        rates = found.acceptance
        profile = paths.profile_path(slug, *own, engine["dtype"], bool(engine["compile"]))
        acceptance = paths.acceptance_path(
            *own,
            source,
            rates.verifier,
            rates.temperature,
            rates.top_p,
            rates.top_k,
            rates.min_p,
        )
        sources = sources_of(target, name, dataset)
        for role in ("target", "draft"):
            if role in sources:
                getattr(found.profile, role).extra["source"] = sources[role]
        rates.extra |= {"sources": sources} if sources else {}
        rates.extra["max_new_tokens"] = max_new_tokens
        rates.extra["fingerprints"] = rates.extra["fingerprints"] | {"dataset": content}
        profile = settled(profile, Provenance.of(found.profile.document()), force, console.note)
        acceptance = settled(
            acceptance, Provenance.of(rates.document(), limit=limit), force, console.note
        )
        found.profile.save(profile)
        rates.save(acceptance)
        tree = tree_provenance.planned_tree(
            found.plan, tree_provenance.Source(profile, acceptance), {}
        )
        path = paths.tree_path(slug, profile, rates, acceptance)
        path = settled(path, Provenance.of(tree.document()), force, console.note)
        tree.save(path)
        console.written(path)
        judged.append(found)
    if not judged:
        raise SequoiaError("no draft could be measured")
    judged = compare_drafts.ranked(judged)
    if as_json:
        first = judged[0].profile
        document = {
            "drafts": [each.document() for each in judged],
            "target": first.target.model,
            "dataset": source,
            "hardware": first.hardware,
            "software": first.software,
            **asdict(sampling),
        }
        print_json(document)
    else:
        console.drafts_table(judged)
