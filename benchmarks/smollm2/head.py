"""The EAGLE-3 head: its sizes, how it begins, and its passes in training.

Knows the architecture. Knows nothing of data or files.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sequoia_opt.engine.torch.eagle.config import HeadConfig, head_config_of
from sequoia_opt.engine.torch.eagle.head import EagleHead

STATE_COUNT = 3  # hidden states of the target that a head reads


def config_of_head(target: Any, draft_vocabulary: int) -> HeadConfig:
    """A head as wide as its target, whose configuration this is."""
    return head_config_of(
        "head",
        dict(
            architectures=["LlamaForCausalLMEagle3"],
            model_type="llama",
            vocab_size=target.vocab_size,
            draft_vocab_size=draft_vocabulary,
            hidden_size=target.hidden_size,
            intermediate_size=2 * target.hidden_size,
            num_hidden_layers=1,
            num_attention_heads=target.num_attention_heads,
            num_key_value_heads=target.num_key_value_heads,
            head_dim=target.hidden_size // target.num_attention_heads,
            max_position_embeddings=target.max_position_embeddings,
            rms_norm_eps=target.rms_norm_eps,
            rope_theta=10000.0,
            hidden_act="silu",
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=False,
        ),
    )


class TrainedHead(nn.Module):
    """A head that reads scaled hidden states.

    A few elements of a Llama's hidden states are hundreds of times larger than the others, which
    no single learning rate suits. They are divided by how large they are; `folded` puts that
    into the weights.

    Attributes:
        head: reads what is divided already.
        scale: [elements of the hidden states], what they are divided by.
    """

    scale: Tensor

    def __init__(self, head: EagleHead, scale: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("scale", scale)

    def begin_from(self, embedding: Tensor, norm: Tensor, ids: Tensor) -> None:
        """Begin with the target's embeddings, which stay, its output and the last state read.

        Args:
            embedding: the target's, which is its head too, [vocabulary, width].
            norm: of its output, [width].
            ids: the target's token of each of the head's, [draft vocabulary].
        """
        head, width = self.head, embedding.shape[1]
        rows = embedding[ids] * norm
        with torch.no_grad():
            head.embed_tokens.weight.copy_(embedding)
            head.embed_tokens.weight.requires_grad_(False)
            # As long as typical, so that the first logits are about 1.
            head.lm_head.weight.copy_(rows / rows.square().sum(1).mean().sqrt())
            head.fc.weight.zero_()
            head.fc.weight[:, -width:].fill_diagonal_(1.0)
            head.layers[0].self_attn.o_proj.weight.zero_()
            head.layers[0].mlp.down_proj.weight.zero_()

    def outputs(self, tokens: Tensor, states: Tensor, starts: Tensor, passes: int) -> list[Tensor]:
        """Outputs of a first pass, and of passes that read the outputs of the one before.

        The row of a token reads the state of the token before. In pass k, from 0, a row sees what
        it would see as the k-th guess behind a text: the text's rows of the first pass, then the
        guesses' rows, each of its own pass (EAGLE-3's *training-time test*).

        Args:
            tokens: [texts, length].
            states: the target's hidden states at the tokens, [texts, length, states x width].
            starts: at each position, where its conversation begins, [texts, length].

        Returns:
            [texts, length, width], one for each pass.
        """
        head, layer = self.head, self.head.layers[0]
        texts, length = tokens.shape
        places = torch.arange(length)
        embeddings = head.embed_tokens(tokens)
        rotary = head.rotary_emb(embeddings, places[None])
        normed = layer.input_layernorm(embeddings)
        features = _later(head.project(states / self.scale), 1, 1)
        keys, values, outputs = list[Tensor](), list[Tensor](), list[Tensor]()
        for number in range(passes):
            read = torch.cat([normed, layer.hidden_norm(features)], -1)
            query, key, value = (
                product(read).view(texts, length, -1, layer.self_attn.head_dim).transpose(1, 2)
                for product in (
                    layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
                )
            )  # fmt: skip
            query, key = apply_rotary_pos_emb(query, key, *rotary)
            groups = query.shape[1] // key.shape[1]
            keys.append(key.repeat_interleave(groups, 1))
            values.append(value.repeat_interleave(groups, 1))
            # The conversation's first row has no state of a token before it.
            seen = (places <= places[:, None] - number) & (places > starts[..., None])
            attended = _attention(query, keys, values, seen[:, None])
            attended = layer.self_attn.o_proj(attended.transpose(1, 2).reshape(texts, length, -1))
            hidden = features + attended
            outputs.append(hidden + layer.mlp(layer.post_attention_layernorm(hidden)))
            features = _later(outputs[-1], 1, 1)
        return outputs

    def folded(self) -> dict[str, Tensor]:
        """The head's weights, for hidden states as they are; without the embeddings."""
        weights = dict(self.head.state_dict())
        del weights["embed_tokens.weight"]
        weights["fc.weight"] = weights["fc.weight"] / self.scale
        return weights


def _attention(query: Tensor, keys: list[Tensor], values: list[Tensor], seen: Tensor) -> Tensor:
    """Attention of the last pass's rows; all but `seen` are [texts, heads, length, size].

    Args:
        keys, values: of each pass so far.
        seen: which rows of the first pass each row sees, [texts, 1, length, length].
    """
    last = len(keys) - 1
    # Row t sees row t - (last - j) of pass j, for each j from 1 on; of the first pass where
    # there is no other.
    own = [_later(key, last - j, 2) for j, key in enumerate(keys)][1:]
    scores = query @ keys[0].transpose(2, 3)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    further = [(query * key).sum(3, keepdim=True) for key in own]
    scale = 1 / math.sqrt(query.shape[3])
    chances = (torch.cat([scores, *further], 3).float() * scale).softmax(3).to(query.dtype)
    length = keys[0].shape[2]
    attended = chances[..., :length] @ values[0]
    for j, value in enumerate(values[1:], 1):
        attended = attended + chances[..., length + j - 1, None] * _later(value, last - j, 2)
    return attended


def _later(values: Tensor, rows: int, dimension: int) -> Tensor:
    """Values moved to later rows; zeros come first."""
    if not rows:
        return values
    length = values.shape[dimension]
    kept = values.narrow(dimension, 0, length - rows)
    return torch.cat([torch.zeros_like(values.narrow(dimension, 0, rows)), kept], dimension)
