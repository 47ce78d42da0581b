from __future__ import annotations

import torch
from offloaded_pair import ARCHITECTURES, CPU, LAYERS
from small_models import small_config

from sequoia_opt.engine.torch.empty_model import empty_model, random_model
from sequoia_opt.engine.torch.layer_weights import decoder_layers, named_weights
from sequoia_opt.engine.torch.offload import Offload, place_model


def test_an_empty_model_has_the_tensors_of_its_configuration() -> None:
    """Rotary frequencies, embedding scales and causal masks are those of an ordinary model."""
    from transformers import AutoModelForCausalLM

    for architecture in ARCHITECTURES:
        config = small_config(architecture)
        expected = AutoModelForCausalLM.from_config(config)
        model = empty_model(config, torch.float32)
        buffers = dict(model.named_buffers())
        for name, buffer in expected.named_buffers():
            assert torch.equal(buffers[name], buffer)
        assert all(parameter.is_meta for parameter in model.parameters())


def test_random_layers_share_their_weights() -> None:
    config = small_config("llama", **LAYERS, tie_word_embeddings=True)
    model = random_model(config, torch.bfloat16)
    _, layers = decoder_layers(model)
    first, last = (named_weights(layers[i]) for i in (0, 6))
    assert all(tensor.data_ptr() == last[name].data_ptr() for name, tensor in first.items())
    assert 0.01 < float(first["mlp.up_proj.weight"].std()) < 0.03
    assert torch.equal(first["input_layernorm.weight"], torch.ones(32, dtype=torch.bfloat16))
    again = random_model(config, torch.bfloat16)
    assert all(
        torch.equal(tensor, named_weights(again)[name])
        for name, tensor in named_weights(model).items()
    )
    stream = place_model(model, CPU, Offload("cpu", 140_000))
    assert stream is not None
    logits = model(input_ids=torch.arange(9)[None], use_cache=False).logits
    assert bool(logits.isfinite().all())
    assert float(logits.std()) > 0
