"""A GGUF model, its caches and its forward passes.

Knows how llama.cpp loads a model and fills a cache with a text. Knows nothing of drafting or
verifying.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.gguf_file import GgufHeader
from sequoia_opt.engine.llama_cpp.amx import kernels_crash
from sequoia_opt.engine.llama_cpp.cache import CHUNK, Batch, CacheSize, LlamaCache, Weights
from sequoia_opt.engine.llama_cpp.growing_passes import LlamaGrowingPasses
from sequoia_opt.engine.llama_cpp.library import bindings, has_gpu, logged, reason
from sequoia_opt.engine.llama_cpp.passes import LlamaLevelPasses, LlamaTreePass, chain_pass
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import TokenTree


class LlamaModel:
    """A model in a GGUF file; see `Model`.

    Attributes:
        model, vocab: llama.cpp's own.
        settings: how it runs.
    """

    streamed_layers = 0
    moved_bytes = 0
    generation_config = None
    compiled = False
    ends = ""
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, path: Path, header: GgufHeader, settings: Settings) -> None:
        """Load it.

        Raises:
            SequoiaError: llama.cpp cannot load it, or it cannot take tokens back.
        """
        lib, name = bindings(), str(path)
        if settings.gpu_layers and not has_gpu():
            raise SequoiaError(
                f"gpu-layers: found {settings.gpu_layers}, but this llama.cpp was built without a "
                "GPU; drop --gpu-layers, or install a build with one"
            )
        options = lib.llama_model_default_params()
        options.n_gpu_layers = settings.gpu_layers
        # Kernels for AMX have weights in a layout of their own; without such layouts none is used.
        options.use_extra_bufts = not (header.is_quantized and kernels_crash())
        with logged() as lines:
            self.model = lib.llama_model_load_from_file(str(path).encode(), options)
            if not self.model:
                why = reason(lines, "it does not say why")
                raise SequoiaError(f"{name}: llama.cpp cannot load it ({why})")
        self._end = weakref.finalize(self, lib.llama_model_free, self.model)
        if lib.llama_model_has_encoder(self.model):
            raise SequoiaError(f"{name}: has an encoder; expected a model that continues text")
        if lib.llama_model_is_recurrent(self.model) or lib.llama_model_is_hybrid(self.model):
            raise SequoiaError(
                f"{name}: has recurrent layers, which cannot take rejected tokens back; expected a "
                "model of attention layers"
            )
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.name, self.settings = name, settings
        self.vocabulary = int(lib.llama_vocab_n_tokens(self.vocab))
        self.positions = int(lib.llama_model_n_ctx_train(self.model))
        self.parameters = int(lib.llama_model_n_params(self.model))
        self.number_type = header.dtype
        if settings.context_size and settings.context_size < self.positions:
            self.positions, self.ends = settings.context_size, "--context-size ends there"
        self._idle: LlamaCache | None = None
        self._beside: weakref.WeakKeyDictionary[LlamaCache, dict[int, LlamaCache]] = (
            weakref.WeakKeyDictionary()
        )

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> LlamaCache:
        """See `Model`."""
        cache, self._idle = self._idle, None
        if cache is not None:
            if cache.batch == batch and cache.capacity >= capacity and cache.branches >= branches:
                return cache
            cache.close()  # its memory is free before the new one takes some
        return self._new_cache(max(capacity, self.settings.context_size), batch, branches)

    def _new_cache(self, capacity: int, batch: int, branches: int = 1) -> LlamaCache:
        weights = Weights(self.model, self.name, self.vocabulary, self.settings)
        return LlamaCache(weights, CacheSize(capacity, batch, branches))

    def release(self, cache: LlamaCache) -> None:
        """See `Model`."""
        for beside in self._beside.pop(cache, {}).values():
            beside.close()
        if self._idle is not None:
            self._idle.close()
        self._idle = cache

    def prefill(
        self, cache: LlamaCache, tokens: Tensor, pad: Tensor | None = None, held: int = 0
    ) -> Tensor:
        """See `Model`."""
        *_, (_, logits) = self.read(cache, tokens, pad, held=held)
        return logits[:, -1]

    def read(
        self,
        cache: LlamaCache,
        tokens: Tensor,
        pad: Tensor | None = None,
        keep: int = 1,
        chunk: int | None = None,
        held: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """See `Model`."""
        most = max(1, CHUNK // cache.batch)
        chunk = min(chunk or most, most)
        for start in range(0, tokens.shape[1], chunk):
            part = tokens[:, start : start + chunk]
            yield start, self.extend(cache, part, held + start, pad, keep)

    def extend(
        self,
        cache: LlamaCache,
        tokens: Tensor,
        length: int,
        pad: Tensor | None = None,
        keep: int = 1,
    ) -> Tensor:
        """See `Model`."""
        texts, count = tokens.shape
        if length == 0:
            cache.clear()
        elif texts == 1:
            cache.cut(length)
        own = range(cache.sharers)  # of one text
        padding = [0] * texts if pad is None else pad.tolist()
        first_wanted = count - (keep or count)
        # Padding is not fed: llama.cpp has a position for each token of each text.
        fed = [
            (text, i) for text in range(texts) for i in range(max(0, padding[text] - length), count)
        ]
        wanted = [i >= first_wanted for _, i in fed]
        shape = texts, keep or count, self.vocabulary
        if not fed:
            return torch.zeros(shape)
        batch = Batch([own if texts == 1 else [text] for text, _ in fed], wanted)
        numbers = np.array(fed)
        batch.tokens[:] = tokens.numpy()[numbers[:, 0], numbers[:, 1]]
        batch.positions[:] = length + numbers[:, 1] - np.array(padding)[numbers[:, 0]]
        for text in range(texts) if texts > 1 and length else ():
            cache.cut_text(text, max(0, length - padding[text]))
        rows = cache.forward(batch).tensor
        cache.length = length + count
        if batch.rows == shape[0] * shape[1]:
            return rows.clone().view(shape)
        logits = torch.zeros(shape)  # of padding, logits are never read
        places = numbers[wanted]
        logits[places[:, 0], places[:, 1] - first_wanted] = rows
        return logits

    def tree_pass(self, tree: TokenTree) -> LlamaTreePass:
        """See `Model`."""
        return LlamaTreePass(tree)

    def level_passes(self, tree: TokenTree) -> LlamaLevelPasses:
        """See `Model`."""
        return LlamaLevelPasses(tree)

    def growing_passes(
        self, nodes: int, branches: int, likeliest: bool = False
    ) -> LlamaGrowingPasses:
        """See `Model`."""
        return LlamaGrowingPasses(nodes, branches)

    def pass_to_time(
        self, cache: LlamaCache, context: int, count: int, bound: int
    ) -> Callable[[], object]:
        """See `Model`.

        A pass reads as many cells as the cache has tokens, so each context length has a cache of
        its own, which lives as long as `cache`.
        """
        beside = self._beside.setdefault(cache, {})
        if context not in beside:
            own = self._new_cache(context + cache.capacity - cache.length, cache.batch)
            random = torch.Generator().manual_seed(0)
            shape = cache.batch, context
            self.prefill(own, torch.randint(self.vocabulary, shape, generator=random))
            beside[context] = own
        return chain_pass(beside[context], context, count)

    def compile(self, batch: int = 1) -> None:
        """See `Model`; llama.cpp was compiled when it was built.

        Raises:
            SequoiaError: always.
        """
        raise SequoiaError(
            f"{self.name}: llama.cpp's forward passes are compiled already; drop --compile"
        )

    def check_logits_fit(self, count: int, batch: int) -> None:
        """See `Model`."""
        if count * batch > CHUNK:
            raise SequoiaError(
                f"{self.name}: {batch} x {count} tokens are more than the {CHUNK} of a forward "
                "pass of llama.cpp here"
            )
