from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, write

from sequoia_opt import demo
from sequoia_opt.plan import shapes


def test_many_prompts_are_completed_and_an_interrupted_file_is_resumed(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    sampling = ["--temperature", 0.8, "--seed", 3]
    common = ["complete", dataset, "k.json", *models, *sampling, "--max-new-tokens", 10]
    done = run(*common, "-o", "all.jsonl", "--stats", "traffic.jsonl", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["completed"] == 3
    lines = Path("all.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["prompt"] for line in lines] == [f"def f{i}(x):\n" for i in range(3)]
    Path("some.jsonl").write_bytes(lines[0] + lines[1][:20])
    again = run(*common, "-o", "some.jsonl")
    assert "resuming some.jsonl: 1 of 3 completions already done" in again.err

    def kept(path: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in Path(path).read_text().splitlines()]
        return [{key: line[key] for key in line if key != "seconds"} for line in found]

    assert kept("some.jsonl") == kept("all.jsonl")
    other = run(*common, "-o", "all.jsonl", "--top-p", 0.9)
    assert (other.code, "another top_p" in other.err) == (1, True)

    rates = run("estimate", "--from-stats", "traffic.jsonl", "--json", "-o", "a.yaml")
    assert rates.code == 0, rates.err
    document = json.loads(rates.out)
    assert document["dataset"] == "traffic"
    assert len(document["acceptance"]) == 2
    assert document["positions"] >= sum(line["steps"] for line in kept("all.jsonl"))


def test_a_prompt_that_cannot_be_used_has_its_line_and_the_others_theirs(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.chain(3).save("k.json")
    prompts = ["def f", "x = 1\n" * 400, "", "a\ud800b", "class A"]
    records = [{"prompt": each, "completion": "SECRET"} for each in prompts]
    path = write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    common = ["complete", path, "k.json", *models, "--max-new-tokens", 8]
    done = run(*common, "-o", "out.jsonl", "--json")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(lines) == len(prompts)
    stopped = [line["stopped"] for line in lines]
    assert [stop == "error" for stop in stopped] == [False, True, False, True, False]
    assert "positions" in lines[1]["error"]
    alone = json.loads(run("decode", *common[2:], "--prompt", "", "--json").out)
    assert lines[2]["completion"] == alone["text"]  # and not what follows SECRET
    document = json.loads(done.out)
    assert (document["completed"], document["failed"]) == (3, 2)
    assert "prompt 2: " in done.err


def test_rules_are_part_of_what_a_file_of_completions_is_of(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.chain(3).save("k.json")
    common = ["complete", dataset, "k.json", *models, "--max-new-tokens", 8]
    common += ["-o", "out.jsonl"]
    assert run(*common, "--repetition-penalty", 1.3).code == 0
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(lines[:2]))
    failed = run(*common)
    assert (failed.code, "another repetition_penalty" in failed.err) == (1, True)


# The tenth of twelve records, and what is said of it.
TENTH = {
    "too long": (json.dumps({"prompt": "x = 1\n" * 400}).encode(), "positions"),
    "empty line in braces": (b"{}", "expected a field"),
    "wrong type": (b'{"prompt": 3}', "prompt: found 3"),
    "half of a character": (b'{"prompt": "a\\ud800b"}', "half of a character"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', "not UTF-8"),
    "not JSON": (b'{"prompt": ', "not valid JSON"),
    "no such token": (b'{"prompt": [1, 999999]}', "token"),
    "a picture": (b'{"messages": [{"role": "user", "content": [{"image": 1}]}]}', "a part"),
}


@pytest.mark.parametrize("kind", TENTH)
def test_one_record_stops_no_run(
    run: Callable[..., Outcome], models: list[str], kind: str, tmp_path: Path
) -> None:
    """Of every command that reads a dataset: a line for that record, and nothing is lost."""
    record, complaint = TENTH[kind]
    records = [json.dumps({"prompt": f"def f{i}(x):\n"}).encode() for i in range(12)]
    records[9] = record
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(records))
    shapes.chain(3).save("k.json")
    common = [*models, "--max-new-tokens", 8]
    done = run("complete", path, "k.json", *common, "-o", "out.jsonl")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["stopped"] == "error" for line in lines] == [i == 9 for i in range(12)]
    assert complaint in lines[9]["error"]
    told = [line for line in done.err.splitlines() if complaint in line]
    assert len(told) == 1
    assert told[0].startswith("prompt 10: ")
    assert "1 of 12 prompts could not be completed; the field `error`" in done.err

    # Resumed at any line, that of the tenth record among them, the file is the same.
    whole = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(whole[:10]))
    done = run("complete", path, "k.json", *common, "-o", "out.jsonl")
    assert done.code == 0, done.err
    again = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    for line in (*lines, *again):
        line.pop("seconds")
    assert again == lines

    for command in (
        ["estimate", *common, "--dataset", path],
        ["bench", "k.json", *common, "--dataset", path, "--methods", "plain,tree", "--limit", 12,
         "--repeats", 1],
    ):  # fmt: skip
        done = run(*command, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        if command[0] == "estimate" and kind == "too long":
            assert "1 prompts of more than" in done.err  # their ends are sampled from
            assert found["documents"] == 12
            continue
        assert found["documents" if command[0] == "estimate" else "prompts"] == 11
        assert len([line for line in done.err.splitlines() if complaint in line]) == 1


def test_a_records_other_fields_are_kept(
    run: Callable[..., Outcome], models: list[str], tmp_path: Path
) -> None:
    records = [
        {"task_id": f"X/{i}", "prompt": f"def f{i}(x):\n", "test": "…", "tags": ["a", None]}
        for i in range(2)
    ]
    records.append({"task_id": "X/2", "prompt": None})
    records.append({"prompt": "a", "completion": "SECRET", "seed": 7, "target": "t", "record": 1})
    path = write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    shapes.chain(3).save("k.json")
    common = ["complete", path, "k.json", *models, "--max-new-tokens", 4]
    assert run(*common, "-o", "out.jsonl").code == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line.get("task_id") for line in lines] == ["X/0", "X/1", "X/2", None]
    for line, record in zip(lines[:2], records[:2], strict=True):
        assert {key: line[key] for key in record} == record
    # What has the name of one of the line's own is set aside.
    last = lines[3]
    assert last["record"] == {"completion": "SECRET", "seed": 7, "target": "t", "record": 1}
    assert (last["seed"], last["target"]) == (0, "small-target")
    assert "SECRET" not in last["completion"]


def test_files_of_completions_without_newer_settings_are_continued(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.chain(3).save("k.json")
    common = ["complete", dataset, "k.json", *models, "--max-new-tokens", 4]
    common += ["-o", "out.jsonl"]
    assert run(*common).code == 0
    lines = Path("out.jsonl").read_text().splitlines(keepends=True)
    assert not {"top_k", "min_p", "presence_penalty", "chat"} & json.loads(lines[0]).keys()
    Path("out.jsonl").write_text(lines[0])
    assert run(*common).code == 0
    Path("out.jsonl").write_text(lines[0])
    for options in (["--presence-penalty", 1.5], ["--temperature", 0.5, "--top-k", 3]):
        failed = run(*common, *options)
        assert (failed.code, "is of another" in failed.err) == (1, True)
    first = json.loads(lines[0]) | {"presence_penalty": 1.5}
    Path("out.jsonl").write_text(json.dumps(first) + "\n")
    assert "is of another presence_penalty" in run(*common).err


def test_without_a_dataset_the_bundled_prompts_are_completed(run: Callable[..., Outcome]) -> None:
    done = run("complete", "--no-compile", "--max-new-tokens", 2, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["output"] == "prompts.completions.jsonl"
    lines = Path(document["output"]).read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == demo.prompts()
