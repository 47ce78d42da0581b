"""One text, however it comes in: the same tokens, and none of its ends lost."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, add_chat_template, write

from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.session import Session
from sequoia_opt.engine.stream import Stream
from sequoia_opt.measure import estimator
from sequoia_opt.plan import shapes

# Spaces at both ends, ends of lines of two kinds, and what a text's ends may be made of.
TEXTS = ["  def f(x):\r\n\treturn é \n", "x = 1", "\n\n# two lines\n  ", "a\x0bb\u2028c\x1c"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that are decoded, in their order; nothing is said about them."""
    prompts: list[list[int]] = []
    start = Session.start

    def recorded(self: Session, prompt: list[int], *rest: Any) -> Any:
        prompts.append(list(prompt))
        return start(self, prompt, *rest)

    monkeypatch.setattr(Session, "start", recorded)
    return prompts


@pytest.fixture
def chatting(models: list[str]) -> list[str]:
    """The small pair, with a chat template."""
    add_chat_template(models, TEMPLATE)
    shapes.chain(3).save("k.json")
    return models


def tokens_of(models: list[str], text: str) -> list[int]:
    """A text's tokens, by the library alone."""
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(models[1])(text)["input_ids"]
    return ids


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(content), encoding="utf-8"))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_same_tokens_whichever_way_it_comes_in(
    run: Callable[..., Outcome],
    models: list[str],
    read: list[list[int]],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes.chain(3).save("k.json")
    common = ["k.json", *models, "--max-new-tokens", 3, "--ignore-eos"]
    Path("p.txt").write_bytes(text.encode())
    Path("marked.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run("decode", *common, "--prompt", text).code == 0
    for name in ("p.txt", "marked.txt"):
        assert run("decode", *common, "--prompt-file", name).code == 0
        standard_input(monkeypatch, Path(name).read_bytes())
        assert run("decode", *common, "--prompt", "-").code == 0
    forms = [
        *({key: text} for key in ("prompt", "instruction", "question")),
        text,
        {"turns": [text, "more"]},
        {"text": text, "code": "pass"},
        {"text": text},
        {"input_tokens": tokens_of(models, text)},
    ]
    lines = "".join(json.dumps(form) + "\n" for form in forms)
    write("d.jsonl", lines)
    write("d.json", json.dumps(forms, ensure_ascii=False, indent=1))
    Path("d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("d.jsonl", "d.json", "d.jsonl.gz"):
        done = run("complete", name, *common, "-o", f"{name}.out.jsonl")
        assert done.code == 0, done.err
    assert run("complete", "p.txt", *common, "-o", "txt.jsonl").code == 0
    assert len(read) == 5 + 3 * len(forms) + 1
    assert all(prompt == tokens_of(models, text) for prompt in read)

    # What is measured is of the same tokens; of a text without a prompt, of its first half.
    measured: list[list[list[int]]] = []
    prepare = estimator.prepare_texts

    def prepared(*arguments: Any, **options: Any) -> Any:
        texts = prepare(*arguments, **options)
        measured.append([each.prompt for each in texts])
        return texts

    monkeypatch.setattr(estimator, "prepare_texts", prepared)
    done = run("estimate", *models, "--dataset", "d.json", "--max-new-tokens", 3)
    assert done.code == 0, done.err
    whole = tokens_of(models, text)
    half = whole[: max(1, len(whole) // 2)]
    assert measured == [[half if each == {"text": text} else whole for each in forms]]
    read.clear()
    done = run(
        "bench", "k.json", *models, "--dataset", "d.json", "--methods", "plain,tree",
        "--max-new-tokens", 3, "--repeats", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {tuple(prompt) for prompt in read} == {tuple(whole), tuple(half)}


def test_a_turn_has_the_same_tokens_whichever_way_it_comes_in(
    run: Callable[..., Outcome],
    chatting: list[str],
    read: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "  be é brief "
    common = ["k.json", *chatting, "--max-new-tokens", 3, "--ignore-eos"]
    template = ["--system", "Short.", "--template-option", "enable_thinking=false"]
    standard_input(monkeypatch, f"{text}\r\n\n".encode())
    assert run("chat", *common, *template).code == 0
    assert run("decode", *common, *template, "--chat", "--prompt", text).code == 0
    wanted = tokens_of(chatting, f"<system>Short.</><user>{text}</><assistant><no>")
    user, system = {"role": "user", "content": text}, {"role": "system", "content": "Short."}
    forms = [
        {"messages": [user]},
        {"messages": [system, user, {"role": "assistant", "content": "x"}]},
        {"prompt": [user], "completion": [{"role": "assistant", "content": "x"}]},
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}]},
        {"prompt": text},
        {"turns": [text]},
        {"text": text},
    ]
    path = write("d.jsonl", "".join(json.dumps(form) + "\n" for form in forms))
    done = run("complete", path, *common, *template, "--chat", "-o", "out.jsonl")
    assert done.code == 0, done.err
    assert len(read) == 2 + len(forms)
    assert all(prompt == wanted for prompt in read)
    first, second, *_ = (json.loads(line) for line in Path("out.jsonl").read_text().splitlines())
    assert first["prompt"] == [user]
    assert second["prompt"] == [system, user]
    assert (first["chat"], first["template_options"]) == (True, {"enable_thinking": False})
    asked: list[list[int]] = []
    encode = Pair.encode

    def encoded(self: Pair, *arguments: Any, **options: Any) -> list[int]:
        asked.append(encode(self, *arguments, **options))
        return asked[-1]

    monkeypatch.setattr(Pair, "encode", encoded)
    for command in (
        ["estimate"],
        ["bench", "k.json", "--methods", "plain,tree", "--repeats", 1],
    ):
        asked.clear()
        options = [*chatting, "--dataset", path, "--max-new-tokens", 3, "--chat", *template]
        done = run(*command, *options)
        assert done.code == 0, done.err
        assert asked.count(wanted) == len(forms)
    [estimated] = Path("profiles/acceptance").glob("*d-chat-system-*-enable_thinking-False*.yaml")
    assert "template_options" in estimated.read_text()


def test_a_conversation_takes_the_template_by_itself(
    run: Callable[..., Outcome], chatting: list[str], read: list[list[int]]
) -> None:
    forms = [{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "a"}]
    path = write("d.jsonl", "".join(json.dumps(form) + "\n" for form in forms))
    done = run("complete", path, "k.json", *chatting, "--max-new-tokens", 3, "-o", "o.jsonl")
    assert done.code == 0, done.err
    wanted = [tokens_of(chatting, text) for text in ("<user>a</><assistant>", "a")]
    assert read == wanted


def test_a_switch_that_the_template_does_not_have_is_refused(
    run: Callable[..., Outcome], chatting: list[str]
) -> None:
    common = ["decode", "k.json", *chatting, "--chat", "--prompt", "a", "--template-option"]
    done = run(*common, "enable_thinkin=false")
    assert (done.code, "found enable_thinkin, which the chat template" in done.err) == (1, True)
    done = run(*common, "enable_thinking")
    assert (done.code, "as enable_thinking=false" in done.err) == (2, True)
    done = run("decode", "k.json", *chatting, "--prompt", "a", "--template-option", "a=b")
    assert (done.code, "goes with --chat" in done.err) == (2, True)


def test_a_turn_that_is_not_utf_8_is_named(
    run: Callable[..., Outcome], chatting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    standard_input(monkeypatch, b"one\n\xff\xfe\nthree\n")
    done = run("chat", "k.json", *chatting, "--max-new-tokens", 3, "--json")
    assert done.code == 1
    assert [turn["user"] for turn in json.loads(done.out)["turns"]] == ["one"]
    assert "error: standard input: line 2: is not UTF-8" in done.err
    assert done.err.count("error: ") == 1


def test_a_closed_standard_input_is_named(
    run: Callable[..., Outcome], chatting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    for command in (["chat", "k.json"], ["decode", "k.json", "--prompt", "-"]):
        done = run(*command, *chatting)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "error: standard input: is closed; give the text with --prompt-file" in done.err


@pytest.mark.parametrize("seed", [10**22, -(10**22)])
def test_a_seed_that_no_generator_takes_is_a_usage_error(
    run: Callable[..., Outcome], seed: int
) -> None:
    for command in ("decode", "estimate"):
        done = run(command, "--seed", seed)
        assert (done.code, "--seed" in done.err) == (2, True)


def test_the_largest_seed_serves_a_datasets_later_prompts(run: Callable[..., Outcome]) -> None:
    assert run("decode", "--no-compile", "--seed", 2**63 - 1, "--max-new-tokens", 2).code == 0


def test_what_streams_is_the_final_text(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes.chain(3).save("k.json")
    shown: list[str] = []
    text = Stream.text

    def kept(self: Stream) -> str:
        shown.append(text(self))
        return shown[-1]

    monkeypatch.setattr(Stream, "text", kept)
    common = ["decode", "k.json", *models, "--prompt", "a", "--max-new-tokens", 40]
    for options in ([], ["--temperature", 1.5, "--seed", 7]):
        final = json.loads(run(*common, *options, "--json").out)["text"]
        shown.clear()
        assert run(*common, *options).code == 0
        assert len(shown) > 3
        assert all(final.startswith(early) for early in shown)
        assert run(*common, *options).out.startswith(final)


@pytest.mark.parametrize("command", ["show", "report", "import"])
def test_a_file_of_another_kind_is_named_by_its_format(
    command: str, tmp_path: Path, run: Callable[..., Outcome]
) -> None:
    results = write("results.json", '{"format": "sequoia-opt/bench", "version": 1, "tree": "x"}\n')
    outcome = run(command, results)
    assert outcome.code == 1
    assert "format: found 'sequoia-opt/bench', expected 'sequoia-opt/tree'" in outcome.err
