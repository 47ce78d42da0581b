"""What a profile times on llama.cpp alone."""

from __future__ import annotations

from typing import Any

import pytest

from sequoia_opt.measure.forwards import fill
from sequoia_opt.measure.overhead import CHANGE, steps_to_time
from sequoia_opt.plan.sampling import Sampling

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from sequoia_opt.engine.llama_cpp.cache import LlamaCache


def test_two_target_passes_in_turn_are_timed_where_an_engine_builds_graphs_anew(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache takes both again and again; plans of static trees need no such time."""
    filled = fill(pair, 40, 12)
    filled.tokens[:] = [1, 2, 4, 12]
    greedy = [Sampling(0.0)]
    [change] = [s for s in steps_to_time(pair, filled, 40, greedy) if s.name == CHANGE]
    assert (change.before, change.size, change.passes) == (1, 4, ())
    passes: list[int] = []
    forward = LlamaCache.forward

    def counted(cache: LlamaCache, batch: Any) -> Any:
        passes.append(batch.size)
        return forward(cache, batch)

    monkeypatch.setattr(LlamaCache, "forward", counted)
    for _ in range(2):
        change.timed.run()
    assert passes == [1, 4, 1, 4]
    assert CHANGE not in {s.name for s in steps_to_time(pair, filled, 40, greedy, adaptive=False)}
    filled.release(pair)


def test_contexts_lie_in_the_middle_of_the_blocks_that_a_pass_reads(pair: Any) -> None:
    block = 256
    assert all(context % block == block // 2 for context in pair.machine.contexts)
