from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from sequoia_opt.plan.schedule_formats import COSTS, SCHEDULES
from sequoia_opt.plan.tree import TokenTree


def test_a_sweep_shows_the_best_tree_of_each_value(run: Callable[..., Outcome]) -> None:
    assert run("solve", "-o", "t.json").code == 0
    chosen = TokenTree.load("t.json")
    swept = run("sweep")
    assert swept.code == 0, swept.err
    assert f"chosen tree: {chosen.size} nodes, {chosen.depth} deep" in swept.out
    assert "best tree by context length" in swept.out
    assert list(Path().iterdir()) == [Path("t.json")]  # a sweep writes nothing


def test_a_sweeps_document_has_the_tree_and_the_points(run: Callable[..., Outcome]) -> None:
    assert run("solve", "--max-size", 4, "-o", "t.json").code == 0
    document = json.loads(run("sweep", "batch", "--max-size", 4, "--json").out)
    assert document["axis"] == "batch"
    assert document["tree"]["parents"] == json.loads(Path("t.json").read_text())["parents"]
    assert document["points"][0]["value"] == 1
    assert all(point["size"] <= 4 for point in document["points"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["size"],
        ["--context", "many"],
        ["-o", "t.json"],
        ["batch", "--to", "vllm", "--requests-per-second", "2"],
    ],
)
def test_what_cannot_be_swept_is_a_usage_error(
    run: Callable[..., Outcome], arguments: list[str]
) -> None:
    done = run("sweep", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)


def batched(path: Path) -> Path:
    """A table of latencies in which larger batches make guesses cost more."""
    rows = ["role,batch,context,tokens,ms"]
    for batch in (1, 8, 64):
        for tokens in (1, 2, 4, 8):
            ms = max(1.0, batch * tokens / 32)
            rows += [f"target,{batch},512,{tokens},{10 * ms}", f"draft,{batch},512,{tokens},{ms}"]
    path.write_text("\n".join(rows) + "\n")
    return path


def served(run: Callable[..., Outcome]) -> list[str]:
    """Options that name a profile with batches, and rates."""
    Path("rates.csv").write_text("rank,acceptance\n1,0.8\n")
    for source, made in ((batched(Path("times.csv")), "p.yaml"), ("rates.csv", "a.yaml")):
        done = run("import", source, "--draft", "/m/small", "-o", made)
        assert done.code == 0, done.err
    return ["--profile", "p.yaml", "--acceptance", "a.yaml"]


def test_a_sweep_of_batches_shows_where_speculation_stops_paying(
    run: Callable[..., Outcome],
) -> None:
    options = served(run)
    swept = run("sweep", "batch", *options, "--requests-per-second", "0.5,4")
    assert swept.code == 0, swept.err
    assert "best chain by batch size" in swept.out
    assert "speculation stops paying at batch" in swept.out
    assert "serving requests of 256 tokens each" in swept.out
    document = json.loads(run("sweep", "batch", *options, "--requests-per-second", 4, "--json").out)
    stretches = document["schedule"]["stretches"]
    assert stretches[0]["first"] == 1
    assert stretches[-1]["last"] == 64
    assert document["loads"][0]["requests_per_second"] == 4


def test_a_schedule_is_written_for_an_engine(run: Callable[..., Outcome]) -> None:
    options = served(run)
    printed = run("sweep", "batch", *options, "--to", "vllm")
    assert printed.code == 0, printed.err
    assert printed.out.startswith("--speculative-config")
    assert '"model": "/m/small"' in printed.out
    assert "note: speculation stops paying at batch" in printed.err
    assert run("sweep", "batch", *options, "--to", "sglang", "-o", "s.json").code == 0
    assert "candidate_steps" in Path("s.json").read_text()
    named = run("sweep", "batch", *options, "--to", "tensorrt-llm", "--draft", "d", "--json")
    assert 'speculative_model: "d"' in json.loads(named.out)["text"]
    refused = run("sweep", "batch", *options, "--to", "sglang", "-o", "p.yaml")
    assert (refused.code, "p.yaml" in refused.err) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["batch", "--to", "eagle"],
        ["context", "--to", "vllm"],
        ["context", "--requests-per-second", "2"],
        ["batch", "--requests-per-second", "2,-1"],
    ],
)
def test_what_is_no_schedule_is_a_usage_error(
    run: Callable[..., Outcome], arguments: list[str]
) -> None:
    done = run("sweep", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_times_of_whole_rounds_are_no_costs_of_the_target(run: Callable[..., Outcome]) -> None:
    rows = ["role,batch,context,tokens,ms,round_ms"]
    rows += [f"target,{batch},512,{count},,{10 + count}" for batch in (1, 8) for count in (1, 2)]
    Path("rounds.csv").write_text("\n".join(rows) + "\n")
    Path("rates.csv").write_text("rank,acceptance\n1,0.8\n")
    for source, made in (("rounds.csv", "p.yaml"), ("rates.csv", "a.yaml")):
        assert run("import", source, "-o", made).code == 0
    for to in COSTS:
        done = run("sweep", "batch", "--profile", "p.yaml", "--acceptance", "a.yaml", "--to", to)
        assert (done.code, "times are of whole rounds" in done.err) == (1, True)


def test_what_a_schedule_lacks_is_said(run: Callable[..., Outcome]) -> None:
    options = served(run)
    done = run("sweep", "batch", *options, "--to", "vllm", "--max-size", 1)
    assert "found no room for a guess" in done.err
    rows = [row for row in Path("times.csv").read_text().split() if "draft,8" not in row]
    Path("few.csv").write_text("\n".join(row for row in rows if "draft,64" not in row) + "\n")
    assert run("import", "few.csv", "--draft", "/m/small", "-o", "few.yaml").code == 0
    done = run("sweep", "batch", "--profile", "few.yaml", *options[2:], "--to", "vllm")
    assert "times of the target in batches of 8, 64, and none of the draft there" in done.err


def test_a_profile_without_batches_has_no_schedule(run: Callable[..., Outcome]) -> None:
    done = run("sweep", "batch", "--to", "vllm")
    assert (done.code, done.err.splitlines()[-1].count("profile --batches")) == (1, 1)


@pytest.mark.parametrize("to", [*SCHEDULES, *COSTS])
def test_a_schedule_is_replaced_by_a_later_one(run: Callable[..., Outcome], to: str) -> None:
    options = served(run)
    Path("rates.csv").write_text("rank,acceptance\n1,0.6\n")
    assert run("import", "rates.csv", "--draft", "/m/small", "-o", "b.yaml").code == 0
    for rates in ("a.yaml", "b.yaml"):
        done = run("sweep", "batch", *options[:3], rates, "--to", to, "-o", "there")
        assert done.code == 0, done.err


def test_what_only_resembles_a_schedule_is_kept(run: Callable[..., Outcome]) -> None:
    options = served(run)
    Path("labels.json").write_text('{"0": "cat", "1": "dog"}')
    done = run("sweep", "batch", *options, "--to", "sglang", "-o", "labels.json")
    assert (done.code, "holds something else" in done.err) == (1, True)
    assert json.loads(Path("labels.json").read_text()) == {"0": "cat", "1": "dog"}
