"""Loads an EAGLE-3 head for a target, and checks that the two fit together.

Knows names and sizes. Knows nothing of trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.drafters import HeadDrafter
from sequoia_opt.engine.torch.eagle.config import HeadConfig
from sequoia_opt.engine.torch.eagle.head import EagleHead
from sequoia_opt.engine.torch.eagle.model import EagleModel
from sequoia_opt.engine.torch.eagle.weights import (
    EMBEDDINGS,
    filled_head,
    read_weights,
    share_embeddings,
    token_ids,
)
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.engine.torch.weight_files import weight_files
from sequoia_opt.errors import SequoiaError


@dataclass(frozen=True)
class LoadedHead:
    """A head whose target is not loaded yet.

    Attributes:
        token_ids: the target's token of each of the head's.
        hidden_layers: the target's hidden states that it reads, by index.
        has_embeddings: whether it has embeddings of its own.
    """

    head: EagleHead
    token_ids: Tensor
    hidden_layers: tuple[int, ...]
    has_embeddings: bool

    def on(self, target: Runner) -> HeadDrafter:
        """The head as the target's drafter.

        Raises:
            SequoiaError: the head needs the target's embeddings, which do not fit.
        """
        if not self.has_embeddings:
            library: Any = target.model
            share_embeddings(self.head, library.get_input_embeddings(), target.name)
        model = EagleModel(self.head, self.head.config.source, self.token_ids)
        return HeadDrafter(model, target.keep_hidden(self.hidden_layers), target.vocabulary)


def load_head(
    config: HeadConfig, target_config: Any, dtype: torch.dtype, device: torch.device
) -> LoadedHead:
    """Read a head.

    Args:
        target_config: the target's configuration.

    Raises:
        SequoiaError: its files are missing, damaged or incomplete, or it is for another target.
    """
    text = target_config.get_text_config()
    if config.vocabulary != text.vocab_size:
        raise SequoiaError(
            f"{config.source}: is a head for a vocabulary of {config.vocabulary} tokens, but the "
            f"target has {text.vocab_size}; use the target that the head was trained for"
        )
    layers = config.layers_of(int(text.num_hidden_layers))
    tensors = read_weights(config)
    ids = token_ids(config, tensors, int(text.vocab_size))
    head = filled_head(config, tensors, len(layers), int(text.hidden_size), dtype, device)
    return LoadedHead(head, ids, layers, EMBEDDINGS in tensors)


def head_bytes(config: HeadConfig) -> int:
    """About the bytes of a head's weights: those of its files.

    Raises:
        SequoiaError: there are none.
    """
    return sum(path.stat().st_size for path in weight_files(config.source))
