"""The HTTP client against a server of the standard library."""

from __future__ import annotations

import json
import socket
from threading import Thread
from typing import Any

import pytest
from stand_in_server import StandIn, serving

from sequoia_opt.engine.http_client import HttpClient, client_of, error_message, json_mapping
from sequoia_opt.errors import SequoiaError


def test_it_asks_and_gets_status_and_text() -> None:
    with serving(StandIn()) as url:
        client = HttpClient(url + "/")
        assert client.url == url
        status, text = client.ask("GET", "/v1/models")
        assert (status, json.loads(text)["data"][0]["id"]) == (200, "letters")
        status, text = client.ask("POST", "/tokenize", {"content": "abc"})
        assert (status, json.loads(text)) == (200, {"tokens": [0, 1, 2]})
        assert client.ask("GET", "/nothing")[0] == 404


def test_a_path_of_the_address_comes_first() -> None:
    with serving(StandIn()) as url:
        assert HttpClient(url + "/v1").ask("GET", "/models")[0] == 200


def test_the_key_is_a_bearer_token() -> None:
    with serving(StandIn(api_key="secret")) as url:
        assert HttpClient(url).ask("GET", "/v1/models")[0] == 401
        assert HttpClient(url, "wrong").ask("GET", "/v1/models")[0] == 401
        assert HttpClient(url, "secret").ask("GET", "/v1/models")[0] == 200


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = HttpClient(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(TimeoutError):
            client.ask("GET", "/", timeout=0.05)


def test_lines_come_while_the_server_still_writes() -> None:
    """The server sends its second line only when the first one has been read."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = HttpClient(f"http://127.0.0.1:{listening.getsockname()[1]}")
        connections: list[socket.socket] = []
        answering = Thread(target=lambda: connections.append(begun(listening)))
        answering.start()
        with client.stream("GET", "/", timeout=5.0) as (status, lines):
            answering.join()
            first = next(lines)
            with connections[0] as connection:
                connection.sendall("zweit\u00e4\n".encode())
            assert (status, first, list(lines)) == (418, "first\n", ["zweit\u00e4\n"])


def begun(listening: socket.socket) -> socket.socket:
    """Take a request, and send the beginning of an answer."""
    connection, _ = listening.accept()
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.0 418 I'm a teapot\r\n\r\nfirst\n")
    return connection


@pytest.mark.parametrize("url", ["", "host", "ftp://host", "http://", "http://h:port", "http://["])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        HttpClient(url)


@pytest.mark.parametrize("text", ["", "[1]", "1", "{", "[" * 100_000])
def test_only_a_mapping_is_one(text: str) -> None:
    assert json_mapping(text) == {}
    assert json_mapping('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("http://example.org/v1", "http://example.org"),
        ("https://example.org/v1/", "https://example.org"),
        ("http://[::1]:81/", "http://[::1]:81"),
        ("http://example.org/models/v1", "http://example.org/models"),
    ],
)
def test_an_address_as_people_write_it(written: str, url: str) -> None:
    assert client_of(written).url == url


@pytest.mark.parametrize("url", ["", "ftp://a:1", "http://", "http://a:b", "http://["])
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(SequoiaError, match="not an address") as raised:
        client_of(url)
    assert str(raised.value).startswith(f"{url}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": {"message": "no\nroom", "code": 400}}, "no room"),
        ({"error": {"code": 400}}, "{'code': 400}"),
        ({"error": "no room"}, "no room"),
        ({"message": "no room"}, "no room"),
        ({"detail": "no room"}, "no room"),
        ({}, "status 500"),
    ],
)
def test_an_error_is_said_in_the_servers_words(answer: dict[str, Any], message: str) -> None:
    assert error_message(answer, "status 500") == message
