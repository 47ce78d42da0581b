"""The command `estimate`: how often the target accepts the draft's guesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.acceptance_writer import (
    AcceptanceWriter,
    EnvelopeOption,
    NoEnvelope,
    envelope_of,
    usual_path,
)
from sequoia_opt.cli.app import app
from sequoia_opt.cli.loading import PairToMeasure, tell_unused_settings
from sequoia_opt.cli.option_groups import with_option_groups
from sequoia_opt.cli.options import (
    Chat,
    DatasetOption,
    Force,
    Json,
    MaxSeconds,
    MinP,
    Output,
    Resume,
    Seed,
    System,
    TemplateOption,
    TopK,
    TopP,
    journal,
    names,
    numbers,
    print_json,
    template_of,
)
from sequoia_opt.plan import acceptance
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.draft_names import LOOKUP
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, VERIFIERS
from sequoia_opt.repository.provenance import origins_of, source_of, sources_of

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.estimator import EstimateOptions
    from sequoia_opt.measure.journal import Journal
    from sequoia_opt.measure.records import Document

WITH_RATES = [name for name, spec in VERIFIERS.items() if spec.has_rates]


@app.command(epilog="Example: sequoia-opt estimate --dataset prompts.jsonl --temperature 0.6")
@with_option_groups
def estimate(
    *,
    models: PairToMeasure,
    dataset: DatasetOption = None,
    chat: Chat = False,
    system: System = None,
    template_option: TemplateOption = None,
    temperature: Annotated[
        str, typer.Option(help="Sampling temperature; 0 is greedy; several: 0,0.6,1.")
    ] = "0",
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    verifier: Annotated[
        str,
        typer.Option(
            help="Verifiers above temperature 0, e.g. sequoia,topk. "
            f"Choose from {', '.join(WITH_RATES)}."
        ),
    ] = DEFAULT_VERIFIER,
    width: Annotated[int, typer.Option(min=1, help="Number of ranks to sample.")] = 32,
    depths: Annotated[
        int,
        typer.Option(
            min=1, help="Number of depths with rates of their own; an EAGLE-3 head has at least 8."
        ),
    ] = 1,
    teacher_forced: Annotated[
        bool,
        typer.Option(
            "--teacher-forced",
            help="Follow the dataset's text instead of the target's continuations; one pass serves "
            "all temperatures and verifiers.",
        ),
    ] = False,
    envelope: EnvelopeOption = None,
    no_envelope: NoEnvelope = False,
    from_stats: Annotated[
        list[Path] | None,
        typer.Option(
            help="Compute the rates from this file of `decode --stats` instead of sampling; "
            "repeat for several files."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of documents to use.", show_default="all")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to sample of each document, at most.")
    ] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Number of documents to run together.")] = 16,
    seed: Seed = 0,
    resume: Resume = False,
    max_seconds: MaxSeconds = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Sample how often the target accepts the draft's guesses."""
    writer = AcceptanceWriter(output, force)
    if from_stats:
        _refuse_with_stats(dataset, chat, system, template_option, top_k, min_p, envelope)
        _from_stats(from_stats, writer, as_json)
        return
    samplings = _samplings(
        numbers("--temperature", temperature), names(verifier), top_p, top_k, min_p
    )
    sources = sources_of(dataset=dataset)
    recorded = envelope_of(envelope, no_envelope, models.draft == LOOKUP)
    unrecorded = writer.no_recording(teacher_forced)
    writer.check(len(samplings), [*map(Path, sources.values())])
    from sequoia_opt.api import load_dataset
    from sequoia_opt.cli.output import note
    from sequoia_opt.measure.encoding import check_template
    from sequoia_opt.measure.estimator import EstimateOptions
    from sequoia_opt.plan.verifiers import check_verifier

    for sampling in samplings:
        check_verifier(sampling.verifier)
    if unrecorded and envelope is not None:
        note(f"the drafts are not recorded: {unrecorded}")
    options = EstimateOptions(
        width=width,
        depths=depths,
        max_new_tokens=max_new_tokens,
        limit=limit,
        batch=batch,
        teacher_forced=teacher_forced,
        seed=seed,
        template=template_of(chat, system, template_option),
        envelope=None if unrecorded else recorded,
    )
    name, documents = load_dataset(dataset, note)
    pair = models.load(spread=False)
    check_template(pair, documents, options.template, note)
    tell_unused_settings(pair)
    sources = models.sources | sources
    run = _Run(pair, name, documents, samplings, options, sources)
    run.execute(writer, resume, max_seconds, as_json)


