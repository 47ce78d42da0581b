"""Writes the draft as a GGUF file: `python export.py TARGET.gguf DRAFT.pt -o draft.gguf`.

The tokenizer and the chat template are the target's own entries. Knows llama.cpp's names. Knows
nothing of training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from sequoia_opt.demo.gguf import LLAMA_BLOCK
from sequoia_opt.engine.gguf_file import GgufHeader, file_type_of, read_header

NAME = "SmolLM2-135M-Instruct draft"
TYPES = {kind.name.lower(): kind for kind in GGMLQuantizationType}
TYPES["float32"] = TYPES["f32"]


def export(
    target: Path, sizes: dict[str, Any], weights: dict[str, np.ndarray], output: Path,
    embedding: str = "q5_0", matrices: str = "q8_0",
) -> None:  # fmt: skip
    """Write a draft in llama.cpp's number types, with the target's tokenizer.

    Args:
        sizes: fields of transformers' LlamaConfig.
        weights: of transformers' LlamaModel, by their names there.
        embedding, matrices: number types of the embedding, which is the head too, and of the
            layers' matrices.
    """
    writer = GGUFWriter(output, "llama")
    try:
        writer.add_name(NAME)
        writer.add_license("apache-2.0")
        writer.add_file_type(file_type_of(embedding))
        _add_sizes(writer, sizes)
        _add_tokenizer(writer, read_header(target))
        for name, values in _tensors(weights, sizes).items():
            kind = embedding if name == "token_embd.weight" else matrices
            kind = TYPES[kind if values.ndim == 2 else "f32"]
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: GGUFWriter, sizes: dict[str, Any]) -> None:
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_vocab_size(sizes["vocab_size"])
    writer.add_rope_freq_base(sizes["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])


def _add_tokenizer(writer: GGUFWriter, header: GgufHeader) -> None:
    """The target's tokenizer, entry by entry."""
    for key in header.fields:
        if not key.startswith("tokenizer."):
            continue
        value = header.value(key)
        if value is None:
            writer.add_array(key, header.array(key))
        else:
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
            add[type(value)](key, value)


def _tensors(weights: dict[str, np.ndarray], sizes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors by their names in llama.cpp."""
    heads = {"attn_q": sizes["num_attention_heads"], "attn_k": sizes["num_key_value_heads"]}
    tensors = {
        "token_embd.weight": weights["embed_tokens.weight"],
        "output_norm.weight": weights["norm.weight"],
    }
    for layer in range(sizes["num_hidden_layers"]):
        for theirs, name in LLAMA_BLOCK.items():
            values = weights[f"layers.{layer}.{theirs}.weight"]
            if name in heads:  # llama.cpp turns rows 2i and 2i + 1 of a head together
                halves = values.reshape(heads[name], 2, -1, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
            tensors[f"blk.{layer}.{name}.weight"] = np.ascontiguousarray(values)
    return tensors


def main() -> None:
    """Write a trained draft."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path, help="draft.pt of train.py")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--embedding", default="q5_0", help="number type of the embedding")
    parser.add_argument("--matrices", default="q8_0", help="number type of the layers' matrices")
    options = parser.parse_args()
    trained = torch.load(options.draft)
    weights = {name: values.numpy() for name, values in trained["weights"].items()}
    export(
        options.target, trained["sizes"], weights, options.output,
        options.embedding, options.matrices,
    )  # fmt: skip
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
