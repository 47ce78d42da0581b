"""The HTTP client against a server of the standard library."""

from __future__ import annotations

import json
import socket

import pytest
from stand_in_server import StandIn, serving

from sequoia_opt.engine.http_client import HttpClient, json_mapping


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


@pytest.mark.parametrize("url", ["", "host", "ftp://host", "http://", "http://h:port", "http://["])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        HttpClient(url)


@pytest.mark.parametrize("text", ["", "[1]", "1", "{", "[" * 100_000])
def test_only_a_mapping_is_one(text: str) -> None:
    assert json_mapping(text) == {}
    assert json_mapping('{"a": 1}') == {"a": 1}
