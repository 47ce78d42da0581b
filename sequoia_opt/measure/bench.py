"""The benchmark: a solved tree against plain decoding, transformers' methods and other trees.

`BenchSpec` says what to compare, `prepare` turns it into methods and prompts for a loaded pair,
and `PreparedBench.run` decodes. Knows methods and trees. Knows nothing of files to write or of
how results are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sequoia_opt.engine.pair import Pair
from sequoia_opt.files.names import content_fingerprint
from sequoia_opt.measure import methods
from sequoia_opt.measure.comparison import (
    ComparisonSpec,
    Workload,
    settings_of,
    warn_of_few,
    workload,
)
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.method_names import ASSISTED, BLIND, METHODS, REVERIFIED, SYNTHETIC
from sequoia_opt.measure.methods import Method
from sequoia_opt.measure.progress import Note, ProgressBar, no_note, no_progress_bar
from sequoia_opt.measure.race import Result, race
from sequoia_opt.measure.records import Document
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solve_options import DEFAULT_MAX_DEPTH
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

TUNING_PROMPTS = 2  # prompts on which assisted generation's number of guesses is tuned
LABELS = {
    "chain": "best chain",
    "k-sequences": "best k sequences",
    "tree": "solved tree",
    **dict.fromkeys(BLIND, "most tokens"),
    **{name: f"solved tree, {name}" for name in REVERIFIED},
}


@dataclass(frozen=True)
class Synthetic:
    """Acceptance rates to simulate verification with, whatever the models say.

    Attributes:
        file: the file of the rates, which the results name.
    """

    acceptance: Acceptance
    file: Path


@dataclass(frozen=True, kw_only=True)
class BenchSpec(ComparisonSpec):
    """What a benchmark compares.

    Attributes:
        methods: names of METHODS or of `rivals`; the first method is the baseline.
        rivals: the trees of methods that have one of their own, see `rival_trees`.
        synthetic: simulates acceptance; None to decode what the models say.
        sizes: node counts that the rivals were made for, which the results name.
    """

    methods: Sequence[str]
    rivals: Mapping[str, TokenTree] = field(default_factory=dict)
    synthetic: Synthetic | None = None
    sizes: Sequence[int] = ()


@dataclass(frozen=True)
class BenchResults:
    """What a benchmark measured.

    Attributes:
        results: one for each method, the baseline first.
        settings: the pair, options, machine and trees of the run.
        labels: the results' names by the names of the methods.
        sizes: node counts that the trees were made for, if they were.
    """

    results: list[Result]
    settings: dict[str, Any]
    labels: Mapping[str, str]
    sizes: Sequence[int] = ()

    def result_of(self, method: str) -> Result:
        """The result of the method of that name."""
        return next(result for result in self.results if result.name == self.labels[method])

    def document(self) -> dict[str, Any]:
        """The content of a results file, without its format and version."""
        document = {"results": [asdict(result) for result in self.results], **self.settings}
        return document | ({"sizes": list(self.sizes)} if self.sizes else {})


@dataclass(frozen=True)
class PreparedBench:
    """A benchmark with its pair, prompts and methods, ready to run.

    Attributes:
        names: the methods that this pair can run.
        settings: what the results will say of the run.
    """

    spec: BenchSpec
    pair: Pair
    workload: Workload
    names: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def trees(self) -> dict[str, TokenTree]:
        """The trees by the names of the methods."""
        return {"plain": AUTOREGRESSIVE, "tree": self.spec.tree, **self.spec.rivals}

    def identity(self) -> dict[str, Any]:
        """What another run must have in common with this one to resume it."""
        synthetic = self.spec.synthetic
        return {
            **{key: value for key, value in self.settings.items() if key != "date"},
            "methods": list(self.names),
            "tokens": self.workload.prompts,
            "trees": {name: [tree.parents, tree.ranks] for name, tree in self.trees.items()},
            "rates": None if synthetic is None else content_fingerprint(synthetic.file),
        }

    def run(
        self,
        journal: Journal | None = None,
        progress_bar: ProgressBar = no_progress_bar,
        note: Note = no_note,
    ) -> BenchResults:
        """Decode every prompt with every method.

        Args:
            journal: keeps finished parts for a run that resumes this one.
            note: called with one line if the time was up early.

        Raises:
            SequoiaError: a method has no time to compare.
        """
        journal = journal or Journal()
        made = {name: self._method(name, journal, progress_bar) for name in self.names}
        distinct = {method.name: method for method in made.values()}  # two may be the same tree
        with progress_bar("decoding") as progress:
            outcome = race(
                list(distinct.values()),
                self.workload.prompts,
                self.spec.max_new_tokens,
                self.spec.repeats,
                progress,
                note=note,
                journal=journal,
                world=self.pair.world,
            )
        results = outcome.results()
        decoded = results[0].prompts
        if decoded < len(self.workload.prompts):
            warn_of_few(decoded, note)
        trees = {made[name].name: self.trees[name] for name in self.names if name in self.trees}
        settings = {
            **self.settings,
            "prompts": decoded,
            "trees": {
                label: {"parents": list(tree.parents), "ranks": list(tree.ranks)}
                for label, tree in trees.items()
            },
        }
        labels = {name: method.name for name, method in made.items()}
        return BenchResults(results, settings, labels, self.spec.sizes)

    def _method(self, name: str, journal: Journal, progress_bar: ProgressBar) -> Method:
        """The method of that name.

        Args:
            journal: keeps assisted generation's best number of guesses.
        """
        options = asdict(self.spec.sampling)
        verifier = options.pop("verifier")
        if name == "generate":
            return methods.with_generate(self.pair, **options)
        if name == "lookup":
            return methods.with_prompt_lookup(self.pair, **options)
        if name == "assisted":
            return methods.with_assistant(self.pair, **options)
        if name == "assisted-best":
            guesses = self._best_guesses(options, journal, progress_bar)
            label = f"assisted, {guesses} guesses"
            return methods.with_assistant(self.pair, label, **options, guesses=guesses)
        if name == "k-sequences":
            verifier = "specinfer"
        elif name in REVERIFIED:
            verifier = name
        tree = self.trees.get(name, self.spec.tree)
        label = f"{LABELS[name]} ({tree.size} nodes)" if name in LABELS else name
        if self.spec.synthetic is not None:
            depth = 1 + max(tree.depth for tree in self.trees.values())
            options["rates"] = self.spec.synthetic.acceptance.table(depth)
            label += "" if name == "plain" else ", synthetic"
        return methods.with_tree(self.pair, label, tree, verifier=verifier, **options)

    def _best_guesses(
        self, options: dict[str, Any], journal: Journal, progress_bar: ProgressBar
    ) -> int:
        """Assisted generation's best number of guesses, measured once."""
        guesses: int | None = journal.recall("guesses")
        if guesses is None:
            prompts = self.workload.prompts[:TUNING_PROMPTS]
            with progress_bar("tuning assisted generation") as progress:
                guesses = methods.best_guesses(
                    self.pair, prompts, self.spec.max_new_tokens, progress, **options
                )
            journal.record("guesses", guesses)
        return guesses


