"""The command `compare-drafts`: which draft decodes fastest with a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.app import app
from sequoia_opt.cli.engine_options import EngineOptions
from sequoia_opt.cli.loading import draft_source, load, tell_unused_settings
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import (
    Chat,
    Compile,
    Contexts,
    Corpus,
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
    TokenCounts,
    TopK,
    TopP,
    integers,
    print_json,
    template_of,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_names import LOOKUP, looks_up
from sequoia_opt.plan.recording import LOOKUP_ENVELOPE, Envelope
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, VERIFIERS
from sequoia_opt.processes import is_one_of_several

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.compare_drafts import DraftResult
    from sequoia_opt.measure.estimator import EstimateOptions
    from sequoia_opt.measure.profiler import ProfileOptions
    from sequoia_opt.measure.records import Document

WITH_RATES = [name for name, spec in VERIFIERS.items() if spec.has_rates]


@app.command(
    name="compare-drafts", epilog="Example: sequoia-opt compare-drafts --draft small --draft tiny"
)
@with_option_groups
def compare_drafts(
    target: Target = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(
            help="Draft to compare: a hub id, a folder, a .gguf file, lookup or lookup+MODEL; "
            "repeat for each."
        ),
    ] = None,
    corpus: Corpus = None,
    dataset: DatasetOption = None,
    chat: Chat = False,
    system: System = None,
    template_option: TemplateOption = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    verifier: Annotated[
        str, typer.Option(help=f"Verifier above temperature 0: one of {', '.join(WITH_RATES)}.")
    ] = DEFAULT_VERIFIER,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Number of documents to sample.", show_default="all"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to sample of each document, at most.")
    ] = 128,
    tokens: TokenCounts = None,
    contexts: Contexts = None,
    repeats: Annotated[int, typer.Option(min=5, help="Time every point this many times.")] = 15,
    compile: Compile = False,
    graphs: Graphs = None,
    device: Device = None,
    dtype: Dtype = None,
    *,
    running: EngineOptions,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Rank several drafts for one target by their predicted speed.

    For each draft: profile the pair, estimate its acceptance, solve for a
    tree, and write the three files under their usual names.
    """
    if is_one_of_several():
        raise SequoiaError("compare-drafts runs in one process; start it without torchrun")
    drafts = list(dict.fromkeys(draft or []))
    _check_drafts(drafts, corpus)
    sampling = Sampling(temperature, top_p, verifier, top_k, min_p)
    timed: dict[str, Any] = {
        "tokens": integers("--tokens", tokens) if tokens is not None else [],
        "contexts": integers("--contexts", contexts) if contexts is not None else [],
    }
    from sequoia_opt.api import load_dataset
    from sequoia_opt.cli.output import note
    from sequoia_opt.engine.pair import ROLES
    from sequoia_opt.measure import estimator, profiler
    from sequoia_opt.measure.compare_drafts import ranked
    from sequoia_opt.repository.provenance import sources_of

    estimator.check_sampled(sampling)
    template = template_of(chat, system, template_option)
    name, documents = load_dataset(dataset, note)
    job = _Job(
        documents,
        name + template.label,
        sampling,
        profiler.ProfileOptions(**timed, repeats=repeats, verifiers=[sampling.verifier]),
        estimator.EstimateOptions(max_new_tokens=max_new_tokens, limit=limit, template=template),
    )

    def loaded(draft_name: str) -> Pair:
        pair = load(
            target,
            draft_name,
            device,
            dtype,
            ROLES if compile else (),
            graphs,
            running=running,
            corpus=corpus if looks_up(draft_name) else None,
        )
        if draft_name == drafts[0]:
            tell_unused_settings(pair)
        return pair

    results = []
    for draft_name in drafts:
        # No name holds the pair, so that its memory is free for the next one.
        result = job.attempt(loaded, draft_name)
        if result is not None:
            sources = sources_of(target, draft_source(draft_name, corpus), dataset)
            job.save(result, sources, force)
            results.append(result)
    if not results:
        raise SequoiaError("no draft could be measured")
    _print(ranked(results), job, as_json)


