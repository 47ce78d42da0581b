from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch

from sequoia_opt.engine import distributed
from sequoia_opt.engine.distributed import World, is_first_to_fail, join, launched, own_device
from sequoia_opt.errors import SequoiaError

PLACES = {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}
MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells this process."""
    for name, value in (PLACES | MEETING).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(("kind", "own"), [("cpu", "cpu"), ("cuda", "cuda:1"), ("mps", "mps")])
def test_each_process_has_a_device_of_its_own(
    kind: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(kind) == own


def test_one_process_has_the_device_that_it_wants() -> None:
    assert own_device("cuda:3") == "cuda:3"


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(
    ("kind", "count", "complaint"),
    [
        ("cuda", 1, r"process 1 .* has no GPU: there are 1; .*--nproc-per-node 1\)"),
        ("cuda", 0, "this machine has no GPU .*; use --device cpu"),
        ("cuda:0", 2, "found cuda:0 for each of 2 processes; use --device cuda"),
    ],
)
def test_a_process_without_a_device_is_told_what_to_do(
    kind: str, count: int, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(SequoiaError, match=complaint):
        own_device(kind)


@pytest.mark.parametrize("missing", MEETING)
def test_an_environment_that_was_inherited_is_refused_at_once(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another program's processes: nobody is there to be waited for."""
    for name, value in (PLACES | MEETING).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    monkeypatch.setattr(distributed, "TCPStore", lambda *_, **__: pytest.fail("waits for others"))
    with pytest.raises(SequoiaError, match=f"but {missing} is not; start them with torchrun"):
        launched()
    assert is_first_to_fail()


@pytest.mark.usefixtures("second_of_two")
def test_processes_wait_as_long_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    met: dict[str, Any] = {}
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda backend, **options: met.update(options)
    )
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    assert join(torch.device("cpu"), timedelta(hours=7)) == World(1, 2)
    assert met == {"timeout": timedelta(hours=7)}
