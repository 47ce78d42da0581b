"""Only a newer version of the same file replaces a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from measured_rates import rates_of
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import acceptance, latency, tree
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report import bench_results
from sequoia_opt.repository.outputs import check_named, settled
from sequoia_opt.repository.provenance import Provenance

ROOT = Path(__file__).parents[2]


def test_a_default_path_that_holds_another_file_gets_a_distinction() -> None:
    path = Path("profiles/acceptance/x.yaml")
    first, second = rates_of(), rates_of(extra={"sources": {"dataset": "b/prompts.jsonl"}})
    second.extra["fingerprints"] = {"dataset": "y"}
    notes: list[str] = []
    for _ in range(2):  # the second time each file replaces its former version
        for measured in (first, second):
            provenance = Provenance.of(measured.document())
            measured.save(settled(path, provenance, note=notes.append))
    names = sorted(file.name for file in path.parent.iterdir())
    assert len(names) == 2
    assert Acceptance.load(path).document() == first.document()
    other = next(path.parent / name for name in names if name != "x.yaml")
    assert Acceptance.load(other).document() == second.document()
    assert len(notes) == 2
    assert "a/prompts.jsonl, not b/prompts.jsonl" in notes[0]
    assert other.name in notes[0]
    assert settled(path, Provenance.of(second.document()), force=True) == path
    other.write_text("mine")
    with pytest.raises(SequoiaError, match=r"are kept.*name a file with -o.*--force"):
        settled(path, Provenance.of(second.document()))


def test_a_default_path_does_not_replace_an_unreadable_file() -> None:
    path = Path("x.yaml")
    for content in ("notes", "format: sequoia-opt/acceptance\nversion: [\n", '{"a": 1}'):
        path.write_text(content)
        assert settled(path, Provenance.of(rates_of().document())) != path
    path.write_text("")  # as mktemp leaves it
    assert settled(path, Provenance.of(rates_of().document())) == path


def test_the_committed_files_are_replaced_by_their_newer_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
                if isinstance(changed.get(role), dict):  # as another version of the program would
                    changed[role]["fingerprint"] = "0" * 16
            changed["fingerprints"] = {"target": "0", "draft": "0", "dataset": "0"}
            assert settled(path, Provenance.of(changed)) == path


def test_only_files_of_the_same_kind_are_replaced_by_name() -> None:
    make_profile().save("p.yaml")
    rates_of().save("a.yaml")
    TokenTree([-1], [0]).save("t.json")
    Path("notes.md").write_text("of sequoia-opt/tree files")
    Path("empty").touch()
    Path("cut.json").write_bytes(Path("t.json").read_bytes()[:40])
    kinds = {"p.yaml": latency.FORMAT, "a.yaml": acceptance.FORMAT, "t.json": tree.FORMAT}
    kinds["cut.json"] = tree.FORMAT
    for name, own_kind in kinds.items():
        for kind in (*kinds.values(), bench_results.FORMAT):
            if kind == own_kind:
                check_named(Path(name), kind)
                continue
            with pytest.raises(SequoiaError, match=rf"{name}: holds .*, not .* -o, .* --force"):
                check_named(Path(name), kind)
            check_named(Path(name), kind, force=True)
    for name in ("empty", "new/file.json"):
        check_named(Path(name), tree.FORMAT)
    with pytest.raises(SequoiaError, match=r"notes\.md: holds something else, not a tree"):
        check_named(Path("notes.md"), tree.FORMAT)


@pytest.mark.parametrize("alias", ["same", "link", "hard link", "other way"])
def test_an_input_is_not_overwritten(alias: str) -> None:
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
    with pytest.raises(SequoiaError, match="reads this file"):  # of two new outputs
        check_named(Path("new.jsonl"), None, [Path("x/../new.jsonl")])