def prepare(
    spec: BenchSpec,
    pair: Pair,
    dataset: str,
    documents: Sequence[Document],
    note: Note = no_note,
) -> PreparedBench:
    """Choose the prompts, and leave out the methods that this pair cannot run.

    Args:
        dataset: the dataset's short name.
        note: called with one line for each prompt and method that is left out.

    Raises:
        SequoiaError: no prompt is usable.
    """
    chosen = workload(spec, pair, dataset, documents, note)
    names = runnable(spec.methods, pair, chosen.longest + spec.max_new_tokens, note)
    file = None if spec.synthetic is None else spec.synthetic.file
    return PreparedBench(spec, pair, chosen, names, settings_of(spec, pair, chosen, file))


def run_bench(
    spec: BenchSpec, pair: Pair, dataset: str, documents: Sequence[Document], note: Note = no_note
) -> BenchResults:
    """Run a benchmark without a journal, see `prepare` and `PreparedBench.run`."""
    return prepare(spec, pair, dataset, documents, note).run(note=note)


def default_methods(tree: TokenTree, sampling: Sampling, synthetic: bool = False) -> list[str]:
    """The methods that differ from each other for this tree and sampling.

    Args:
        synthetic: whether acceptance is simulated.
    """
    same_as_tree = REVERIFIED if sampling.temperature == 0 else (sampling.verifier,)
    names = [name for name in METHODS if name not in same_as_tree]
    names = distinct_methods(names, tree)
    return [name for name in names if name in SYNTHETIC] if synthetic else names


def distinct_methods(names: Sequence[str], tree: TokenTree) -> list[str]:
    """Leave out a one-node tree if plain decoding, the same method, is compared too."""
    if tree.size > 1 or "plain" not in names:
        return list(names)
    return [name for name in names if name not in ("tree", *REVERIFIED)]


def runnable(names: Sequence[str], pair: Pair, tokens: int, note: Note) -> list[str]:
    """Leave out the methods that transformers cannot run with this pair.

    Args:
        tokens: of the longest prompt and its new tokens.
    """
    if not set(ASSISTED) & set(names):
        return list(names)
    target, draft = pair.target.vocabulary, pair.draft.vocabulary
    if tokens > pair.draft.positions:
        reason = (
            f"the draft has {pair.draft.positions} positions, a prompt and its new tokens take "
            f"{tokens}"
        )
    elif target != draft:
        reason = (
            f"transformers takes the target's {target} and the draft's {draft} logits for "
            "different tokenizers"
        )
    else:
        return list(names)
    note(f"assisted generation is left out: {reason}")
    return [name for name in names if name not in ASSISTED]


def rival_trees(
    names: Sequence[str], profile: LatencyProfile, acceptance: Acceptance
) -> dict[str, TokenTree]:
    """The trees that a solved one competes with, each the best of its kind by prediction.

    Args:
        names: some of PLANNED. The blind ones maximise tokens per step whatever a step costs.
    """
    plan = solve(profile, acceptance)
    # The smallest shapes, for a profile that prices no others.
    trees = {"chain": shapes.chain(2), "k-sequences": shapes.k_sequences(2, 1)}
    trees |= {candidate.name: candidate.tree for candidate in plan.baselines}
    for name in names:
        if name in BLIND:
            family = best_trees(acceptance.table(DEFAULT_MAX_DEPTH), BLIND[name])
            trees[name] = family.tree(BLIND[name], DEFAULT_MAX_DEPTH)
    return {name: trees[name] for name in names}


def predictions_hold(tree: TokenTree, synthetic: Synthetic | None) -> bool:
    """Whether the tree's predictions are for the acceptance of this benchmark.

    Simulated guesses are accepted independently of each other. That is what predictions from
    rates assume, and not what a replay of recorded ranks counts.
    """
    if synthetic is None:
        return True
    source = tree.metadata.get("provenance", {}).get("acceptance", {})
    same_rates = bool(source.get("fingerprint") == content_fingerprint(synthetic.file))
    return same_rates and "replayed_tokens" not in tree.metadata
