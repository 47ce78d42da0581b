from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO

import pytest
from command_line import Outcome, add_chat_template, write

from sequoia_opt.plan import shapes


def test_a_conversation_has_a_turn_for_each_line(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    common = ["chat", "k.json", *models, "--max-new-tokens", 9, "--ignore-eos"]
    assert "has no chat template" in run(*common).err
    add_chat_template(models)
    monkeypatch.setattr("sys.stdin", StringIO("first?\n\nsecond?\n"))
    done = run(*common, "--system", "be brief", "--json", "--dtype", "float64")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["turns"]
    assert [first["user"], second["user"]] == ["first?", "second?"]
    assert first["prompt_tokens"] < second["prompt_tokens"]
    write(
        "p.txt",
        "<system>be brief\n<user>first?\n"
        f"<assistant>{first['assistant']}\n<user>second?\n<assistant>",
    )
    alone = run(
        "decode", "k.json", *models, "--prompt-file", "p.txt", "--max-new-tokens", 9,
        "--ignore-eos", "--json", "--dtype", "float64",
    )  # fmt: skip
    assert json.loads(alone.out)["tokens"] == second["tokens"]
    monkeypatch.setattr("sys.stdin", StringIO("first?\n"))
    shown = run(*common, "--system", "be brief", "--dtype", "float64").out
    assert shown.startswith(first["assistant"])


def test_turns_of_a_conversation_that_fails_are_kept(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third line is longer than the models' positions."""
    add_chat_template(models)
    shapes.chain(3).save("k.json")
    monkeypatch.setattr("sys.stdin", StringIO(f"one\ntwo\n{'x = 1 ' * 400}\nfour\n"))
    done = run("chat", "k.json", *models, "--max-new-tokens", 5, "--json")
    assert done.code == 1
    assert [turn["user"] for turn in json.loads(done.out)["turns"]] == ["one", "two"]
    assert done.err.count("error: ") == 1


def test_several_processes_do_not_converse(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = run("chat")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "several processes cannot share standard input" in done.err
