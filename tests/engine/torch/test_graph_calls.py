"""Compiled graphs called directly: what torch.compile's own calls would give."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sequoia_opt.engine.torch.attention import Attend, KVCache, LayerShape, Masks
from sequoia_opt.engine.torch.compile import OPTIONS, _varying, vary_sizes
from sequoia_opt.engine.torch.graph_calls import GraphCalls

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)
LAYERS = [LayerShape(2, 2, 8, 8, None), LayerShape(2, 2, 8, 8, 4)]
FEWEST = (1, 2)


class Toy(nn.Module):
    """Two layers of attention, one with a sliding window, over a cache."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(13, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in LAYERS)

    def forward(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
    ) -> tuple[Tensor, ...]:
        attend = Attend(cache, slots, masks)
        hidden = self.table(tokens) + positions[..., None]
        for number, layer in enumerate(self.layers):
            shape = (*tokens.shape, 2, 8)
            query, key, value = (p.view(shape).transpose(1, 2) for p in layer(hidden).chunk(3, -1))
            keys, values, mask = attend.store(number, key, value)
            output = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            hidden = hidden + output.transpose(1, 2).reshape(hidden.shape)
        return hidden.sum(-1), hidden  # not in the order in which they are computed


def cache_of(capacity: int, seed: int = 0) -> KVCache:
    """A cache with numbers everywhere."""
    cache = KVCache(LAYERS, 1, capacity, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for store in (*cache.keys, *cache.values):
        store.copy_(torch.randn(store.shape, generator=generator))
    return cache


def arguments(count: int, used: int, windows: tuple[int | None, ...] = (None, 4)) -> list[Any]:
    """What a pass over `count` tokens takes that reads `used` slots."""
    slots = torch.arange(used - count, used)
    seen = torch.arange(used) <= slots[:, None]
    near = seen & (torch.arange(used) > slots[:, None] - 4)
    masks = {None: seen, 4: near}
    return [
        (slots % 13)[None],
        slots[None],
        slots.clone(),
        {w: torch.where(masks[w], 0.0, -1e9)[None, None] for w in windows},
    ]


@pytest.fixture(scope="module")
def toy() -> Iterator[tuple[Toy, GraphCalls]]:
    """A model, and its graphs, each of which was called once."""
    model = Toy().requires_grad_(False)
    with torch.inference_mode():
        yield model, compiled(model)
    torch.compiler.reset()


def compiled(model: Toy) -> GraphCalls:
    """Its graphs, each of which was called once."""
    graphs = GraphCalls(lambda *given: model(*given), OPTIONS, _varying, FEWEST)
    cache = cache_of(32)
    for count in FEWEST:
        first = arguments(count, 9)
        vary_sizes(*first, cache)
        graphs(*first, cache)
    return graphs


def no_search(*_: Any) -> Any:
    """In place of a search for a graph."""
    raise AssertionError("torch.compile searched for a graph")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_calls_without_a_search_give_the_same(
    toy: tuple[Toy, GraphCalls], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outputs, and the cache after the pass, for caches and numbers of slots of all sizes."""
    model, graphs = toy
    monkeypatch.setattr(graphs, "_searched", no_search)
    for capacity, used in ((32, 9), (32, 31), (50, 20), (17, 8)):
        for windows in ((None, 4), (4, None)):
            caches = [cache_of(capacity, used) for _ in range(2)]
            given = arguments(count, used, windows)
            found, expected = graphs(*given, caches[0]), model(*given, caches[1])
            assert len(found) == len(expected) == 2
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)
            for name in ("keys", "values"):
                for one, other in zip(*(getattr(c, name) for c in caches), strict=True):
                    torch.testing.assert_close(one, other)


def test_a_whole_buffer_is_left_to_the_search(
    toy: tuple[Toy, GraphCalls], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graphs = toy
    given = arguments(2, 12)
    found, expected = (run(*given, cache_of(12)) for run in (graphs, model))
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr(graphs, "_searched", no_search)
    with pytest.raises(AssertionError, match="searched"):
        graphs(*given, cache_of(12))


def test_an_argument_that_is_given_twice_is_left_to_the_search(toy: tuple[Toy, GraphCalls]) -> None:
    """Which of the two a graph reads cannot be told."""
    model, _ = toy

    def forward(*given: Any) -> tuple[Tensor, ...]:
        return model(*given)

    graphs = GraphCalls(forward, OPTIONS, _varying, FEWEST)
    for used in (9, 11):
        tokens, _, slots, masks = arguments(2, used)
        cache = cache_of(32)
        vary_sizes(tokens, tokens, slots, masks, cache)
        found = graphs(tokens, tokens, slots, masks, cache)
        torch.testing.assert_close(found, model(tokens, tokens, slots, masks, cache_of(32)))
        found = graphs(*arguments(2, used), cache)
        torch.testing.assert_close(found, model(*arguments(2, used), cache_of(32)))


def test_a_graph_for_some_sizes_only_is_left_to_the_search(toy: tuple[Toy, GraphCalls]) -> None:
    """Its first call did not say which sizes vary."""
    model, _ = toy

    def forward(*given: Any) -> tuple[Tensor, ...]:
        return model(*given)

    graphs = GraphCalls(forward, OPTIONS, _varying, FEWEST)
    for count, used, capacity in ((1, 9, 32), (1, 20, 50), (3, 12, 32), (2, 30, 50)):
        given = arguments(count, used)
        found, expected = (run(*given, cache_of(capacity)) for run in (graphs, model))
        torch.testing.assert_close(found, expected)


def test_weights_that_change_in_place_are_seen(toy: tuple[Toy, GraphCalls]) -> None:
    model, graphs = toy
    given = arguments(1, 9)
    before = graphs(*given, cache_of(32))
    model.table.weight.mul_(2)
    after, expected = graphs(*given, cache_of(32)), model(*given, cache_of(32))
    model.table.weight.div_(2)
    torch.testing.assert_close(after, expected)
    assert not torch.allclose(after[0], before[0])


def test_no_cache_is_kept_alive(toy: tuple[Toy, GraphCalls]) -> None:
    _, graphs = toy
    cache = cache_of(40)
    graphs(*arguments(1, 9), cache)
    reference = weakref.ref(cache)
    del cache
    gc.collect()
    assert reference() is None
