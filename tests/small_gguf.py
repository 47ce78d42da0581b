"""Small GGUF files, written by the gguf package, which this program's reader does not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize

TOKENS = ["<s>", "</s>", "a", "b", "é", "ab"]
ROWS, WIDTH, LAYERS = 6, 32, 2


def write_gguf(
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    file_type: LlamaFileType | None = LlamaFileType.ALL_F32,
    seed: int = 0,
    weights: bool = True,
    arrays: Mapping[str, Sequence[int]] | None = None,
    numbers: Mapping[str, int] | None = None,
    **options: Any,
) -> Path:
    """A file with a llama's metadata and a few tensors, which no engine could run.

    Args:
        kind: of the matrices' numbers; vectors have float32.
        arrays, numbers: more metadata, by key.
        options: of the writer.
    """
    writer = GGUFWriter(path, "llama", **options)
    writer.add_name("Tiny")
    writer.add_context_length(64)
    writer.add_block_count(LAYERS)
    writer.add_vocab_size(len(TOKENS) + 2)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_chat_template("{{ messages[0].content }}")
    writer.add_array("tiny.nested", [[1, 2], [3]])
    for key, values in (arrays or {}).items():
        writer.add_array(key, values)
    for key, value in (numbers or {}).items():
        writer.add_uint32(key, value)
    writer.add_bool("tiny.flag", True)
    writer.add_float32("tiny.eps", 0.25)
    if weights:
        random = np.random.default_rng(seed)
        for layer in range(LAYERS):
            matrix = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.up.weight", quantize(matrix, kind), raw_dtype=kind)
        writer.add_tensor("norm.weight", random.normal(size=5).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_vocabulary(
    path: Path,
    kind: str,
    tokens: Sequence[str],
    types: Sequence[int],
    merges: Sequence[str] = (),
    scores: Sequence[float] = (),
    **tokenizer: Any,
) -> Path:
    """A file with a tokenizer and no weights.

    Args:
        kind: "gpt2" for bytes and merges, "llama" for pieces and scores.
        tokenizer: more of its metadata: `pre`, `add_bos_token`, `eos_token_id`, …
    """
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    if scores:
        writer.add_token_scores(list(scores))
    if merges:
        writer.add_token_merges(list(merges))
    for name, value in tokenizer.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add("tokenizer.chat_template" if name == "template" else f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama(path: Path, layers: int = LAYERS) -> Path:
    """A random Llama with a width of 32 and the tokens of `write_gguf`."""
    writer, random = GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(64)
    writer.add_block_count(layers)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        names = ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        shapes |= {f"blk.{layer}.{name}": (WIDTH, WIDTH) for name in names}
        shapes |= {f"blk.{layer}.{name}": (WIDTH // 2, WIDTH) for name in ("attn_k", "attn_v")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
