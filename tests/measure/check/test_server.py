"""Servers that answer, and those that do not: every error is one line."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from checking import server
from stand_in_server import StandIn, serving

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.server import Server, connect


def connected(stand_in: StandIn, **options: Any) -> Server:
    chosen = {"model": None, "api_key": None, "timeout": 5.0, **options}
    with serving(stand_in) as url:
        return connect(url, **chosen)


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM", "SGLang"])
def test_its_kind_is_recognised(kind: str) -> None:
    found = connected(StandIn(kind=kind))
    assert (found.dialect.name, found.model) == (kind, "letters")


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_addresses_are_written_in_several_ways(ending: str) -> None:
    with serving(StandIn(kind="vLLM")) as url:
        found = connect(url.removeprefix("http://") + ending, None, None, 5.0)
        assert found.url == url
        assert found.complete("abc", 5).reading.new_tokens == 5
        assert found.tokenize("abc") == [0, 1, 2]


def test_a_model_is_chosen() -> None:
    served = StandIn(models=("letters", "digits"))
    assert connected(served, model="digits").model == "digits"
    with pytest.raises(SequoiaError, match="serves letters, digits; choose one with --model"):
        connected(served)
    with pytest.raises(SequoiaError, match="no model 'words', expected one that it serves: let"):
        connected(served, model="words")


def test_a_key_is_asked_for_and_refused() -> None:
    with pytest.raises(SequoiaError, match="asks for an API key"):
        connected(StandIn(api_key="secret"))
    with pytest.raises(SequoiaError, match="refuses the API key"):
        connected(StandIn(api_key="secret"), api_key="wrong")
    assert connected(StandIn(api_key="secret"), api_key="secret").model == "letters"
    with pytest.raises(SequoiaError, match="does not answer"):
        connected(StandIn(), api_key="a\nb")


class Says(StandIn):
    """A server that gives one answer to everything."""

    answer: tuple[int, str] = (200, "")

    def ask(self, *_: Any, **__: Any) -> tuple[int, str]:
        return self.answer


def saying(status: int, text: str) -> Says:
    says = Says()
    says.answer = status, text
    return says


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (200, "<html>hello</html>", "found 200 <html>hello</html> at /v1/models, expected the"),
        (404, "", "found 404 an empty answer at /v1/models"),
        (200, "[1]", "found 200 [1] at"),
        (200, '{"data": 3}', "at /v1/models, expected"),
        (503, '{"error": {"message": "Loading model"}}', "found 503 Loading model at"),
    ],
)
def test_what_is_no_such_server_is_said(status: int, text: str, words: str) -> None:
    with pytest.raises(SequoiaError) as raised:
        connected(saying(status, text))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(SequoiaError, match=r"no answer to GET /v1/models within 0\.05 s"):
            connect(f"127.0.0.1:{port}", None, None, 0.05)
    with pytest.raises(SequoiaError, match="does not answer GET /v1/models"):
        connect(f"127.0.0.1:{port}", None, None, 5.0)
    for url in ("http://", "ftp://host", "host:port"):
        with pytest.raises(SequoiaError, match="not an address"):
            connect(url, None, None, 5.0)


BAD_ANSWERS: dict[str, Callable[[], tuple[int, str]]] = {
    "refuses a request to /completion (no room)": lambda: (
        400,
        json.dumps({"error": {"message": "no room"}}),
    ),
    "refuses the API key": lambda: (401, ""),
    "found an answer from /completion, expected one in the format of llama.cpp (KeyError": lambda: (
        200,
        "{}",
    ),
    "expected one in the format of llama.cpp (ValueError": lambda: (
        200,
        json.dumps({"content": "", "tokens": ["x"], "timings": {}}),
    ),
}


@pytest.mark.parametrize(("words", "answer"), BAD_ANSWERS.items(), ids=BAD_ANSWERS)
def test_answers_that_are_none(words: str, answer: Callable[[], tuple[int, str]]) -> None:
    tested = server()
    tested._client = saying(*answer())  # type: ignore[assignment]
    with pytest.raises(SequoiaError) as raised:
        tested.complete("abc", 5)
    assert words in str(raised.value)


def test_answers_without_log_probabilities_have_no_candidates() -> None:
    assert server(has_logprobs=False).candidates("abc") == {}
    for kind in ("llama.cpp", "vLLM", "SGLang"):
        found = server(kind=kind).candidates("abc")
        assert len(found) == 10
        assert max(candidate.logprob for candidate in found.values()) > -2
