from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_force import random_profile

from sequoia_opt.files.names import content_fingerprint
from sequoia_opt.measure import bench
from sequoia_opt.measure.bench import BenchSpec, PreparedBench, Synthetic
from sequoia_opt.measure.comparison import Workload, settings_of
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.method_names import ASSISTED, METHODS, PLANNED, SYNTHETIC
from sequoia_opt.measure.progress import no_progress_bar
from sequoia_opt.measure.records import Document
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS

RATES = Acceptance(np.array([0.6, 0.2, 0.1]))


def adaptive_plan(static: TokenTree) -> TokenTree:
    """A plan whose trees grow by what the draft says, beside a static tree."""
    confidence = Confidence((0.2, 0.5), (((0.1, 0.4, 0.8), (0.1, 0.2, 0.2)),))
    policy = Policy(confidence, 3, 2, ((1, 0.3), (2, 0.4)), 0.5, 0.1, (1, 2, 4, 6))
    return TokenTree(static.parents, static.ranks, policy=policy)


def prepared(
    pair: Any, folder: Path, tree: TokenTree | None = None, **options: Any
) -> PreparedBench:
    """A benchmark of a small tree on two prompts."""
    path = folder / "tree.json"
    tree = tree or shapes.k_ary(2, 2)
    tree.save(path)
    options = {"methods": ["plain", "tree"], "sampling": Sampling(), **options}
    spec = BenchSpec(tree=tree, tree_file=path, max_new_tokens=12, repeats=1, **options)
    work = Workload("numbers", [[5, 6, 7], [9, 8]])
    return PreparedBench(spec, pair, work, spec.methods, settings_of(spec, pair, work))


def test_python_runs_a_benchmark(make_pair: Callable[..., Any], tmp_path: Path) -> None:
    found = prepared(make_pair(), tmp_path).run()
    assert [result.name for result in found.results] == ["plain", "solved tree (7 nodes)"]
    assert found.result_of("tree") is found.results[1]
    assert found.results[1].agreement == 1
    document = found.document()
    assert next(iter(document)) == "results"
    assert document["trees"]["solved tree (7 nodes)"]["ranks"] == [0, 1, 2, 1, 2, 1, 2]
    assert document["fingerprints"]["tree"] == content_fingerprint(tmp_path / "tree.json")
    assert (document["dataset"], document["prompts"], document["temperature"]) == ("numbers", 2, 0)
    assert "sizes" not in document


