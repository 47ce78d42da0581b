"""Weights that transformers loads quantised: int8, as torchao keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.models import load_pair
from sequoia_opt.engine.offload import Offload, decoder_layers, place
from sequoia_opt.engine.streaming import Layout, parts_of, weights_of
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def quantised(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, saved with its weights in int8."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    folder = tmp_path_factory.mktemp("int8")
    model = from_pretrained(
        make_model("llama", 0, num_hidden_layers=5),
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
    )
    model.save_pretrained(folder)
    return folder


def from_pretrained(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def test_greedy_tokens_are_the_librarys(quantised: Path, make_model: Callable[..., Path]) -> None:
    pair = load_pair(quantised, make_model("llama", 1), "cpu", "float32")
    weight: Any = pair.target.model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert {part.dtype for part in parts_of(weight, "").values()} >= {torch.int8}
    wanted = from_pretrained(quantised).generate(
        torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None
    )[0, len(PROMPT) :]
    for tree in (shapes.chain(1), shapes.k_ary(2, 3)):
        found = Decoder(pair, tree).generate(PROMPT, 24, ignore_eos=True)
        assert found.tokens == wanted.tolist()


def test_layers_are_streamed_as_they_are(quantised: Path) -> None:
    """From host memory, as for a GPU: the same bytes, the same logits, a fraction of the size."""
    resident, model = from_pretrained(quantised), from_pretrained(quantised)
    layers = decoder_layers(model)[1]
    size = Layout(layers[0]).size
    full = sum(t.numel() * 4 for t in weights_of(layers[0]).values())
    assert size < full / 2
    within = {id(t) for layer in layers for t in weights_of(layer).values()}
    fixed = sum(
        part.nbytes
        for tensor in {id(t): t for t in weights_of(model).values()}.values()
        if id(tensor) not in within
        for part in parts_of(tensor, "").values()
    )
    stream = place(model, torch.device("cpu"), Offload("cpu", fixed + size))
    assert stream is not None
    assert len(stream.streamed) == 4
    assert stream.moved_bytes == 4 * size
    tokens = torch.arange(2, 42)[None]
    with torch.inference_mode():
        for part in (tokens, tokens[:, :3]):
            wanted = resident(input_ids=part, use_cache=False).logits
            assert torch.equal(model(input_ids=part, use_cache=False).logits, wanted)


def test_what_cannot_be_done_is_refused(
    quantised: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = make_model("llama", 1)
    with pytest.raises(SequoiaError, match="not read from disk as they are"):
        load_pair(quantised, draft, "cpu", "float32", offload="disk", memory_budget=10**6)
    with pytest.raises(SequoiaError, match="cannot be made up"):
        load_pair(quantised, draft, "cpu", "float32", random_weights=True)
    monkeypatch.setattr("transformers.quantizers.quantizer_torchao.is_torchao_available", bool)
    with pytest.raises(SequoiaError, match=r"cannot be loaded.*torchao"):
        load_pair(quantised, draft, "cpu", "float32")
