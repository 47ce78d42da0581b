"""What is asked of a server that runs, with a stand-in for it."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from llama_server_stand_in import StandIn, serving

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.running_server import RunningServer
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_tuning import ChainSetting
from sequoia_opt.plan.round_costs import RoundCosts

COSTS = RoundCosts(10.0, (1, 8), np.array([16.0, 58.0]), 5.0)
PROMPT = [1, 2, 3]


def test_it_says_what_it_serves_and_takes() -> None:
    with serving(StandIn(COSTS, guesses=6, threshold=0.5)) as stand_in:
        server = RunningServer(stand_in.url)
    assert (server.model, server.context) == ("big", 512)
    assert server.takes_settings
    assert server.default_chain == ChainSetting(6, 0.5)


def test_a_later_version_keeps_its_settings() -> None:
    with serving(StandIn(COSTS, takes_settings=False)) as stand_in:
        assert not RunningServer(stand_in.url).takes_settings


def test_each_text_has_its_setting() -> None:
    with serving(StandIn(COSTS)) as stand_in:
        server = RunningServer(stand_in.url)
        stand_in.requests.clear()
        plain = server.answer(NO_SPECULATION, PROMPT, 20)
        chain = server.answer(Speculation(DRAFT, 4, 0.3), PROMPT, 20)
        counted = server.counted(Speculation(DRAFT, 4, 0.3), PROMPT, 20)
    assert (plain.timings.drafted, plain.steps, plain.predicted_ms) == (
        0,
        19,
        pytest.approx(190.0, abs=0.1),
    )
    assert chain.timings.accepted == sum(counted.accepted)
    assert chain.timings.drafted == sum(counted.drafted)
    assert chain.steps == len(counted.accepted)
    requests = [request for _, request in stand_in.requests]
    assert [request["speculative.n_max"] for request in requests] == [0, 4, 4]
    assert requests[1]["speculative.p_min"] == 0.3
    assert all(request["temperature"] == 0 for request in requests)


def test_tokens_that_are_not_sent_leave_the_counts_right() -> None:
    with serving(StandIn(COSTS, hidden=4)) as stand_in:
        server = RunningServer(stand_in.url)
        chain = server.answer(Speculation(DRAFT, 4), PROMPT, 60)
        counted = server.counted(Speculation(DRAFT, 4), PROMPT, 60)
    assert sum(counted.drafted) == chain.timings.drafted
    assert sum(counted.accepted) == chain.timings.accepted


@pytest.mark.parametrize("ending", ["", "/", "/v1"])
def test_its_address_is_written_in_several_ways(ending: str) -> None:
    with serving(StandIn(COSTS)) as stand_in:
        assert RunningServer(stand_in.url.removeprefix("http://") + ending).model == "big"


def test_an_address_that_is_none_is_refused() -> None:
    for address in ("ftp://a:1", "http://a..b:80"):
        with pytest.raises(SequoiaError, match=f"{address}: not an address"):
            RunningServer(address)


def test_an_address_of_ipv6_is_asked_too() -> None:
    with pytest.raises(SequoiaError, match="the server ended, or does not answer"):
        RunningServer("http://[::1]:1")


def test_a_later_version_is_counted_although_tokens_are_not_sent() -> None:
    with serving(StandIn(COSTS, takes_settings=False, guesses=4, easy=0.4, hidden=3)) as stand_in:
        server = RunningServer(stand_in.url)
        counted = server.counted(Speculation(DRAFT), PROMPT, 60)
    assert max(counted.drafted) == 4


def test_a_step_is_not_timed_where_the_token_before_it_was_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two tokens of one step have the same time."""
    with serving(StandIn(COSTS, takes_settings=False, guesses=4, easy=0.99)) as stand_in:
        client = RunningServer(stand_in.url).client
        assert client.step_ms(PROMPT, 4) == pytest.approx(COSTS.at(4)[4])
        counts = client._counts
        monkeypatch.setattr(client, "_counts", lambda request: counts(request)[1:])
        assert client.step_ms(PROMPT, 4) is None


def test_where_nothing_answers_it_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens to nobody
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SequoiaError, match=f"{url}: the server ended, or does not answer; is"):
            RunningServer(url)


def test_another_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_server_stand_in import _Handler

    monkeypatch.setattr(_Handler, "do_GET", lambda self: self._answer({"object": "list"}))
    with (
        serving(StandIn(COSTS)) as stand_in,
        pytest.raises(SequoiaError, match="found no llama-server there"),
    ):
        RunningServer(stand_in.url)


def test_a_server_without_timings_is_too_old() -> None:
    with (
        serving(StandIn(COSTS, timings=False)) as stand_in,
        pytest.raises(SequoiaError, match="no tokens or no timings; use a llama-server of 2025"),
    ):
        RunningServer(stand_in.url)


@pytest.mark.parametrize("tokens", [0, 9])
def test_a_server_that_dies_in_the_middle_is_named(tokens: int) -> None:
    with serving(StandIn(COSTS)) as stand_in:
        server = RunningServer(stand_in.url)
        stand_in.stops = tokens
        with pytest.raises(SequoiaError, match="the server stopped in the middle of an answer; is"):
            server.counted(Speculation(DRAFT, 4), PROMPT, 60)


def test_a_key_is_sent_and_asked_for() -> None:
    with serving(StandIn(COSTS, api_key="secret")) as stand_in:
        assert RunningServer(stand_in.url, "secret").model == "big"
        for key, problem in ((None, "asks for an API key"), ("wrong", "refuses the API key")):
            with pytest.raises(SequoiaError, match=rf"{problem} \(status 401\); give its key with"):
                RunningServer(stand_in.url, key)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("default_generation_settings", "found no llama-server there"),
        ("tokens", "found no tokens in its answer to /tokenize"),
        ("timings", "no tokens or no timings"),
    ],
)
def test_an_answer_without_a_value_is_no_python_error(name: str, problem: str) -> None:
    with (
        serving(StandIn(COSTS, nulls=(name,))) as stand_in,
        pytest.raises(SequoiaError, match=problem),
    ):
        RunningServer(stand_in.url)


def test_settings_that_are_not_told_are_unknown() -> None:
    with serving(StandIn(COSTS, nulls=("generation_settings",))) as stand_in:
        server = RunningServer(stand_in.url)
    assert not server.takes_settings
    assert server.default_chain == ChainSetting(0, 0.0)


def test_what_it_refuses_is_said_in_its_words() -> None:
    with serving(StandIn(COSTS)) as stand_in:
        server = RunningServer(stand_in.url)
        for ask in (server.answer, server.counted):
            with pytest.raises(
                SequoiaError, match=r"600 tokens \(the request exceeds the context\)"
            ):
                ask(NO_SPECULATION, [1] * 600, 8)