def _check_drafts(drafts: Sequence[str], corpus: Path | None) -> None:
    """Refuse a corpus without a lookup, a single draft, and drafts whose files have one name."""
    if corpus and not any(map(looks_up, drafts)):
        raise typer.BadParameter(f"goes with --draft {LOOKUP}", param_hint="--corpus")
    if len(drafts) < 2:
        raise typer.BadParameter(
            f"found {len(drafts)}, expected two or more to compare", param_hint="--draft"
        )
    from sequoia_opt.engine.pair import short_name

    if len({short_name(draft) for draft in drafts}) < len(drafts):
        raise SequoiaError(
            "two drafts' folders have the same name, so their files would have too; rename one"
        )


@dataclass(frozen=True)
class _Job:
    """What to measure of every draft.

    Attributes:
        dataset: the dataset's name in the files.
    """

    documents: Sequence[Document]
    dataset: str
    sampling: Sampling
    profiling: ProfileOptions
    estimating: EstimateOptions

    def attempt(self, load: Callable[[str], Pair], draft: str) -> DraftResult | None:
        """Load a draft with its target and measure it; None if that fails, with a note."""
        from sequoia_opt.cli.output import note

        try:
            return self.measure(load(draft), draft == LOOKUP)
        except SequoiaError as error:
            note(f"left out: {error}")
            return None

    def measure(self, pair: Pair, is_lookup: bool) -> DraftResult:
        """Profile a pair, estimate its acceptance and solve for it."""
        from sequoia_opt.cli.output import note, progress
        from sequoia_opt.measure.compare_drafts import measure_draft

        envelope = LOOKUP_ENVELOPE if is_lookup else Envelope()
        return measure_draft(
            pair,
            self.documents,
            self.dataset,
            self.sampling,
            self.profiling,
            replace(self.estimating, envelope=envelope),
            progress,
            note,
        )

    def save(self, result: DraftResult, sources: dict[str, str], force: bool) -> None:
        """Write a draft's profile, acceptance and tree under their usual names.

        Args:
            sources: where the models and the dataset were read from, if names do not say it all.
            force: whether other files may be replaced.
        """
        from sequoia_opt.cli.output import note, written
        from sequoia_opt.measure import estimator
        from sequoia_opt.repository import paths, tree_provenance
        from sequoia_opt.repository.outputs import settled
        from sequoia_opt.repository.provenance import Provenance

        profile, rates = result.profile, result.acceptance
        for role in ("target", "draft"):
            if role in sources:
                getattr(profile, role).extra["source"] = sources[role]
        if sources:
            rates.extra["sources"] = sources
        rates.extra["max_new_tokens"] = self.estimating.max_new_tokens
        content = estimator.fingerprint(self.documents)
        rates.extra["fingerprints"] = rates.extra["fingerprints"] | {"dataset": content}
        slug, engine = str(profile.hardware["slug"]), profile.engine
        models = profile.target.model, profile.draft.model
        profile_path = settled(
            paths.profile_path(slug, *models, engine["dtype"], bool(engine["compile"])),
            Provenance.of(profile.document()),
            force,
            note,
        )
        rates_path = settled(
            paths.acceptance_path(
                *models,
                self.dataset,
                rates.verifier,
                rates.temperature,
                rates.top_p,
                rates.top_k,
                rates.min_p,
            ),
            Provenance.of(rates.document(), limit=self.estimating.limit),
            force,
            note,
        )
        profile.save(profile_path)
        rates.save(rates_path)
        source = tree_provenance.Source(profile_path, rates_path)
        tree = tree_provenance.planned_tree(result.plan, source, {})
        tree_path = settled(
            paths.tree_path(slug, profile_path, rates, rates_path),
            Provenance.of(tree.document()),
            force,
            note,
        )
        tree.save(tree_path)
        written(tree_path)


def _print(results: Sequence[DraftResult], job: _Job, as_json: bool) -> None:
    """Print drafts, the fastest first."""
    from sequoia_opt.cli.drafts_table import drafts_table, fastest_line
    from sequoia_opt.measure.compare_drafts import probability_faster

    if not as_json:
        drafts_table(results)
        if len(results) > 1:
            first, second = results[:2]
            fastest_line(first, second, probability_faster(first, second))
        return
    profile = results[0].profile
    document: dict[str, Any] = {
        "drafts": [result.document() for result in results],
        "target": profile.target.model,
        "dataset": job.dataset,
        "hardware": profile.hardware,
        "software": profile.software,
        **asdict(job.sampling),
    }
    print_json(document)
