"""llama.cpp as people use it, for the models of a pair: its server, and a plain forward pass.

Keeps one server for each way to speculate, as long as memory allows. Knows nothing of this
program's trees and caches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.library import (
    DRAFT,
    NO_DRAFT,
    NO_SPECULATION,
    LibraryGeneration,
    Speculation,
)
from sequoia_opt.engine.llama_cpp.library import bindings, features, logged, reason
from sequoia_opt.engine.llama_cpp.server_pool import REMEMBERING, ServerPool
from sequoia_opt.engine.llama_cpp.server_program import KINDS, program
from sequoia_opt.engine.llama_cpp.settings import CACHE_TYPES, FLASH_ATTENTION, Settings
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.sampling import Sampling

SLACK = 32  # tokens that a server wants room for beside a text


class ServerLibrary:
    """See `Library`.

    Args:
        files: GGUF files of target and draft, by role.
        model: llama.cpp's own of the target, which has to live as long.
        settings: how the models run.

    Attributes:
        pool: the servers.
    """

    reference = "llama.cpp's"

    def __init__(self, files: Mapping[str, str], model: Any, settings: Settings) -> None:
        self._files, self._model, self._settings = dict(files), model, settings
        self.pool = ServerPool(files, settings)

    def description(self) -> dict[str, str]:
        """See `Library`."""
        found = program()
        return {"server": found.name, "version": found.version, "build": found.system}

    def remark(self) -> str:
        """See `Library`."""
        found = program()
        names = {feature for feature in found.system.split() if feature.isupper()}
        lacking = [feature for feature in features().split() if feature.isupper()]
        lacking = [feature for feature in lacking if feature not in names]
        if not found.system or not lacking:
            return ""
        return (
            f"the server of {found.name} {found.version} was built without "
            f"{', '.join(lacking)}, which this program's llama.cpp has; a llama-server on the "
            "PATH that was built for this machine may be faster"
        )

    def obstacle(self, speculation: Speculation, tokens: int) -> str:
        """See `Library`."""
        if speculation.kind == DRAFT and "draft" not in self._files:
            return NO_DRAFT
        found = program()
        kind = KINDS.get(speculation.kind, speculation.kind)
        if kind not in found.speculations:
            return f"{found.name} {found.version} has no speculation {kind}"
        return ""

    def generate(
        self,
        prompt: list[int],
        new_tokens: int,
        sampling: Sampling,
        speculation: Speculation = NO_SPECULATION,
    ) -> LibraryGeneration:
        """See `Library`."""
        server = self.pool.server(speculation, len(prompt) + new_tokens + SLACK)
        generation = server.generate(prompt, new_tokens, sampling).generation
        if speculation.kind in REMEMBERING:
            self.pool.end(speculation)
        return generation

    def text_logits(self, text: list[int], keep: int) -> Tensor:
        """See `Library`: one batch in a context of its own."""
        lib, count = bindings(), len(text)
        options = lib.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = count
        options.n_threads = options.n_threads_batch = self._settings.threads
        options.flash_attn_type = FLASH_ATTENTION[self._settings.flash_attention]
        options.type_k = CACHE_TYPES[self._settings.cache_type_k]
        options.type_v = CACHE_TYPES[self._settings.cache_type_v]
        with logged() as lines:
            context = lib.llama_init_from_model(self._model, options)
            if not context:
                raise SequoiaError(
                    f"{self._files['target']}: llama.cpp cannot read {count} tokens at once "
                    f"({reason(lines, 'out of memory')}); compare with fewer --max-new-tokens"
                )
            batch = lib.llama_batch_init(count, 0, 1)
            try:
                for i, token in enumerate(text):
                    batch.token[i], batch.pos[i] = token, i
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    batch.logits[i] = i >= count - keep
                batch.n_tokens = count
                if lib.llama_decode(context, batch) != 0:
                    why = reason(lines, "it does not say why")
                    raise SequoiaError(
                        f"{self._files['target']}: llama.cpp's forward pass failed ({why})"
                    )
                size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
                logits = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
                rows = np.ctypeslib.as_array(logits, (min(keep, count), size))
                return torch.from_numpy(rows.astype(np.float64))
            finally:
                lib.llama_batch_free(batch)
                lib.llama_free(context)

    def close(self) -> None:
        """See `Library`."""
        self.pool.close()