def test_two_methods_of_one_tree_are_decoded_once(
    make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    rivals = {"chain": shapes.chain(3), "blind-64": shapes.chain(3), "blind-128": shapes.chain(3)}
    found = prepared(make_pair(), tmp_path, methods=["plain", *rivals], rivals=rivals).run()
    names = ["plain", "best chain (3 nodes)", "most tokens (3 nodes)"]
    assert [result.name for result in found.results] == names
    assert found.result_of("blind-128") is found.result_of("blind-64")


def test_an_adaptive_plan_races_beside_its_best_static_tree(
    make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    plan = adaptive_plan(shapes.k_ary(2, 2))
    methods = ["plain", "static", "tree", "traversal"]
    sampling = Sampling(0.7)
    benchmark = prepared(make_pair(), tmp_path, plan, methods=methods, sampling=sampling)
    found = benchmark.run()
    names = ["plain", "best static tree (7 nodes)", "adaptive plan (up to 6 nodes)"]
    assert [result.name for result in found.results] == [*names, "solved tree, traversal (7 nodes)"]
    assert found.result_of("tree").nodes == 6
    trees = found.document()["trees"]
    assert trees[names[1]] == {"parents": list(plan.parents), "ranks": list(plan.ranks)}
    assert plan.policy is not None
    assert trees[names[2]]["policy"] == plan.policy.document()
    other = TokenTree(plan.parents, plan.ranks, policy=replace(plan.policy, offer=0.2))
    changed = prepared(make_pair(), tmp_path, other, methods=methods, sampling=sampling)
    assert changed.identity()["trees"] != benchmark.identity()["trees"]


def test_of_a_static_plan_the_best_static_tree_is_the_plan(
    make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    found = prepared(make_pair(), tmp_path, methods=["plain", "static", "tree"]).run()
    assert [result.name for result in found.results] == ["plain", "solved tree (7 nodes)"]
    assert found.result_of("static") is found.result_of("tree")


def test_simulated_acceptance_is_marked(make_pair: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    Acceptance(np.array([1.0])).save(path)
    synthetic = Synthetic(Acceptance.load(path), path)
    benchmark = prepared(make_pair(), tmp_path, synthetic=synthetic)
    assert benchmark.identity()["rates"] == content_fingerprint(path)
    plain, tree = benchmark.run().results
    assert (plain.name, tree.name) == ("plain", "solved tree (7 nodes), synthetic")
    assert tree.tokens_per_step == 3  # every first guess is accepted


def test_sampled_texts_follow_from_the_seed(make_pair: Callable[..., Any], tmp_path: Path) -> None:
    pair = make_pair()
    texts = []
    for seed in (1, 1, 2):
        spec = prepared(pair, tmp_path, sampling=Sampling(1.0), seed=seed).spec
        documents = [Document("", "", tokens=(5, 6, 7)), Document("", "", tokens=(9, 8))]
        made = bench.prepare(spec, pair, "numbers", documents)
        assert made.settings["seed"] == seed
        for name in made.names:
            method = made._method(name, Journal(), no_progress_bar)
            texts.append((name, tuple(method.run([5, 6, 7], 12).tokens)))
    assert texts[:2] == texts[2:4]
    assert not set(texts[:2]) & set(texts[4:])


def test_the_number_of_guesses_is_tuned_once(
    make_pair: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run takes it from the journal."""
    tuned: list[int] = []

    def best_guesses(*_: object, **__: object) -> int:
        tuned.append(4)
        return 4

    monkeypatch.setattr(bench.methods, "best_guesses", best_guesses)
    benchmark = prepared(make_pair(), tmp_path, methods=["plain", "assisted-best"])
    for _ in range(2):
        journal = Journal(tmp_path / "journal", benchmark.identity(), resume=True)
        found = benchmark.run(journal)
        journal.close()
        assert found.results[1].name == "assisted, 4 guesses"
    assert tuned == [4]


def test_identity_is_the_same_at_another_time(
    make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    identity = prepared(make_pair(), tmp_path).identity()
    assert "date" not in identity
    assert identity["tokens"] == [[5, 6, 7], [9, 8]]
    assert identity["methods"] == ["plain", "tree"]
    assert set(identity["trees"]) == {"plain", "tree"}


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_default_methods_differ(verifier: str) -> None:
    """The tree's own verifier is not listed again; at temperature 0 none is."""
    tree = shapes.k_ary(2, 2)
    others = [name for name in VERIFIERS if name != verifier]
    same = [*VERIFIERS, "static"]
    sampled = bench.default_methods(tree, Sampling(0.6, verifier=verifier))
    assert sampled == [name for name in METHODS if name not in same] + others
    greedy = bench.default_methods(tree, Sampling(verifier=verifier))
    assert greedy == [name for name in METHODS if name not in same]
    synthetic = bench.default_methods(tree, Sampling(), synthetic=True)
    assert synthetic == [name for name in SYNTHETIC if name != "static"]
    synthetic = bench.default_methods(adaptive_plan(tree), Sampling(), synthetic=True)
    assert synthetic == [name for name in SYNTHETIC if name != "tree"]
    adaptive = bench.default_methods(adaptive_plan(tree), Sampling(0.6, verifier=verifier))
    assert adaptive == [name for name in METHODS if name not in VERIFIERS] + others


def test_a_one_node_tree_is_left_out_beside_plain_decoding() -> None:
    one = AUTOREGRESSIVE
    assert bench.distinct_methods(["plain", "tree", "topk", "chain"], one) == ["plain", "chain"]
    assert bench.distinct_methods(["chain", "tree"], one) == ["chain", "tree"]
    assert bench.distinct_methods(["plain", "tree"], shapes.chain(2)) == ["plain", "tree"]
    growing = adaptive_plan(one)  # no static tree pays, but one that grows does
    assert bench.distinct_methods(["plain", "static", "tree"], growing) == ["plain", "tree"]


def test_assisted_generation_needs_positions_in_the_draft(make_pair: Callable[..., Any]) -> None:
    pair, notes = make_pair(), list[str]()
    names = ["plain", *ASSISTED, "tree"]
    longest = pair.draft.positions
    assert bench.runnable(names, pair, longest, notes.append) == names
    assert not notes
    assert bench.runnable(names, pair, longest + 1, notes.append) == ["plain", "tree"]
    assert notes == [
        f"assisted, assisted-best are left out: the draft has {longest} positions, a prompt and "
        f"its new tokens take {longest + 1}"
    ]
    assert bench.runnable(["plain"], pair, longest + 1, notes.append) == ["plain"]
    assert len(notes) == 1


def test_rivals_are_the_best_of_their_kinds() -> None:
    profile = random_profile(np.random.default_rng(0), "monotone", 16)
    rivals = bench.rival_trees(PLANNED, profile, RATES)
    assert list(rivals) == list(PLANNED)
    assert set(rivals["chain"].child_counts) <= {0, 1}
    assert rivals["blind-64"].size == 64
    assert rivals["blind-128"].size == 128
    assert list(bench.rival_trees(["chain"], profile, RATES)) == ["chain"]


def test_predictions_hold_for_the_rates_that_they_are_from(tmp_path: Path) -> None:
    RATES.save(tmp_path / "rates.yaml")
    synthetic = Synthetic(RATES, tmp_path / "rates.yaml")
    fingerprint = content_fingerprint(synthetic.file)

    def tree(**metadata: Any) -> TokenTree:
        solved = shapes.chain(3)
        solved.metadata.update(metadata)
        return solved

    from_rates = {"acceptance": {"fingerprint": fingerprint}}
    assert bench.predictions_hold(tree(), None)
    assert bench.predictions_hold(tree(provenance=from_rates), synthetic)
    assert not bench.predictions_hold(tree(), synthetic)
    assert not bench.predictions_hold(tree(provenance=from_rates, replayed_tokens=2.0), synthetic)
