"""An EAGLE-3 head: a decoder layer on the target, which proposes the token after the next one.

From the target's hidden states at one token (`project` makes them a feature) and the token that
follows, it predicts the token behind that one. Further tokens it predicts from its own output,
which takes the feature's place. See *EAGLE-3* (arXiv 2503.01840), section 3.

Knows what is computed. Knows nothing of files, caches or trees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from sequoia_opt.engine.torch.attention import Attend
from sequoia_opt.engine.torch.eagle.config import HeadConfig

DECODER_LAYERS: dict[str, Any] = {"llama": LlamaDecoderLayer, "qwen3": Qwen3DecoderLayer}


class FirstLayer(nn.Module):
    """A decoder layer whose attention reads a token's embedding and a feature side by side."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        layer = config.layer
        plain = DECODER_LAYERS[layer.model_type](layer, 0)
        self.self_attn, self.mlp = plain.self_attn, plain.mlp
        self.input_layernorm = plain.input_layernorm
        self.post_attention_layernorm = plain.post_attention_layernorm
        self.hidden_norm = LlamaRMSNorm(layer.hidden_size, eps=layer.rms_norm_eps)
        self._norm_before_residual = config.norm_before_residual
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow = getattr(self.self_attn, name)
            bias = narrow.bias is not None
            wide = nn.Linear(2 * layer.hidden_size, narrow.out_features, bias=bias)
            setattr(self.self_attn, name, wide)

    def forward(
        self, embeddings: Tensor, features: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        """The layer's output [batch, tokens, hidden size]; embeddings and features are alike."""
        normed = self.hidden_norm(features)
        residual = normed if self._norm_before_residual else features
        attended, _ = self.self_attn(
            torch.cat([self.input_layernorm(embeddings), normed], dim=-1),
            position_embeddings=rotary,
            attention_mask=None,
            tree=attend,
        )
        hidden = residual + attended
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class EagleHead(nn.Module):
    """A head with its embeddings; see the module.

    Attributes:
        config: what its config.json says.
        embed_tokens: of the target's vocabulary.
    """

    def __init__(self, config: HeadConfig, states: int, state_size: int) -> None:
        """Make a head without values.

        Args:
            states: hidden states of the target that it reads at a token.
            state_size: elements of each.
        """
        super().__init__()
        layer = config.layer
        hidden, eps = layer.hidden_size, layer.rms_norm_eps
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, hidden)
        self.fc = nn.Linear(states * state_size, hidden, bias=False)
        if config.norm_before_fc:
            self.input_norm = LlamaRMSNorm(states * state_size, eps=eps)
        if config.fc_norm:
            norms = [LlamaRMSNorm(state_size, eps=eps) for _ in range(states)]
            self.fc_norm = nn.ModuleList(norms)
        decoder_layer = DECODER_LAYERS[layer.model_type]
        further = [decoder_layer(layer, i) for i in range(1, layer.num_hidden_layers)]
        self.layers = nn.ModuleList([FirstLayer(config), *further])
        self.norm = LlamaRMSNorm(hidden, eps=eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocabulary, bias=False)
        with torch.device("cpu"):  # computed from the configuration, not read
            self.rotary_emb = LlamaRotaryEmbedding(layer)

    def project(self, states: Tensor) -> Tensor:
        """Features [..., hidden size] from the target's hidden states [..., side by side]."""
        if self.config.norm_before_fc:
            states = self.input_norm(states)
        if self.config.fc_norm:
            parts = states.chunk(len(self.fc_norm), dim=-1)
            normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            states = torch.cat(normed, dim=-1)
        features: Tensor = self.fc(states)
        return features

    def forward(
        self, tokens: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> Tensor:
        """The output of the last layer.

        Args:
            tokens: [batch, tokens].
            features: [batch, tokens, hidden size], each from the token before.
            positions: [batch or 1, tokens].
            attend: where keys and values go, and what is attended to.

        Returns:
            [batch, tokens, hidden size]: what `logits` and the tokens' children read.
        """
        embeddings = self.embed_tokens(tokens)
        rotary = self.rotary_emb(embeddings, positions)
        first, *further = self.layers
        hidden: Tensor = first(embeddings, features, rotary, attend)
        for layer in further:
            hidden = layer(hidden, position_embeddings=rotary, attention_mask=None, tree=attend)
        return self.norm(hidden) if self.config.feeds_back_normed else hidden

    def logits(self, output: Tensor) -> Tensor:
        """Logits [..., draft vocabulary] from outputs [..., hidden size]."""
        if not self.config.feeds_back_normed:
            output = self.norm(output)
        logits: Tensor = self.lm_head(output)
        return logits
