from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sequoia_opt import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch import onednn_linear
from sequoia_opt.engine.torch.onednn_linear import (
    SUMMED_ROWS,
    SUMMED_ROWS_CACHED,
    PackedLinear,
    SummedLinear,
    pack,
    summed_rows,
    unpack,
    worth_packing,
)

WIDTH, WORTH_PACKING = 512, 2**17
DTYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.usefixtures("reset_compiler")


@pytest.fixture(autouse=True)
def _same_threshold_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "worth_packing", lambda dtype: WORTH_PACKING)


class Tied(nn.Module):
    """An inner layer, a small layer, and a head that shares its weights with an embedding."""

    def __init__(self, dtype: torch.dtype, bias: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(WIDTH, WIDTH, dtype=dtype)
        self.inner = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=bias, dtype=dtype)])
        self.small = nn.Linear(WIDTH, 8, dtype=dtype)
        self.head = nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.inner[0](self.embed(tokens))
        return torch.as_tensor(self.head(hidden).sum() + self.small(hidden).sum())


def packed_parts(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]


def supported(dtype: torch.dtype) -> bool:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=dtype).requires_grad_(False))
    pack(model)
    return bool(packed_parts(model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_computes_what_the_plain_one_does(dtype: torch.dtype, bias: bool) -> None:
    if not supported(dtype):
        pytest.skip(f"no kernels for {dtype} here")
    torch.manual_seed(0)
    plain = nn.Linear(WIDTH, WIDTH + 100, bias=bias, dtype=dtype).requires_grad_(False)
    exact = nn.Linear(WIDTH, WIDTH + 100, bias=bias, dtype=torch.float64).requires_grad_(False)
    exact.load_state_dict({k: v.double() for k, v in plain.state_dict().items()})
    model = nn.Sequential(plain)
    pack(model)
    assert packed_parts(model) == ["0"]
    for rows in (1, 2, 7, 33):
        inputs = torch.randn(2, rows, WIDTH, dtype=dtype)
        error = (model(inputs).double() - exact(inputs.double())).abs().max()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacking_gives_the_same_weights_back_and_keeps_ties(dtype: torch.dtype) -> None:
    if not supported(dtype):
        pytest.skip(f"no kernels for {dtype} here")
    torch.manual_seed(0)
    model = Tied(dtype, bias=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.arange(5)
    expected = model(tokens)
    pack(model)
    assert packed_parts(model) == ["inner.0", "head"]
    assert torch.isclose(model(tokens), expected, rtol=0.05)
    unpack(model)
    assert packed_parts(model) == []
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.head.weight is model.embed.weight
    assert torch.equal(model(tokens), expected)


def test_layers_that_cannot_gain_stay_plain() -> None:
    small = nn.Linear(8, WORTH_PACKING // 8 - 1)
    double = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    hooked = nn.Linear(WIDTH, WIDTH)
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    meta = nn.Linear(WIDTH, WIDTH, device="meta")
    wrapped = nn.Linear(WIDTH, WIDTH)
    wrapped.forward = lambda rows: rows  # type: ignore[method-assign]
    quantised = nn.Linear(WIDTH, WIDTH)
    quantised.weight = QuantisedParameter(torch.zeros(WIDTH, WIDTH))
    model = nn.Sequential(small, double, hooked, meta, wrapped, quantised)
    pack(model)
    assert packed_parts(model) == []


def test_small_float32_layers_stay_plain_on_intels_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onednn_linear, "is_intel", lambda: False)
    other = [worth_packing(dtype) for dtype in DTYPES]
    monkeypatch.setattr(onednn_linear, "is_intel", lambda: True)
    intel = [worth_packing(dtype) for dtype in DTYPES]
    assert intel[0] > other[0]
    assert intel[1] == other[1]


def test_a_layer_that_is_used_twice_is_packed_once() -> None:
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    twice = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    model, rows = nn.Sequential(twice, twice), torch.randn(3, WIDTH)
    expected = model(rows)
    pack(model)
    assert packed_parts(model) == ["0"]
    assert torch.allclose(model(rows), expected, atol=1e-5)
    unpack(model)
    assert torch.equal(model(rows), expected)


def test_a_layer_keeps_its_number_when_it_is_packed_again() -> None:
    """Compiled graphs find a layer's weights by its number."""
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    model = Tied(torch.float32, bias=True)

    def numbers() -> dict[str, int]:
        pack(model)
        modules = dict(model.named_modules())
        result = {name: modules[name].number for name in packed_parts(model)}
        unpack(model)
        return result

    first = numbers()
    assert len(set(first.values())) == 2
    assert numbers() == first


def test_packing_releases_the_plain_weights() -> None:
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    model = Tied(torch.float32, bias=True)
    inner, shared = weakref.ref(model.inner[0].weight), weakref.ref(model.head.weight)
    pack(model)
    assert inner() is None
    assert shared() is model.embed.weight


class QuantisedParameter(nn.Parameter):
    """Weights as quantisation libraries store them: a subclass that names an ordinary dtype."""


def test_the_state_dict_has_the_plain_weights() -> None:
    model = Tied(torch.float32, bias=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pack(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_native_model_has_its_plain_layers() -> None:
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    target = load_pair(device="cpu").target
    before = packed_parts(target.model)
    assert before
    with target.native() as model:
        assert packed_parts(model) == []
    assert packed_parts(target.model) == before


@pytest.fixture
def _amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an AMD CPU."""
    monkeypatch.setattr(onednn_linear, "is_amd", lambda: True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [WIDTH, 48], ids=["packed", "small"])
def test_a_few_rows_compiled_are_summed_over_plain_weights(bias: bool, width: int) -> None:
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    torch.manual_seed(0)
    plain = nn.Linear(width, width + 100, bias=bias).requires_grad_(False)
    exact = nn.Linear(width, width + 100, bias=bias, dtype=torch.float64).requires_grad_(False)
    exact.load_state_dict({k: v.double() for k, v in plain.state_dict().items()})
    model = nn.Sequential(plain)
    pack(model, summed=3)
    assert isinstance(model[0], PackedLinear if width == WIDTH else SummedLinear)
    compiled = torch.compile(model)
    for rows in (1, 3, 2, 4, 7):
        inputs = torch.randn(1, rows, width).softmax(-1) - 0.5
        if rows > 1:
            torch._dynamo.mark_dynamic(inputs, 1)
        error = (compiled(inputs).double() - exact(inputs.double())).abs().max()
        assert error < 1e-5
        if width != WIDTH:
            continue
        # What is summed is the plain weights: change them, and only a few rows notice.
        model[0].weight.mul_(2)
        changed = not torch.allclose(compiled(inputs), model(inputs), atol=1e-3)
        assert changed == (rows <= 3)
        model[0].weight.div_(2)
    unpack(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, exact.weight.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_that_16_bits_hold_are_summed_in_them(dtype: torch.dtype) -> None:
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    torch.manual_seed(0)
    plain = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    plain.weight.copy_(plain.weight.to(dtype))
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    wide, narrow = (nn.Sequential(copy.deepcopy(plain)) for _ in range(2))
    pack(wide, summed=3)
    pack(narrow, summed=3, narrow=True)
    assert narrow[0].weight.dtype == dtype
    inputs = torch.randn(1, 3, WIDTH)
    outputs = [torch.compile(model)(inputs) for model in (narrow, wide)]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in narrow[0].state_dict().items())
    unpack(narrow)
    assert torch.equal(narrow[0].weight, before["weight"])


def test_weights_beyond_float16_and_shared_ones() -> None:
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    large = torch.tensor([1e5, 3e-5]).bfloat16().float()
    assert onednn_linear.narrowed(large).dtype == torch.bfloat16
    tied = Tied(torch.float32, bias=False)
    tied.embed.weight.fill_(1)
    pack(tied, summed=3, narrow=True)
    assert tied.head.weight is tied.embed.weight


def test_several_texts_are_not_summed() -> None:
    """Their number varies, and so does the number of tokens of each."""
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH).requires_grad_(False))
    pack(model, summed=3)
    compiled, inputs = torch.compile(model), torch.randn(2, 1, WIDTH)
    before = compiled(inputs)
    model[0].weight.zero_()
    assert torch.equal(compiled(inputs), before)


@pytest.mark.usefixtures("_amd")
def test_sums_pay_where_the_plain_weights_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if not supported(torch.float32):
        pytest.skip("no kernels here")

    def rows(tied: bool = True) -> int:
        model = Tied(torch.float32, bias=True)
        if not tied:
            model.head.weight = nn.Parameter(model.embed.weight.clone(), requires_grad=False)
        pack(model)
        return summed_rows(model)

    weight = 4 * WIDTH * WIDTH
    assert rows() == SUMMED_ROWS_CACHED
    monkeypatch.setattr(onednn_linear, "free_bytes", lambda device: 2 * weight)
    assert rows() == SUMMED_ROWS_CACHED  # the embedding keeps the head's weights anyway
    assert rows(tied=False) == 0
    monkeypatch.setattr(onednn_linear, "free_bytes", lambda device: 2 * weight - 1)
    assert rows() == 0
    monkeypatch.setattr(onednn_linear, "free_bytes", lambda device: None)
    every = 2 * weight + 4 * 8 * WIDTH  # with the small layer's
    monkeypatch.setattr(onednn_linear, "CACHED_BYTES", every)
    assert rows() == SUMMED_ROWS_CACHED
    monkeypatch.setattr(onednn_linear, "CACHED_BYTES", every - 1)
    assert rows() == SUMMED_ROWS
    model = Tied(torch.float32, bias=True)
    assert summed_rows(model, eager=("inner.0", "small", "head")) == 0
    monkeypatch.setattr(onednn_linear, "is_amd", lambda: False)
    assert rows() == 0


@pytest.mark.usefixtures("_amd")
def test_a_compiled_model_decodes_on_after_its_native_form_was_used(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where memory has become short meanwhile, since the graphs use the plain weights."""
    if not supported(torch.float32):
        pytest.skip("no kernels here")
    one_layer = make_model("llama", num_hidden_layers=1)
    pair = load_pair(one_layer, one_layer, "cpu")
    plain = Decoder(pair)
    expected = plain.generate([5, 6, 7], 12).tokens

    def summing() -> list[int]:
        model = pair.target.model
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        return [getattr(layer, "summed", 0) for layer in layers]

    before = summing()
    assert not any(before)
    pair.target.compile()
    assert summing() == [SUMMED_ROWS_CACHED] * len(before) != []
    assert plain.generate([5, 6, 7], 12).tokens == expected
    monkeypatch.setattr(onednn_linear, "free_bytes", lambda device: 0)
    with pair.target.native():
        pass
    assert summing() == [SUMMED_ROWS_CACHED] * len(before)
    assert plain.generate([5, 6, 7], 12).tokens == expected
