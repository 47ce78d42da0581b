from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sequoia_opt.engine.distributed import World
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import forwards


@torch.inference_mode()
def test_processes_stop_together_when_one_lacks_memory(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has no room for four tokens, so this one must not start that forward pass."""
    others = iter(["", "", "", "no room there"])  # buffers, then 1, 2 and 4 tokens

    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            return [value, next(others)]

    ran: list[int] = []
    pair, notes = replace(make_pair(dtype="float32"), world=Two(0, 2)), []
    for model in pair.models.values():
        monkeypatch.setattr(
            model, "pass_to_time", lambda cache, context, count, *_: lambda: ran.append(count)
        )
    filled = forwards.fill_what_fits(pair, [1, 2, 4, 8], 16, 1, notes.append)
    assert filled is not None
    assert filled.tokens == [1, 2]
    assert ran == [1, 1, 2, 2]
    assert notes == ["batch 1: measured to 2 tokens, more do not fit into memory (no room there)"]


@torch.inference_mode()
def test_out_of_memory_while_others_wait_ends_the_run(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            return [value, value]

    def pass_to_time(cache: Any, context: int, count: int, *_: object) -> Callable[[], None]:
        def run() -> None:
            if count > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

        return run

    pair = replace(make_pair(dtype="float32"), world=Two(0, 2))
    for model in pair.models.values():
        monkeypatch.setattr(model, "pass_to_time", pass_to_time)
    with pytest.raises(SequoiaError, match=r"out of memory\. Tried .*; profile shorter --contexts"):
        forwards.fill_what_fits(pair, [1, 2, 4], 16, 1, pytest.fail)
