"""Nothing is replaced but its own former self."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import acceptance, latency, tree
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report import plots
from sequoia_opt.repository import outputs, solve_all
from sequoia_opt.repository.outputs import Maker, Origin, check_named, kind_of, settled

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rates(**changes: Any) -> Acceptance:
    facts: dict[str, Any] = {"target": "big", "draft": "small", "dataset": "prompts"}
    extra = {
        "fingerprints": {"target": "t", "draft": "d", "dataset": "x"},
        "sources": {"dataset": "a/prompts.jsonl"},
        "documents": 10,
    }
    extra |= changes.pop("extra", {})
    return Acceptance(np.array([0.5, 0.2]), **{**facts, **changes}, extra=extra)


def of(sources: dict[str, str], fingerprints: dict[str, str]) -> Maker:
    return Maker.of(rates(extra={"sources": sources, "fingerprints": fingerprints}).document())


A = of({"dataset": "a/prompts.jsonl", "draft": "run1/x"}, {"dataset": "x", "draft": "d"})


@pytest.mark.parametrize(
    ("maker", "difference"),
    [
        (A, None),
        # Another text, another model.
        (
            of({"dataset": "b/prompts.jsonl", "draft": "run1/x"}, {"dataset": "y", "draft": "d"}),
            "dataset a/prompts.jsonl, not b/prompts.jsonl",
        ),
        (
            of({"dataset": "a/prompts.jsonl", "draft": "run2/x"}, {"dataset": "x", "draft": "e"}),
            "draft run1/x, not run2/x",
        ),
        # The same one, moved; and one whose content was renewed where it is.
        (of({"dataset": "c.jsonl", "draft": "run1/x"}, {"dataset": "x", "draft": "d"}), None),
        (
            of({"dataset": "a/prompts.jsonl", "draft": "run1/x"}, {"dataset": "z", "draft": "f"}),
            None,
        ),
        # A folder, and a hub's model of that name.
        (of({"dataset": "a/prompts.jsonl"}, {"dataset": "x", "draft": "f"}), "draft run1/x, not"),
    ],
)
def test_what_is_of_something_else_is_told_apart(maker: Maker, difference: str | None) -> None:
    found = maker.difference(A)
    assert found is None if difference is None else str(found).startswith(difference)
    assert (maker.distinction == A.distinction) == (
        [str(o) for o in maker.origins.values()] == [str(o) for o in A.origins.values()]
    )


def test_older_files_that_do_not_say_where_models_were_are_renewed_in_place() -> None:
    old = Origin("small", None, "d")
    assert Origin("small", None, "other scheme").is_like(old)  # a hub's or the bundled one
    assert Origin("small", "run1/small", "d").is_like(old)
    assert Origin("small", "run1/small", "d-e").is_like(old)  # of which more is known now
    assert not Origin("small", "run2/small", "d-f").is_like(Origin("small", "run1/small", "d-e"))
    assert not Origin("small", "run1/small", "e").is_like(old)
    assert Origin("small", "run1/small", "e").is_like(Origin("small"))


def test_what_covers_less_does_not_replace_what_covers_more() -> None:
    whole, part = rates(), rates(extra={"documents": 3})
    assert Maker.of(whole.document()).difference(Maker.of(part.document())) is None
    assert "more documents" in str(Maker.of(part.document()).difference(Maker.of(whole.document())))
    profile, narrow = make_profile(), make_profile()
    narrow.target.curves = narrow.target.curves[:1]
    former = Maker.of(profile.document())
    assert Maker.of(profile.document()).difference(former) is None
    assert "more points" in str(Maker.of(narrow.document()).difference(former))


@pytest.mark.parametrize("setting", ["graphs", "streamed_layers", "random_weights"])
def test_another_way_to_run_is_another_profile(setting: str) -> None:
    profile, other = make_profile(), make_profile()
    other.engine = other.engine | {setting: 7}
    assert setting in str(Maker.of(other.document()).difference(Maker.of(profile.document())))


def test_a_default_name_that_is_taken_is_set_apart_and_found_again() -> None:
    path = Path("profiles/acceptance/x.yaml")
    first, second = rates(), rates(extra={"sources": {"dataset": "b/prompts.jsonl"}})
    second.extra["fingerprints"] = {"dataset": "y"}
    notes: list[str] = []
    for _ in range(2):  # the second time each replaces its own
        for one in (first, second):
            one.save(settled(path, Maker.of(one.document()), note=notes.append))
    names = sorted(found.name for found in path.parent.iterdir())
    assert len(names) == 2
    assert Acceptance.load(path).document() == first.document()
    other = next(path.parent / name for name in names if name != "x.yaml")
    assert Acceptance.load(other).document() == second.document()
    assert len(notes) == 2
    assert "a/prompts.jsonl, not b/prompts.jsonl" in notes[0]
    assert other.name in notes[0]
    assert settled(path, Maker.of(second.document()), force=True) == path
    other.write_text("mine")
    with pytest.raises(SequoiaError, match=r"are kept.*name a file with -o.*--force"):
        settled(path, Maker.of(second.document()))


def test_a_default_name_does_not_replace_what_cannot_be_read() -> None:
    path = Path("x.yaml")
    for content in ("notes", "format: sequoia-opt/acceptance\nversion: [\n", '{"a": 1}'):
        path.write_text(content)
        assert settled(path, Maker.of(rates().document())) != path
    path.write_text("")  # as mktemp leaves it
    assert settled(path, Maker.of(rates().document())) == path


def test_trees_of_other_options_and_inputs_are_set_apart() -> None:
    profile = make_profile()
    for folder in ("one", "two"):
        profile.target.extra["source"] = f"{folder}/model"
        profile.target.fingerprint = folder
        profile.save(f"{folder}/p.yaml")
    rates().save("a.yaml")

    def planned(folder: str = "one", **options: Any) -> TokenTree:
        source = solve_all.Source(Path(folder) / "p.yaml", Path("a.yaml"))
        loaded = LatencyProfile.load(source.profile), Acceptance.load(source.acceptance)
        return solve_all.planned_tree(solve(*loaded, replicates=5, **options), source, options)

    path = Path("tree.json")
    first = planned()
    first.save(path)
    former = Maker.of(TokenTree.load(path).document())
    # Asked for what is usual, it is the same tree.
    again = planned(batch=1, shape="tree")
    assert Maker.of(again.document()).difference(former) is None
    for other, said in (
        (planned(max_size=4), "options"),
        (planned(context={256.0: 1.0}), "options"),
        (planned("two"), "target one/model, not two/model"),
        (
            TokenTree(first.parents, first.ranks, {"provenance": {"imported": "x"}}),
            "profile p.yaml",
        ),
    ):
        assert said in str(Maker.of(other.document()).difference(former)), said
    # With the same contexts, read from a file.
    kept = planned(context={256.0: 1.0})
    kept.save(path)
    assert Maker.of(kept.document()).difference(Maker.of(TokenTree.load(path).document())) is None


def test_the_repositorys_own_files_are_renewed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    classes: dict[str, type[LatencyProfile | Acceptance | TokenTree]] = {
        "profiles/*/*.yaml": LatencyProfile,
        "profiles/acceptance/*.yaml": Acceptance,
        "trees/*/*.json": TokenTree,
    }
    for pattern, kind in classes.items():
        for path in sorted(Path().glob(pattern)):
            if (path.parent.name == "acceptance") != (kind is Acceptance):
                continue
            document = kind.load(path).document()
            changed = json.loads(json.dumps(document))
            for role in ("target", "draft"):
                if isinstance(changed.get(role), dict):  # by another program's reckoning
                    changed[role]["fingerprint"] = "0" * 16
            changed["fingerprints"] = {"target": "0", "draft": "0", "dataset": "0"}
            assert settled(path, Maker.of(changed)) == path


def test_named_files_of_the_same_kind_are_replaced_and_no_others() -> None:
    make_profile().save("p.yaml")
    rates().save("a.yaml")
    TokenTree([-1], [0]).save("t.json")
    Path("notes.md").write_text("of sequoia-opt/tree files")
    Path("empty").touch()
    Path("cut.json").write_bytes(Path("t.json").read_bytes()[:40])
    kinds = {"p.yaml": latency.FORMAT, "a.yaml": acceptance.FORMAT, "t.json": tree.FORMAT}
    kinds["cut.json"] = tree.FORMAT
    for name, own in kinds.items():
        assert kind_of(Path(name)) == own
        for kind in (*kinds.values(), plots.FORMAT):
            if kind == own:
                check_named(Path(name), kind)
                continue
            with pytest.raises(SequoiaError, match=rf"{name}: holds .*, not .* -o, .* --force"):
                check_named(Path(name), kind)
            check_named(Path(name), kind, force=True)
    for name in ("empty", "new/file.json"):
        check_named(Path(name), tree.FORMAT)
    with pytest.raises(SequoiaError, match=r"notes\.md: holds something else, not a tree"):
        check_named(Path("notes.md"), tree.FORMAT)
    for name in ("notes.txt", "notes.yaml", "notes.json"):
        Path(name).write_text("notes: see its docs; format: sequoia-opt/tree is what I use: [\n")
        assert kind_of(Path(name)) is None
    Path("edited.yaml").write_text("# mine\nversion: 1\nformat: sequoia-opt/tree\nsize: 1\n")
    assert kind_of(Path("edited.yaml")) == tree.FORMAT


@pytest.mark.parametrize("alias", ["same", "link", "hard link", "other way"])
def test_what_is_read_is_not_written_over(alias: str) -> None:
    path, other = Path("t.json"), Path("o.json")
    TokenTree([-1], [0]).save(path)
    make: dict[str, Callable[[], object]] = {
        "link": lambda: other.symlink_to(path),
        "hard link": lambda: os.link(path, other),
    }
    if alias in make:
        make[alias]()
    else:
        other = {"same": path, "other way": Path("x/../t.json")}[alias]
        Path("x").mkdir()
    for force in (False, True):
        with pytest.raises(SequoiaError, match="the command reads this file"):
            check_named(other, tree.FORMAT, [None, Path("else"), path], force)
    with pytest.raises(SequoiaError, match="reads this file"):  # two outputs, neither there yet
        check_named(Path("new.jsonl"), None, [Path("x/../new.jsonl")])


def test_sources_are_told_as_seen_from_here() -> None:
    Path("a").mkdir()
    Path("a/prompts.jsonl").touch()
    assert outputs.source_of("a/../a/prompts.jsonl") == "a/prompts.jsonl"
    assert outputs.source_of(Path("a").absolute()) == "a"
    assert outputs.source_of(Path.cwd().parent) == str(Path.cwd().parent)
    for name in (None, "org/model", "demo-target", "x" * 300, "nul\0"):
        assert outputs.source_of(name) is None
