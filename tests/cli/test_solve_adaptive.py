"""Adaptive plans on the command line: solved from recorded drafts, shown, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Outcome
from recordings import make_recording, measured
from test_latency import make_profile, with_adaptive_overhead

from sequoia_opt.files.documents import to_json
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree

FILES = ["--profile", "p.yaml", "--acceptance", "a.yaml"]
ABOUT = {"target": "target", "draft": "draft", "temperature": 0.0}
RECORDING = replace(make_recording([120] * 24, sureness=2.0), about=ABOUT)


PROFILE = with_adaptive_overhead(make_profile(slope=0.6, draft_ms=2.5))
RATES = measured(RECORDING, target="target", draft="draft", dataset="d")


@pytest.fixture
def run_here(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Runs a command line beside a profile, acceptance rates and recorded drafts."""
    PROFILE.save("p.yaml")
    RATES.save("a.yaml")
    RECORDING.save("a.npz")
    return run


@pytest.fixture(scope="module")
def adaptive() -> TokenTree:
    """The plan that is solved from these files."""
    return solve(PROFILE, RATES, recording=RECORDING).tree


def test_solve_finds_and_shows_an_adaptive_plan(run_here: Callable[..., Outcome]) -> None:
    done = run_here("solve", *FILES, "-o", "t.json")
    assert done.code == 0, done.err
    tree = TokenTree.load("t.json")
    assert tree.policy is not None
    assert tree.metadata["provenance"]["acceptance"]["file"] == "a.yaml"
    assert "static" not in tree.metadata["provenance"]["options"]
    for expected in ("Best plan: adaptive", "oracle's bound", "predicted on 12 others"):
        assert expected in done.out
    shown = run_here("show", "t.json")
    assert shown.code == 0, shown.err
    for expected in (
        f"reached with probability {tree.policy.offer:g} or more",
        "expected calibration error",
        "target passes in replay",
        "levels drafted in replay",
        "rank 1, depth 2",
    ):
        assert expected in shown.out
    document = json.loads(run_here("show", "t.json", "--json").out)
    assert document["policy"] == json.loads(Path("t.json").read_text())["policy"]


def test_show_draws_the_calibration_of_acceptance_rates(
    run_here: Callable[..., Outcome],
) -> None:
    shown = run_here("show", "a.yaml")
    assert shown.code == 0, shown.err
    for expected in ("accepted", "probability", "rank 4", "expected calibration error"):
        assert expected in shown.out


def test_solve_prints_all_kinds_as_json(run_here: Callable[..., Outcome]) -> None:
    document = json.loads(run_here("solve", *FILES, "-o", "t.json", "--json").out)
    assert {"plain", "adaptive chain", "adaptive tree", "oracle"} <= set(document["compared"])
    assert document["version"] == 2


def test_static_leaves_adaptive_plans_out(run_here: Callable[..., Outcome]) -> None:
    done = run_here("solve", *FILES, "--static", "-o", "t.json")
    assert done.code == 0, done.err
    assert "oracle" not in done.out
    tree = TokenTree.load("t.json")
    assert tree.policy is None
    assert tree.metadata["provenance"]["options"]["static"] is True


def test_without_the_recording_only_static_plans_are_solved(
    run_here: Callable[..., Outcome],
) -> None:
    Path("a.npz").unlink()
    done = run_here("solve", *FILES, "-o", "t.json")
    assert done.code == 0
    assert "a.npz, the recorded drafts, is not there" in done.err
    assert TokenTree.load("t.json").policy is None


def test_an_adaptive_plan_is_compared_with(
    run_here: Callable[..., Outcome], adaptive: TokenTree
) -> None:
    adaptive.save("t.json")
    options = ["--against", "t.json", "--compare", "--static", "-o", "s.json", "--json"]
    document = json.loads(run_here("solve", *FILES, *options).out)
    predicted = TokenTree.load("t.json").metadata["predicted"]["speedup"]
    assert document["against"]["t.json"]["speedup"] == pytest.approx(predicted, rel=1e-4)
    assert "t.json" in document["compare"]["64"]
    assert "t.json" not in document["compare"]["2"]


@pytest.mark.parametrize("case", ["cut off", "another", "of another draft"])
def test_a_wrong_recording_is_refused_in_one_line(
    run_here: Callable[..., Outcome], case: str
) -> None:
    complaint = {
        "cut off": "cut off",
        "another": "expected",
        "of another draft": "draft: found other, expected draft",
    }[case]
    if case == "cut off":
        Path("a.npz").write_bytes(Path("a.npz").read_bytes()[:-500])
    elif case == "another":
        make_recording([120] * 24, seed=1).save("a.npz")
    else:
        replace(RECORDING, about=ABOUT | {"draft": "other"}).save("a.npz")
    failed = run_here("solve", *FILES, "-o", "t.json")
    assert (failed.code, failed.out, failed.err.count("\n")) == (1, "", 1)
    assert "a.npz" in failed.err
    assert complaint in failed.err
    assert not Path("t.json").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"offer": 1.5}, "policy: offer: found 1.5, expected a number between 0 and 1"),
        ({"first": -1}, "policy: first: found -1"),
        ({"sizes": [2, 4]}, "policy: sizes: found [2, 4], expected ascending from 1"),
        ({"expand": {"2": 0.1}}, "policy: expand: found widths [2], expected ascending from 1"),
        ({"depth": 0}, "policy: depth: found 0"),
    ],
)
def test_a_policy_out_of_range_is_refused_in_one_line(
    run: Callable[..., Outcome], adaptive: TokenTree, change: dict[str, object], complaint: str
) -> None:
    document = adaptive.document()
    document["policy"] |= change
    Path("t.json").write_text(to_json(document))
    failed = run("show", "t.json")
    assert (failed.code, failed.out, failed.err.count("\n")) == (1, "", 1)
    assert complaint in failed.err


def test_solve_all_solves_and_checks_adaptive_plans(run_here: Callable[..., Outcome]) -> None:
    PROFILE.save("profiles/test/target--draft--float32.yaml")
    folder = Path("profiles/acceptance")
    folder.mkdir()
    acceptance = Acceptance.load("a.yaml")
    acceptance.save(folder / "a.yaml")
    RECORDING.save(folder / "a.npz")
    assert run_here("solve-all").code == 0
    [path] = Path("trees/test").glob("*.json")
    assert TokenTree.load(path).policy is not None
    assert run_here("solve-all", "--check").code == 0
    document = json.loads(path.read_text())
    document["policy"]["offer"] /= 2
    path.write_text(json.dumps(document))
    differs = run_here("solve-all", "--check")
    assert differs.code == 1
    assert "policy: found another one than its inputs give" in differs.out
