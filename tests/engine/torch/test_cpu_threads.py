from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sequoia_opt.engine.torch.cpu_threads import one_left_free, processors


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_this_process_may_run_somewhere() -> None:
    found = processors()
    assert found == sorted(set(found))
    assert found


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize(
    ("there", "threads", "fewer"), [(4, 4, 3), (4, 3, 3), (8, 4, 4), (1, 1, 1)]
)
def test_one_processor_is_left_free(
    there: int, threads: int, fewer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sequoia_opt.engine.torch.cpu_threads.processors", lambda: list(range(there))
    )
    torch.set_num_threads(threads)
    with one_left_free():
        assert torch.get_num_threads() == fewer
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("_threads_as_before")
def test_all_compute_again_behind_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sequoia_opt.engine.torch.cpu_threads.processors", lambda: [0, 1])
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="not a number"), one_left_free():
        float("not a number")
    assert torch.get_num_threads() == 2
