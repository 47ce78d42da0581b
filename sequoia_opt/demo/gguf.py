"""The bundled pair as GGUF files, which llama.cpp runs.

They are written on first use, in float32, into the user's cache. Knows both architectures' names
and layouts of weights in llama.cpp. Knows nothing of what reads the files.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray
from safetensors import safe_open

from sequoia_opt.demo.pair import DRAFT_NAME, FOLDERS, TARGET_NAME
from sequoia_opt.errors import SequoiaError, reason_of
from sequoia_opt.files.atomic import replaced

Weights = dict[str, NDArray[np.float32]]
Config = dict[str, Any]

LAYOUT = 1  # counts changes of what is written here, so that older files are not used
SOURCES = ("config.json", "tokenizer.json", "model.safetensors")
PRE_TOKENIZER = "gpt-2"  # splits text as the tokenizers library's ByteLevel does
# Names of a Llama block's tensors in llama.cpp, by their names in transformers.
LLAMA_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NEOX_BLOCK = {
    "input_layernorm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def gguf_of(name: str) -> Path:
    """The GGUF file of a bundled model, written if it is not there yet.

    It lies in $XDG_CACHE_HOME/sequoia-opt, or ~/.cache/sequoia-opt; where that cannot be written,
    in a temporary folder that is removed when this process ends. Its name has a hash of the model
    that it was made from, so that another model gets another file.

    Args:
        name: "target" or "draft", or the model's own name.

    Raises:
        SequoiaError: there is no such model, or no folder can be written.
    """
    model = {"target": TARGET_NAME, "draft": DRAFT_NAME}.get(name, name)
    if model not in FOLDERS:
        raise SequoiaError(f"{name}: is no bundled model; expected target or draft")
    folder = FOLDERS[model]
    file = f"{model}-{_source_hash(folder)}.gguf"
    try:
        return _written(folder, _cache_folder() / file)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        pass
    try:
        return _written(folder, _temporary_folder() / file)
    except OSError as error:
        raise SequoiaError(
            f"{file}: cannot be written ({reason_of(error)}); set XDG_CACHE_HOME to a folder that "
            "can"
        ) from None


def write_gguf(folder: Path, path: Path, name: str) -> None:
    """Write a Llama or GPT-NeoX model in the Hugging Face layout as a GGUF file in float32.

    Args:
        folder: with config.json, tokenizer.json (byte-level BPE) and model.safetensors.
        name: the model's name in the metadata.

    Raises:
        OSError: a file cannot be read or written.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = GGUFWriter(path, {"llama": "llama", "gpt_neox": "gptneox"}[config["model_type"]])
    try:
        writer.add_name(name)
        writer.add_file_type(LlamaFileType.ALL_F32)
        _add_sizes(writer, config)
        _add_tokenizer(writer, folder, config)
        tensors = _llama_tensors if config["model_type"] == "llama" else _neox_tensors
        for tensor, values in tensors(_weights(folder), config):
            contiguous = np.ascontiguousarray(values)
            writer.add_tensor(tensor, contiguous, raw_dtype=GGMLQuantizationType.F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: GGUFWriter, config: Config) -> None:
    """The metadata that both architectures have, and what only one has."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    rope = config["rope_parameters"]
    head_size = config.get("head_dim") or width // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_size * rope.get("partial_rotary_factor", 1.0)))
    if config["model_type"] == "llama":
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_parallel_residual(config["use_parallel_residual"])


def _add_tokenizer(writer: GGUFWriter, folder: Path, config: Config) -> None:
    """A byte-level BPE tokenizer: its tokens, their types, its merges, and the special ones."""
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    ids = document["model"]["vocab"]
    special = {token["id"] for token in document["added_tokens"] if token["special"]}
    types = [
        TokenType.CONTROL if token in special else TokenType.NORMAL
        for token in sorted(ids.values())
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _weights(folder: Path) -> Weights:
    """A model's tensors in float32, by their names in transformers."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def _llama_tensors(weights: Weights, config: Config) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """A Llama model's tensors by their names in llama.cpp, which ties embeddings by itself."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    yield "token_embd.weight", weights["model.embed_tokens.weight"]
    yield "output_norm.weight", weights["model.norm.weight"]
    if not config["tie_word_embeddings"]:
        yield "output.weight", weights["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        for theirs, name in LLAMA_BLOCK.items():
            values = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in heads:
                values = _interleaved(values, heads[name])
            yield f"blk.{layer}.{name}.weight", values


def _neox_tensors(weights: Weights, config: Config) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """A GPT-NeoX model's tensors by their names in llama.cpp, which ties nothing here."""
    embedding = weights["gpt_neox.embed_in.weight"]
    yield "token_embd.weight", embedding
    yield "output.weight", weights.get("embed_out.weight", embedding)
    for ending in ("weight", "bias"):
        yield f"output_norm.{ending}", weights[f"gpt_neox.final_layer_norm.{ending}"]
        for layer in range(config["num_hidden_layers"]):
            for theirs, name in NEOX_BLOCK.items():
                values = weights[f"gpt_neox.layers.{layer}.{theirs}.{ending}"]
                if name == "attn_qkv":
                    values = _by_kind(values, config["num_attention_heads"])
                yield f"blk.{layer}.{name}.{ending}", values


def _interleaved(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding for Llama.

    It turns rows 2i and 2i + 1 of a head together, transformers i and i + half of its rows.
    """
    halves = values.reshape(heads, 2, -1, values.shape[-1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _by_kind(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a fused projection: all queries, all keys, all values; in transformers by head."""
    by_head = values.reshape(heads, 3, -1, *values.shape[1:])
    return by_head.swapaxes(0, 1).reshape(values.shape)


def _written(folder: Path, path: Path) -> Path:
    """The path of a model's file, which is written first where there is none.

    Raises:
        OSError: it cannot be written.
    """
    if path.is_file():
        return path
    with replaced(path) as temporary:
        write_gguf(folder, temporary, path.stem.rpartition("-")[0])
    return path


@functools.cache
def _source_hash(folder: Path) -> str:
    """A hash of the files that a model's GGUF is made from, and of how it is made."""
    digest = hashlib.sha256(bytes([LAYOUT]))
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    """The user's folder for files that can be made again.

    Raises:
        RuntimeError: the user has no home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "sequoia-opt"


@functools.cache
def _temporary_folder() -> Path:
    """A folder of this process, which is removed when it ends."""
    folder = tempfile.mkdtemp(prefix="sequoia-opt-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