@dataclass(frozen=True)
class _Run:
    """What to sample, with the models loaded.

    Attributes:
        dataset: the dataset's short name.
        sources: where the models and the dataset were read from, if names do not say it all.
    """

    pair: Pair
    dataset: str
    documents: Sequence[Document]
    samplings: Sequence[Sampling]
    options: EstimateOptions
    sources: Mapping[str, str]

    @property
    def label(self) -> str:
        """The dataset's name in the files."""
        mode = "-teacher-forced" if self.options.teacher_forced else ""
        return self.dataset + self.options.template.label + mode

    @property
    def paths(self) -> list[Path]:
        """The usual file of each sampling's rates."""
        pair = self.pair
        return [
            usual_path(pair.target_name, pair.draft_name, self.label, sampling)
            for sampling in self.samplings
        ]

    def execute(
        self, writer: AcceptanceWriter, resume: bool, max_seconds: float | None, as_json: bool
    ) -> None:
        """Sample, write the rates and print them."""
        from sequoia_opt.cli.output import note, progress
        from sequoia_opt.measure import estimator

        options = self.options
        content = estimator.fingerprint(self.documents)
        with closing(self._journal(writer, content, resume, max_seconds)) as opened:
            with progress("sampling") as advance:
                estimates = estimator.estimate(
                    self.pair,
                    self.documents,
                    self.label,
                    self.samplings,
                    options,
                    advance,
                    note,
                    opened,
                )
            for rates in estimates:
                fingerprints = self.pair.fingerprints | {"dataset": content}
                rates.extra |= {
                    "fingerprints": fingerprints,
                    "max_new_tokens": options.max_new_tokens,
                }
                if self.sources:
                    rates.extra["sources"] = dict(self.sources)
                if rates.recording is not None:
                    about = {**rates.recording.about, "fingerprints": fingerprints}
                    rates.recording = replace(rates.recording, about=about)
            files = writer.save(self.paths, estimates, limit=options.limit, width=options.width)
            opened.finish()
        _print(files, estimates, as_json)

    def _journal(
        self, writer: AcceptanceWriter, content: str, resume: bool, max_seconds: float | None
    ) -> Journal:
        """The journal that keeps finished parts, next to the first file to write.

        Args:
            content: fingerprint of the documents.
        """
        from sequoia_opt.measure.journal import Journal
        from sequoia_opt.repository.outputs import settled
        from sequoia_opt.repository.provenance import Provenance

        options, output = self.options, writer.output
        files = [] if output is None else [output]
        if output is None:
            planned = Provenance(
                acceptance.FORMAT,
                origins_of(self.pair, self.sources, self.label, content),
                asked={"limit": options.limit, "width": options.width},
            )
            # All of them now, so that none turns out to be unwritable after the sampling.
            files = [settled(path, planned, writer.force) for path in self.paths]
            output = files[0]
        if options.envelope is not None:
            writer.check_recordings(files)
        if self.pair.peers.size > 1:  # each of several processes would have to keep its own
            if resume:
                raise typer.BadParameter("needs a single process", param_hint="--resume")
            return Journal(max_seconds=max_seconds)
        about = {
            **asdict(self.options),
            "samplings": [asdict(sampling) for sampling in self.samplings],
            "models": self.pair.fingerprints,
            "dtype": self.pair.dtype,
            "documents": content,
        }
        return journal(output, about, resume, max_seconds, writer.force)


def _samplings(
    temperatures: Sequence[float],
    verifiers: Sequence[str],
    top_p: float,
    top_k: int,
    min_p: float,
) -> list[Sampling]:
    """Every temperature with every verifier; a greedy one needs a single verifier and no cuts."""
    samplings = []
    for value in temperatures:
        if value == 0:
            samplings += [Sampling(verifier=name) for name in verifiers[:1]]
        else:
            samplings += [Sampling(value, top_p, name, top_k, min_p) for name in verifiers]
    return samplings


def _refuse_with_stats(
    dataset: str | None,
    chat: bool,
    system: str | None,
    template_option: list[str] | None,
    top_k: int,
    min_p: float,
    envelope: str | None,
) -> None:
    """Refuse options that do nothing with --from-stats."""
    options = {
        "--dataset": dataset,
        "--chat": chat,
        "--system": system,
        "--template-option": template_option,
        "--top-k": top_k,
        "--min-p": min_p,
        "--envelope": envelope,
    }
    if used := [option for option, value in options.items() if value]:
        raise typer.BadParameter(
            "does nothing with --from-stats, whose texts are decoded already; leave it out",
            param_hint=used[0],
        )


def _from_stats(files: list[Path], writer: AcceptanceWriter, as_json: bool) -> None:
    """Write and print the rates of decoded texts, for each pair and sampling in the files."""
    from sequoia_opt.plan import decode_stats

    writer.check_file(files)
    texts = [text for path in files for text in decode_stats.load(path)]
    estimates = decode_stats.acceptances(texts)
    writer.check_count(len(estimates), f"the texts were decoded in {len(estimates)} ways")
    for rates in estimates:
        sources = sorted({source_of(path) or str(path) for path in files})
        rates.extra["sources"] = {"dataset": ", ".join(sources)}
    paths = [
        usual_path(rates.target, rates.draft, rates.dataset, rates.sampling) for rates in estimates
    ]
    _print(writer.save(paths, estimates), estimates, as_json)


def _print(files: Sequence[Path], estimates: Sequence[Acceptance], as_json: bool) -> None:
    """Print rates, and where they were written."""
    from sequoia_opt.cli.acceptance_summary import acceptance_summary
    from sequoia_opt.cli.output import written

    if as_json:
        entries = [rates.document() for rates in estimates]
        print_json(entries[0] if len(entries) == 1 else {"estimates": entries})
    else:
        for rates in estimates:
            acceptance_summary(rates)
    for path in files:
        written(path)
