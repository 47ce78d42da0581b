"""Quantised weights, in four bits as bitsandbytes stores them on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.layer_weights import (
    Layout,
    decoder_layers,
    named_weights,
    plain_tensors,
)
from sequoia_opt.engine.torch.offload import Offload, cache_bytes, place_model
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

CPU, PROMPT = torch.device("cpu"), [5, 6, 7]


@pytest.fixture(scope="module")
def quantised(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, saved with its linear layers in four bits."""
    from transformers import BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("quantised")
    model = from_pretrained(
        make_model("llama", 0, hidden_size=128, intermediate_size=256),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )
    model.save_pretrained(folder)
    return folder


def from_pretrained(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def test_greedy_tokens_are_the_librarys(quantised: Path, make_model: Callable[..., Path]) -> None:
    pair = load_pair(quantised, make_model("llama", 1), "cpu", "float32")
    weight: Any = pair.target.model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert weight.dtype == torch.uint8
    expected = from_pretrained(quantised).generate(
        torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None
    )[0, len(PROMPT) :]
    for tree in (shapes.chain(1), shapes.k_ary(2, 3)):
        generation = Decoder(pair, tree).generate(PROMPT, 24, ignore_eos=True)
        assert generation.tokens == expected.tolist()


class Int8(torch.Tensor):
    """Integers and a scale for each row, which compute as the numbers that they encode."""

    def __new__(cls, numbers: torch.Tensor, scale: torch.Tensor) -> Int8:
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], *_: object) -> Int8:
        return cls(**inner)

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        args, kwargs = tree_map(lambda x: x.plain() if isinstance(x, cls) else x, (args, kwargs))
        return function(*args, **(kwargs or {}))

    def plain(self) -> torch.Tensor:
        return self.numbers.to(self.scale.dtype) * self.scale

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)


def test_weights_that_wrap_several_tensors_are_streamed_without_conversion(
    make_model: Callable[..., Path],
) -> None:
    """They are streamed from host memory, as for a GPU, and move fewer bytes."""

    def model() -> Any:
        llama = from_pretrained(make_model("llama", 0, num_hidden_layers=5)).requires_grad_(False)
        for layer in decoder_layers(llama)[1]:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.weight = nn.Parameter(Int8.of(module.weight), requires_grad=False)
        return llama

    resident, streamed = model(), model()
    layers = decoder_layers(streamed)[1]
    size = Layout(layers[0]).size
    assert size < 0.5 * sum(tensor.nbytes for tensor in named_weights(layers[0]).values())
    inside = {id(t) for layer in layers for t in named_weights(layer).values()}
    outside = {id(t): t.nbytes for t in named_weights(streamed).values() if id(t) not in inside}
    budget = sum(outside.values()) + cache_bytes(streamed) + size
    stream = place_model(streamed, CPU, Offload("cpu", budget))
    assert stream is not None
    assert len(stream.streamed) == 4
    assert stream.moved_bytes == 4 * size
    assert list(plain_tensors(layers[1].mlp.up_proj.weight, "it")) == ["it.numbers", "it.scale"]
    tokens = torch.arange(2, 42)[None]
    with torch.inference_mode():
        for text in (tokens, tokens[:, :3]):
            expected = resident(input_ids=text, use_cache=False).logits
            assert torch.equal(streamed(input_ids=text, use_cache=False).logits, expected)


def test_unsupported_uses_are_refused(
    quantised: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = make_model("llama", 1)
    with pytest.raises(SequoiaError, match="cannot be streamed from disk"):
        load_pair(quantised, draft, "cpu", "float32", offload="disk", memory_budget=10**6)
    with pytest.raises(SequoiaError, match="cannot be offloaded"):
        place_model(from_pretrained(quantised), CPU, Offload("cpu", 10**6))
    with pytest.raises(SequoiaError, match="cannot be made up"):
        load_pair(quantised, draft, "cpu", "float32", random_weights=True)
    missing = "transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available"
    monkeypatch.setattr(missing, lambda *_: False)
    monkeypatch.setattr("transformers.integrations.is_bitsandbytes_available", bool, raising=False)
    with pytest.raises(SequoiaError, match=r"cannot be loaded.*bitsandbytes"):
        load_pair(quantised, draft, "cpu", "float32")
