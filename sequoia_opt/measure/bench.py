"""The benchmark: a solved tree against plain decoding, the library's methods and other trees.

`BenchSpec` says what to compare, `prepare` turns it into methods and prompts for a loaded pair,
and `PreparedBench.run` decodes. Knows methods and trees. Knows nothing of files to write or of
how results are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sequoia_opt.engine.library import DRAFT, LOOKUP, NO_SPECULATION, Speculation
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
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
from sequoia_opt.measure.method_labels import LABELS, label_of
from sequoia_opt.measure.method_names import (
    BLIND,
    LIBRARY_METHODS,
    METHODS,
    PLANNED,
    REVERIFIED,
    SERVER_GUESSES,
    SERVER_NGRAMS,
    STATIC,
    SYNTHETIC,
    engine_of,
    methods_of,
)
from sequoia_opt.measure.methods import Method
from sequoia_opt.measure.progress import Note, ProgressBar, no_note, no_progress_bar
from sequoia_opt.measure.race import Result, race
from sequoia_opt.measure.records import Document
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.draft_names import LOOKUP as LOOKUP_DRAFT
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solve_options import DEFAULT_MAX_DEPTH
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

TUNING_PROMPTS = 2  # prompts on which assisted generation's number of guesses is tuned
SPECULATIONS = {
    "generate": NO_SPECULATION,
    "assisted": Speculation(DRAFT),
    "assisted-best": Speculation(DRAFT),
    "lookup": Speculation(LOOKUP),
    "server": NO_SPECULATION,
    "server-draft": Speculation(DRAFT),
    **{name: Speculation(DRAFT, guesses) for name, guesses in SERVER_GUESSES.items()},
    **{name: Speculation(kind) for name, kind in SERVER_NGRAMS.items()},
}
"""How the library speculates, by the names of its methods."""


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
        named: whether the user named the methods, so that none may be left out silently.
        seed: of the random numbers of this program's methods.
    """

    methods: Sequence[str]
    rivals: Mapping[str, TokenTree] = field(default_factory=dict)
    synthetic: Synthetic | None = None
    sizes: Sequence[int] = ()
    named: bool = False
    seed: int = 0


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
        plan = self.spec.tree
        static = () if plan.policy is None else (STATIC, *REVERIFIED)
        trees = {"plain": AUTOREGRESSIVE, "tree": plan, **dict.fromkeys(static, plan.static)}
        return {**trees, **self.spec.rivals}

    def identity(self) -> dict[str, Any]:
        """What another run must have in common with this one to resume it."""
        synthetic = self.spec.synthetic
        return {
            **{key: value for key, value in self.settings.items() if key != "date"},
            "methods": list(self.names),
            "tokens": self.workload.prompts,
            "trees": {name: structure(tree) for name, tree in self.trees.items()},
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
            SequoiaError: a method has no time to compare, or the library fails.
        """
        try:
            return self._run(journal or Journal(), progress_bar, note)
        finally:
            self.pair.library.close()

    def _run(self, journal: Journal, progress_bar: ProgressBar, note: Note) -> BenchResults:
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
            "trees": {label: structure(tree) for label, tree in trees.items()},
        }
        labels = {name: method.name for name, method in made.items()}
        return BenchResults(results, settings, labels, self.spec.sizes)

    def _method(self, name: str, journal: Journal, progress_bar: ProgressBar) -> Method:
        """The method of that name.

        Args:
            journal: keeps assisted generation's best number of guesses.
        """
        sampling = self.spec.sampling
        if name in SPECULATIONS:
            speculation, label = SPECULATIONS[name], LABELS.get(name, name)
            if name == "assisted-best":
                guesses = self._best_guesses(journal, progress_bar)
                speculation, label = Speculation(DRAFT, guesses), f"assisted, {guesses} guesses"
            return methods.with_library(self.pair, label, speculation, sampling)
        options = {**asdict(sampling), "seed": self.spec.seed}
        verifier = options.pop("verifier")
        if name == "k-sequences":
            verifier = "specinfer"
        elif name in REVERIFIED:
            verifier = name
        tree = self.trees.get(name, self.spec.tree)
        label = label_of(name, tree, self.spec.tree)
        if self.spec.synthetic is not None:
            depth = 1 + max(tree.largest_depth for tree in self.trees.values())
            options["rates"] = self.spec.synthetic.acceptance.table(depth)
            label += "" if name == "plain" else ", synthetic"
        return methods.with_tree(self.pair, label, tree, verifier=verifier, **options)

    def _best_guesses(self, journal: Journal, progress_bar: ProgressBar) -> int:
        """Assisted generation's best number of guesses, measured once."""
        guesses: int | None = journal.recall("guesses")
        if guesses is None:
            prompts = self.workload.prompts[:TUNING_PROMPTS]
            with progress_bar("tuning assisted generation") as progress:
                guesses = methods.best_guesses(
                    self.pair, prompts, self.spec.max_new_tokens, progress, self.spec.sampling
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
        SequoiaError: no prompt is usable, or a method was named that this engine does not have.
    """
    chosen = workload(spec, pair, dataset, documents, note)
    tokens = chosen.longest + spec.max_new_tokens
    names = runnable(spec.methods, pair, tokens, note, spec.named)
    settings = settings_of(
        spec, pair, chosen, None if spec.synthetic is None else spec.synthetic.file
    )
    if spec.sampling.temperature > 0:
        settings["seed"] = spec.seed
    if set(names) & set(SPECULATIONS):
        if description := pair.library.description():
            settings["library"] = description
        if remark := pair.library.remark():
            note(f"note: {remark}")
    return PreparedBench(spec, pair, chosen, names, settings)


def structure(tree: TokenTree) -> dict[str, Any]:
    """What a results file says of a tree: its nodes, and how it grows if it does."""
    nodes: dict[str, Any] = {"parents": list(tree.parents), "ranks": list(tree.ranks)}
    return nodes if tree.policy is None else {**nodes, "policy": tree.policy.document()}


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
    same = {*REVERIFIED} if sampling.temperature == 0 else {sampling.verifier}
    if tree.policy is None:
        same.add(STATIC)
    elif synthetic:  # trees grow by the draft's probabilities, which are not simulated
        same.add("tree")
    if tree.metadata.get("draft") == LOOKUP_DRAFT:  # it has no static trees
        same |= {STATIC, *PLANNED, *REVERIFIED}
    names = [name for name in METHODS if name not in same]
    names = distinct_methods(names, tree)
    return [name for name in names if name in SYNTHETIC] if synthetic else names


def distinct_methods(names: Sequence[str], tree: TokenTree) -> list[str]:
    """Leave out a one-node tree if plain decoding, the same method, is compared too."""
    if tree.size > 1 or "plain" not in names:
        return list(names)
    same = {STATIC, *REVERIFIED} if tree.speculates else {STATIC, "tree", *REVERIFIED}
    return [name for name in names if name not in same]


def runnable(
    names: Sequence[str], pair: Pair, tokens: int, note: Note, named: bool = False
) -> list[str]:
    """Leave out the methods that the pair's engine does not have, or cannot run with this pair.

    Args:
        tokens: of the longest prompt and its new tokens.
        note: called with one line for each reason why methods of this engine are left out.
        named: whether the user named the methods; else those of other engines are no surprise.

    Raises:
        SequoiaError: a method was named that the engine does not have, or whose library is not
            there; or none is left.
    """
    own = methods_of(pair.engine)
    others = [name for name in names if engine_of(name) not in ("", pair.engine)]
    if named and others:
        raise SequoiaError(
            f"methods: {others[0]} is a method of the engine {engine_of(others[0])}, expected some "
            f"of {', '.join(own)}"
        )
    left_out: dict[str, list[str]] = {}
    for name in names:
        if name in LIBRARY_METHODS[pair.engine]:
            try:
                obstacle = pair.library.obstacle(SPECULATIONS[name], tokens)
            except SequoiaError as error:
                if named:
                    raise
                obstacle = str(error)
            if obstacle:
                left_out.setdefault(obstacle, []).append(name)
    for reason, left in left_out.items():
        verb = "is" if len(left) == 1 else "are"
        note(f"{', '.join(left)} {verb} left out: {reason}")
    excluded = {*others, *(name for left in left_out.values() for name in left)}
    return [name for name in names if name not in excluded]


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
