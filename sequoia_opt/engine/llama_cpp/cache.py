"""Keys and values of texts in llama.cpp's memory, and the forward passes over them.

A cache is one llama.cpp context. Which cells a token sees is decided by sequences: a cell carries
the sequences that it belongs to, and a token sees the earlier cells of its own first sequence. A
text of its own is sequence 0. Before a tree is scored, the text is shared among as many sequences
as the tree has leaves, which copies nothing: only the cells' marks change. Knows nothing of trees.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sequoia_opt.engine.llama_cpp.library import LOG, bindings, logged, most_sequences, reason
from sequoia_opt.engine.llama_cpp.settings import CACHE_TYPES, FLASH_ATTENTION, Settings
from sequoia_opt.errors import SequoiaError

CELLS = 256  # llama.cpp's caches have a multiple of this, and its passes read one
CHUNK = 512  # most tokens of a forward pass
KEPT_VIEWS = 64  # views of the logits, one for each number of rows
NO_SLOT = 1  # what llama_decode returns where the cache is full
ITEM = 4  # bytes of llama.cpp's whole numbers
ANY, END = -1, -1  # every sequence; to the last position


class Batch:
    """The tokens of a forward pass: prepared once, with new tokens and positions in each step.

    Attributes:
        size: number of tokens.
        tokens, positions: [size], int32, to be filled before each pass; see `fill`.
        rows: how many of the tokens have logits.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], wanted: Sequence[bool]) -> None:
        """Prepare it.

        Args:
            sequences: of each token, at least one; the first is the one whose cells it sees.
            wanted: whether each token's logits are wanted.
        """
        count = self.size = len(sequences)
        self.rows = sum(wanted)
        counts = [len(numbers) for numbers in sequences]
        flat = [number for numbers in sequences for number in numbers]
        # One piece of memory: to ask numpy for an address takes about a microsecond. It begins
        # with the pointers to each token's sequences, which take two elements each.
        tokens, positions, lengths, first = (part * count for part in (2, 3, 4, 5))
        flags = first + len(flat)
        memory = np.zeros(flags + count // ITEM + 1, np.int32)
        self.tokens, self.positions = memory[tokens:positions], memory[positions:lengths]
        # A few numbers are written faster into these than into numpy's arrays of the same memory.
        kind: Any = ctypes.c_int32 * count
        self._tokens = kind.from_buffer(memory, ITEM * tokens)
        self._positions = kind.from_buffer(memory, ITEM * positions)
        memory[lengths:first] = counts
        memory[first:flags] = flat
        memory[flags:].view(np.int8)[:count] = wanted
        address = memory.ctypes.data
        starts = accumulate(
            [ITEM * length for length in counts[:-1]], initial=address + ITEM * first
        )
        memory[:tokens].view(np.uintp)[:] = list(starts)
        self.structure = bindings().llama_batch(n_tokens=count)
        fields = np.frombuffer(self.structure, np.uintp)
        fields[_pointer_fields()] = [
            address + ITEM * start for start in (tokens, positions, lengths, 0, flags)
        ]
        self._kept = memory  # the struct points to it

    def fill(self, tokens: list[int], positions: list[int]) -> None:
        """Put in all tokens and their positions."""
        self._tokens[:] = tokens
        self._positions[:] = positions


@cache
def _pointer_fields() -> list[int]:
    """Where llama_batch has its pointers, in words."""
    kind = bindings().llama_batch
    names = "token", "pos", "n_seq_id", "seq_id", "logits"
    return [getattr(kind, name).offset // ctypes.sizeof(ctypes.c_void_p) for name in names]


class Logits(NamedTuple):
    """What a forward pass computes, where the library keeps it: the next pass overwrites it.

    Attributes:
        tensor: [rows, vocabulary], float32.
        rows: the same as an array for each row.
    """

    tensor: Tensor
    rows: list[NDArray[np.float32]]


class Weights(NamedTuple):
    """A model in memory.

    Attributes:
        model: llama.cpp's.
        name: for messages.
        vocabulary: number of logits.
        settings: how it runs.
    """

    model: Any
    name: str
    vocabulary: int
    settings: Settings


class CacheSize(NamedTuple):
    """Tokens of each text, number of texts, and leaves of the trees that are decoded."""

    capacity: int
    batch: int = 1
    branches: int = 1


class LlamaCache:
    """One llama.cpp context; see `Cache`.

    Attributes:
        batch: texts that it holds.
        capacity: tokens of each text.
        branches: the most leaves of a tree that is decoded in it.
        length: tokens of each text that are in it; of several texts, of the longest.
        sharers: how many sequences hold the text, where there is one.
    """

    def __init__(self, weights: Weights, size: CacheSize) -> None:
        """Allocate it.

        Raises:
            SequoiaError: it does not fit into memory, or has more texts than sequences.
        """
        lib, settings, name = bindings(), weights.settings, weights.name
        batch = size.batch
        capacity = size.capacity + -size.capacity % CELLS
        sequences = max(batch, size.branches)
        if sequences > most_sequences():
            texts = "texts" if batch > 1 else "leaves of a tree"
            raise SequoiaError(
                f"{name}: found {sequences} {texts}, but llama.cpp tells {most_sequences()} apart"
            )
        self.batch, self.capacity, self.branches = batch, capacity, size.branches
        self.length, self.sharers = 0, 1
        self._vocabulary, self._name = weights.vocabulary, name
        options = lib.llama_context_default_params()
        options.n_ctx = capacity * batch
        options.n_batch = options.n_ubatch = CHUNK
        # No more than are needed: each forward pass compares all of them with one another.
        options.n_seq_max = sequences
        # One text's sequences share cells; several texts do not, and see only their own.
        options.kv_unified = batch == 1
        options.n_threads = options.n_threads_batch = settings.threads
        options.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
        options.type_k = CACHE_TYPES[settings.cache_type_k]
        options.type_v = CACHE_TYPES[settings.cache_type_v]
        options.offload_kqv = True
        options.no_perf = True
        options.swa_full = True  # a window that is overwritten could not give tokens back
        with logged() as lines:
            self._context = lib.llama_init_from_model(weights.model, options)
            if not self._context:
                raise SequoiaError(
                    f"{name}: llama.cpp cannot make a cache of {batch} x {capacity} tokens "
                    f"({reason(lines, 'out of memory')})"
                )
        self._most = int(lib.llama_n_batch(self._context))  # it aborts above this
        self._end = weakref.finalize(self, lib.llama_free, self._context)
        self._memory = lib.llama_get_memory(self._context)
        self._remove, self._copy = lib.llama_memory_seq_rm, lib.llama_memory_seq_cp
        self._decode, self._get_logits = lib.llama_decode, lib._lib.llama_get_logits
        self._get_logits.restype, self._get_logits.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        self._views: dict[tuple[int, int], Logits] = {}

    def close(self) -> None:
        """Free its memory."""
        self._views.clear()
        self._end()

    def forward(self, batch: Batch) -> Logits:
        """Run a forward pass over a batch whose tokens and positions are filled.

        Raises:
            SequoiaError: the cache is full, or the library failed.
        """
        code = NO_SLOT
        if batch.size <= self._most:
            code = self._decode(self._context, batch.structure)
        if code != 0:
            raise self._failure(code, batch)
        return self._logits(batch.rows)

    def cut(self, length: int) -> None:
        """Drop all tokens of the text from a position on."""
        if self.length > length:
            self._remove(self._memory, ANY, length, END)
            self.length = length

    def cut_text(self, number: int, length: int) -> None:
        """Drop one of several texts' tokens from a position on."""
        self._remove(self._memory, number, length, END)

    def clear(self) -> None:
        """Drop everything."""
        bindings().llama_memory_clear(self._memory, False)
        self.length, self.sharers = 0, 1

    def share(self, sequences: int) -> None:
        """Let at least this many sequences hold the text."""
        for number in range(self.sharers, sequences):
            self._copy(self._memory, 0, number, 0, END)
        self.sharers = max(self.sharers, sequences)

    def keep(self, sequence: int, others: Sequence[int], start: int, end: int) -> None:
        """Let the other sequences hold what one has at positions `start` to `end`, and no more."""
        for other in others:
            self._remove(self._memory, other, start, end)
            self._copy(self._memory, sequence, other, start, end)

    def _logits(self, rows: int) -> Logits:
        """The logits of the last forward pass."""
        address = self._get_logits(self._context)
        key = address, rows
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= KEPT_VIEWS:
                self._views.clear()
            floats = (ctypes.c_float * (rows * self._vocabulary)).from_address(address)
            array = np.ctypeslib.as_array(floats).reshape(rows, self._vocabulary)
            view = self._views[key] = Logits(torch.from_numpy(array), list(array))
        return view

    def _failure(self, code: int, batch: Batch) -> SequoiaError:
        """Why llama_decode failed."""
        if code == NO_SLOT:
            return SequoiaError(
                f"{self._name}: its cache of {self.capacity} tokens has no room for {batch.size} "
                "more; raise --context-size, or shorten the prompt"
            )
        why = reason(LOG.lines, f"code {code}")
        return SequoiaError(f"{self._name}: llama.cpp's forward pass failed ({why})")
