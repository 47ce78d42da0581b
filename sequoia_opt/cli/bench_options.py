"""What `bench`, `bench-sizes` and `calibrate` share: their options, and what they do with them.

Knows options, files and how to load models. Knows nothing of the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.engine_options import EngineOptions
from sequoia_opt.cli.loading import load, tell_unused_settings
from sequoia_opt.cli.options import (
    Chat,
    Corpus,
    DatasetOption,
    Device,
    Draft,
    Dtype,
    Force,
    Graphs,
    Json,
    MaxSeconds,
    Resume,
    System,
    Target,
    TemplateOption,
    check_output,
    journal,
    print_json,
    template_of,
)
from sequoia_opt.cli.tree_defaults import (
    TreeCompile,
    TreeMemoryBudget,
    TreeMinP,
    TreeOffload,
    TreeTemperature,
    TreeTopK,
    TreeTopP,
    TreeVerifier,
    check_world,
    compiled_roles,
    corpus_of,
    models_of,
    offload_of,
    sampling_of,
    tree_for_this_machine,
)
from sequoia_opt.engine.names import engine_for

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.bench import BenchResults, PreparedBench, Synthetic
    from sequoia_opt.measure.records import Document
    from sequoia_opt.measure.template import Template
    from sequoia_opt.plan.sampling import Sampling
    from sequoia_opt.plan.tree import TokenTree


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


NewTokens = Annotated[int, typer.Option(min=2, help="New tokens to decode for each prompt.")]
Limit = Annotated[int, typer.Option(min=1, help="Number of prompts to decode.")]
Repeats = Annotated[
    int, typer.Option(min=1, help="Decode each prompt this many times; the median counts.")
]
ResultsFile = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write the results to this JSON file, for `plot`."),
]
PrintFormat = Annotated[
    Format, typer.Option("--format", help="Print the results as a table, JSON, CSV or Markdown.")
]
SyntheticAcceptance = Annotated[
    Path | None,
    typer.Option(
        "--synthetic-acceptance",
        help="Simulate acceptance from this file instead of verifying (for speed only: the text "
        "is meaningless).",
    ),
]


@dataclass(frozen=True)
class PairOptions(EngineOptions):
    """The models to run, and how; None for the tree's or the machine's default."""

    target: Target = None
    draft: Draft = None
    corpus: Corpus = None
    compile: TreeCompile = None
    graphs: Graphs = None
    device: Device = None
    dtype: Dtype = None
    offload: TreeOffload = None
    memory_budget: TreeMemoryBudget = None

    def budget(self, tree: TokenTree) -> int | None:
        """Bytes that an offloaded target may take on the device; None for the default."""
        return offload_of(tree, self.offload, self.memory_budget)[1]

    def load(self, tree: TokenTree, random_weights: bool = False) -> Pair:
        """Load the pair that the tree is for, and compile what its profile had compiled."""
        place, budget = offload_of(tree, self.offload, self.memory_budget)
        pair = load(
            *models_of(tree, self.target, self.draft),
            self.device,
            self.dtype,
            compiled_roles(tree, self.compile),
            self.graphs,
            random_weights,
            place,
            budget,
            running=self.on(tree),
            corpus=corpus_of(tree, self.corpus),
        )
        tell_unused_settings(pair)
        return pair


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; None for the tree's setting."""

    temperature: TreeTemperature = None
    top_p: TreeTopP = None
    top_k: TreeTopK = None
    min_p: TreeMinP = None
    verifier: TreeVerifier = None


@dataclass(frozen=True)
class DatasetOptions:
    """The dataset to take prompts from, and how they are put to the models."""

    dataset: DatasetOption = None
    chat: Chat = False
    system: System = None
    template_option: TemplateOption = None

    @property
    def template(self) -> Template:
        """How prompts are put to the models."""
        return template_of(self.chat, self.system, self.template_option)

    def load(self) -> tuple[str, list[Document]]:
        """The dataset's short name and its documents."""
        from sequoia_opt.api import load_dataset
        from sequoia_opt.cli.output import note

        return load_dataset(self.dataset, note)


@dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    output: ResultsFile = None
    format: PrintFormat = Format.table
    force: Force = False
    as_json: Json = False

    @property
    def printed(self) -> Format:
        """How results are printed."""
        return Format.json if self.as_json else self.format

    def check(self, dataset: str | None, inputs: Sequence[Path | None]) -> None:
        """Refuse outputs that cannot be written, before anything that takes long.

        Args:
            inputs: the other files that the command reads.
        """
        from sequoia_opt.report import bench_results
        from sequoia_opt.repository.provenance import sources_of

        if self.output is not None and self.output.suffix != ".json":
            raise typer.BadParameter(
                f"found {self.output}, expected a .json file", param_hint="--output"
            )
        sources = map(Path, sources_of(dataset=dataset).values())
        check_output(self.output, bench_results.FORMAT, [*inputs, *sources], self.force)

    def save(self, document: dict[str, Any]) -> None:
        """Write a results file, if one is wanted."""
        from sequoia_opt.cli.output import written
        from sequoia_opt.files.documents import plain, write_document
        from sequoia_opt.report.bench_results import FORMAT, VERSION

        if self.output is not None:
            write_document(self.output, {"format": FORMAT, "version": VERSION, **plain(document)})
            written(self.output)


@dataclass(frozen=True)
class ResumeOptions:
    """Whether a run continues another one, and how long it may take."""

    resume: Resume = False
    max_seconds: MaxSeconds = None

    def check(self, output: Path | None) -> None:
        """Refuse to resume a run whose results are not named."""
        if self.resume and output is None:
            raise typer.BadParameter(
                "needs -o, which names the results of the run to resume", param_hint="--resume"
            )


@dataclass(frozen=True)
class SolvedTree:
    """The tree to run, its file, and how tokens are chosen."""

    tree: TokenTree
    file: Path
    sampling: Sampling


def solved_tree(file: Path | None, engine: PairOptions, sampling: SamplingOptions) -> SolvedTree:
    """Load the tree; by default the bundled pair's for this machine.

    Raises:
        SequoiaError: it cannot be read, or is for other processes or another verifier.
    """
    from sequoia_opt.plan.tree import TokenTree

    file = file or tree_for_this_machine(
        sampling.temperature,
        engine.compile,
        engine.device,
        engine.engine or engine_for(filter(None, (engine.target, engine.draft))),
    )
    tree = TokenTree.load(file)
    check_world(tree)
    chosen = sampling_of(
        tree,
        sampling.temperature,
        sampling.top_p,
        sampling.verifier,
        sampling.top_k,
        sampling.min_p,
    )
    return SolvedTree(tree, file, chosen)


def check_random_weights(random_weights: bool, synthetic: Path | None) -> None:
    """Refuse random models whose acceptance is not simulated."""
    if random_weights and synthetic is None:
        raise typer.BadParameter(
            "models with random weights agree on nothing; add --synthetic-acceptance",
            param_hint="--random-weights",
        )


def synthetic_of(file: Path | None) -> Synthetic | None:
    """The rates to simulate acceptance with, if a file of them is named."""
    from sequoia_opt.measure.bench import Synthetic
    from sequoia_opt.plan.acceptance import Acceptance

    return None if file is None else Synthetic(Acceptance.load(file), file)


def decode_and_save(
    prepared: PreparedBench, outputs: OutputOptions, resuming: ResumeOptions
) -> BenchResults:
    """Run a benchmark, keeping finished parts beside the output, and write its results."""
    from sequoia_opt.cli.output import note, progress
    from sequoia_opt.measure.journal import Journal

    if outputs.output is None:
        opened = Journal(max_seconds=resuming.max_seconds)
    else:
        opened = journal(
            outputs.output,
            prepared.identity(),
            resuming.resume,
            resuming.max_seconds,
            outputs.force,
        )
    with closing(opened):
        results = prepared.run(opened, progress, note)
        outputs.save(results.document())
        if outputs.output is not None:
            opened.finish()
    return results


def print_results(results: BenchResults, form: Format, greedy: bool) -> None:
    """Print a benchmark's results.

    Args:
        greedy: whether texts can be compared.
    """
    from sequoia_opt.cli import bench_tables

    if form is Format.json:
        print_json(results.document())
    elif form is Format.csv:
        bench_tables.race_csv(results.results, results.settings)
    else:
        show = bench_tables.race_markdown if form is Format.md else bench_tables.race_table
        show(results.results, bench_tables.settings_line(results.settings), greedy)
