from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from command_line import Outcome

from sequoia_opt.plan.acceptance import Acceptance


def test_export_and_import(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """What was imported is solved; what was solved is exported and comes back."""
    (tmp_path / "times.csv").write_text(
        "role,batch,context,tokens,ms\n"
        "target,1,512,1,10\ntarget,1,512,16,12\ndraft,1,512,1,0.5\ndraft,1,512,16,0.6\n"
    )
    (tmp_path / "rates.csv").write_text("0.7,0.1,0.05\n")
    profile, acceptance, tree, back = (
        tmp_path / name for name in ("p.yaml", "a.yaml", "t.json", "b.json")
    )
    for source, made in (("times.csv", profile), ("rates.csv", acceptance)):
        found = run("import", tmp_path / source, "-o", made)
        assert found.code == 0, found.err
    options = ["--profile", profile, "--acceptance", acceptance, "-o", tree]
    assert run("solve", *options).code == 0
    parents = json.loads(tree.read_text())["parents"]
    for to in ("eagle", "sequoia", "umbrella"):
        written = tmp_path / f"{to}{'.pt' if to == 'sequoia' else '.json'}"
        found = run("export", tree, "--to", to, "-o", written)
        assert found.code == 0, found.err
        found = run("import", written, "-o", back)
        assert found.code == 0, found.err
        assert json.loads(back.read_text())["parents"] == parents
    found = run("export", tree, "--to", "vllm")
    assert found.code == 1
    assert "solve with --shape chain" in found.err
    assert run("solve", *options, "--shape", "chain").code == 0
    found = run("export", tree, "--to", "llama.cpp")
    assert found.out.startswith("-md DRAFT --spec-type draft-simple --spec-draft-n-max ")
    assert "does not count the root" in found.err


def test_the_research_codes_vector_is_imported(run: Callable[..., Outcome], tmp_path: Path) -> None:
    import torch

    torch.save(torch.tensor([0.0, 0.6, 0.2, 0.1, 0.1]), tmp_path / "v.pt")
    found = run("import", tmp_path / "v.pt", "-o", tmp_path / "a.yaml", "--json")
    assert json.loads(found.out)["acceptance"] == [0.6, 0.2, 0.1]
    torch.save({"model": object}, tmp_path / "v.pt")
    found = run("import", tmp_path / "v.pt", "-o", tmp_path / "x.yaml")
    assert (found.code, found.err.count("\n")) == (1, 1)
    assert "never loaded because it could run code" in found.err
    assert "weights_only" not in found.err  # torch's advice, with which it would
    assert not (tmp_path / "x.yaml").exists()


def test_what_is_open_is_named_on_the_command_line(run: Callable[..., Outcome]) -> None:
    """Lists by their names, ranks from one, a column by what it goes by."""
    Path("trees.py").write_text("a = [[0], [1]]\nb = [(0,), (0, 0)]\n")
    refused = run("import", "trees.py", "-o", "t.json")
    assert (refused.code, Path("t.json").exists()) == (1, False)
    assert "a (2 paths), b (2 paths)" in refused.err
    assert run("import", "trees.py", "--name", "b", "-o", "t.json").code == 0
    assert json.loads(Path("t.json").read_text())["parents"] == [-1, 0, 1]
    Path("ones.txt").write_text("[[1], [2]]")
    assert "--first-rank 1" in run("import", "ones.txt", "-o", "t.json").err
    assert run("import", "ones.txt", "--first-rank", "1", "-o", "t.json").code == 0
    assert json.loads(Path("t.json").read_text())["parents"] == [-1, 0, 0]
    Path("column.csv").write_text("0.6\n0.3\n")
    assert "--rates-by" in run("import", "column.csv", "-o", "a.yaml").err
    read = run("import", "column.csv", "--rates-by", "depth", "-o", "a.yaml", "--json")
    assert json.loads(read.out)["by_depth"] == [[0.6], [0.3]]
    assert "1 rank, at 2 depths, for temperature 0" in read.err
    assert run("import", "column.csv", "--rates-by", "size").code == 2


def test_rates_of_a_cut_target_say_so(run: Callable[..., Outcome]) -> None:
    Path("rates.csv").write_text("0.6,0.2,0.1\n")
    cut = ["--temperature", 0.6, "--top-k", 20, "--min-p", 0.05]
    done = run("import", "rates.csv", "--rates-by", "rank", *cut)
    assert done.code == 0, done.err
    [path] = Path("profiles/acceptance").iterdir()
    assert path.name == "unknown--unknown--imported--sequoia-T0.6-k20-m0.05.yaml"
    rates = Acceptance.load(path)
    assert (rates.top_k, rates.min_p) == (20, 0.05)


def test_what_an_engine_counted_is_imported(run: Callable[..., Outcome]) -> None:
    """Above temperature 0 as the rates of the verifier that accepts as the engine does."""
    answer = {"meta_info": {"spec_correct_drafts_histogram": [40, 60, 100]}}
    Path("answers.jsonl").write_text(f"{json.dumps(answer)}\n{json.dumps(answer)}\n")
    done = run("import", "answers.jsonl", "--temperature", 0.6, "-o", "a.yaml")
    assert done.code == 0, done.err
    rates = Acceptance.load("a.yaml")
    assert rates.by_depth is not None
    assert rates.by_depth[:, 0].tolist() == [0.8, 0.625]
    assert (rates.verifier, rates.positions) == ("topk", 400)
    assert "at 2 depths, for temperature 0.6 and verifier topk" in done.err
    named = ["--temperature", 0.6, "--verifier", "sequoia", "-o", "b.yaml"]
    assert run("import", "answers.jsonl", *named).code == 0
    assert Acceptance.load("b.yaml").verifier == "sequoia"


def test_counts_of_an_unknown_version_are_one_line(run: Callable[..., Outcome]) -> None:
    Path("vllm.log").write_text("INFO SpecDecoding metrics: acceptance 0.7\n")
    done = run("import", "vllm.log", "-o", "a.yaml")
    assert (done.code, done.err.count("\n"), Path("a.yaml").exists()) == (1, 1, False)
    assert "found counts of an unknown version, expected vLLM 0.33's" in done.err


def test_served_rounds_are_taken_over_forward_passes(run: Callable[..., Outcome]) -> None:
    rows = ["role,batch,context,tokens,ms,round_ms"]
    for tokens, round_ms in ((1, 10), (2, 30), (4, 70)):
        rows += [f"target,1,512,{tokens},9,{round_ms}", f"draft,1,512,{tokens},1,"]
    Path("t.csv").write_text("\n".join(rows) + "\n")
    Path("r.csv").write_text("rank,acceptance\n1,0.9\n")
    done = run("import", "t.csv", "-o", "p.yaml")
    assert done.code == 0, done.err
    assert "a step with a chain takes as long as its round" in done.err
    assert run("import", "r.csv", "-o", "a.yaml").code == 0
    solve = ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--json"]
    assert len(json.loads(run(*solve).out)["parents"]) == 1
    Path("t.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows) + "\n")
    assert run("import", "t.csv", "-o", "p.yaml").code == 0
    assert len(json.loads(run(*solve).out)["parents"]) == 4
