from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch

from sequoia_opt.engine import distributed
from sequoia_opt.engine.distributed import World, is_first_to_fail, join, launched, own_device
from sequoia_opt.errors import SequoiaError

NUMBERS = {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}
MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that torchrun gives the second process."""
    for name, value in (NUMBERS | MEETING).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(("kind", "device"), [("cpu", "cpu"), ("cuda", "cuda:1"), ("mps", "mps")])
def test_each_process_has_a_device_of_its_own(
    kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(kind) == device


def test_a_single_process_has_the_device_it_asks_for() -> None:
    assert own_device("cuda:3") == "cuda:3"


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(
    ("kind", "count", "complaint"),
    [
        ("cuda", 1, r"process 1 .* has no GPU, since there are only 1; .*--nproc-per-node 1\)"),
        ("cuda", 0, "this machine has no GPU .*; use --device cpu"),
        ("cuda:0", 2, "found cuda:0 for each of 2 processes, expected cuda; with --device cuda"),
    ],
)
def test_a_process_without_a_device_is_refused_with_advice(
    kind: str, count: int, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(SequoiaError, match=complaint):
        own_device(kind)


@pytest.mark.parametrize("missing", MEETING)
def test_an_inherited_environment_is_refused_at_once(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of another program's processes, which will never answer."""
    for name, value in (NUMBERS | MEETING).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    monkeypatch.setattr(distributed, "TCPStore", lambda *_, **__: pytest.fail("waits for others"))
    with pytest.raises(SequoiaError, match=f"but {missing} is not; start them with torchrun"):
        launched()
    assert is_first_to_fail()


@pytest.mark.usefixtures("second_of_two")
def test_processes_wait_for_the_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    options_used: dict[str, Any] = {}
    monkeypatch.setattr(
        distributed.dist,
        "init_process_group",
        lambda backend, **options: options_used.update(options),
    )
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    assert join(torch.device("cpu"), timedelta(hours=7)) == World(1, 2)
    assert options_used == {"timeout": timedelta(hours=7)}
