"""The bundled pair's two architectures, and the losses they are trained and judged by.

Knows models and tokens. Knows nothing of the text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sequoia_opt.demo.tokens import END_OF_TEXT, VOCABULARY

POSITIONS = 8192

# Deep and thin: a forward pass takes as long as it has layers, and a shallow draft is cheap.
TARGET = dict(
    model_type="llama",
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
)
# A GPT-NeoX layer launches half as many operations as a Llama layer, and in a model this small
# the number of operations determines the time. With one layer the draft could not copy text.
DRAFT = dict(
    model_type="gpt_neox",
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    use_parallel_residual=False,
    hidden_act="gelu_pytorch_tanh",
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
)


def build(sizes: dict[str, Any]) -> PreTrainedModel:
    """A randomly initialised model of an architecture, with tied embeddings."""
    config = AutoConfig.for_model(
        **sizes,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation("sdpa_float32")
    return model


def sdpa_float32(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention in float32: on CPUs its bfloat16 kernel takes three times as long."""
    output, weights = sdpa_attention_forward(
        module, query.float(), key.float(), value.float(), mask, **arguments
    )
    return output.to(query.dtype), weights


AttentionInterface.register("sdpa_float32", sdpa_float32)


def logits_of(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits [batch, length, vocabulary] in float32, of a forward pass in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=inputs, use_cache=False).logits.float()


def cross_entropy(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss, in nats, of a batch [count, length + 1]."""
    logits = logits_of(model, batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, tokens: torch.Tensor, window: int = 1024) -> float:
    """Mean next-token loss, in nats, over windows of held-out text."""
    model.eval()
    window = min(window, len(tokens) - 1)
    rows = tokens[: (len(tokens) - 1) // window * window + 1].unfold(0, window + 1, window)
    return float(np.mean([cross_entropy(model, row[None]).item() for row in rows]))


@torch.no_grad()
def agreement(target: torch.nn.Module, draft: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Share of the positions of held-out text where both models' most likely tokens agree."""
    window = min(1024, len(tokens))
    rows = tokens[: len(tokens) // window * window].view(-1, 1, window)
    agrees = [logits_of(target, row).argmax(-1) == logits_of(draft, row).argmax(-1) for row in rows]
    return float(torch.stack(agrees).float().mean())


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in bfloat16, and the tokenizer, in the Hugging Face layout."""
    model.bfloat16().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=POSITIONS,
    ).save_pretrained(folder)
