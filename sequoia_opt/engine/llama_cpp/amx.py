"""Whether the kernels for AMX work in the build of llama.cpp that is there.

GGML multiplies by quantized matrices with AMX where a processor has it. Some compilers, GCC 12
among them, drop the stores that set up the tiles, and the process dies of a signal in its first
pass over two tokens (llama.cpp's issue 20824 and pull request 26954). No function tells such a
build from a working one, so a child process tries. Knows nothing of the models that will run.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from sequoia_opt.engine.llama_cpp.library import features

CHILD = Path(__file__).with_name("amx_child.py")
SECONDS = 60.0  # until a child that does not end is taken for a working one
WIDTH = 256  # a multiple of every kernel's tiles
VOCABULARY = 32


@cache
def kernels_crash() -> bool:
    """Whether a pass over a quantized model would end this process."""
    if "AMX_INT8" not in features().split():
        return False
    with TemporaryDirectory() as folder:
        model = smallest_model(Path(folder) / "model.gguf")
        command = [sys.executable, "-P", str(CHILD), str(model)]
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            ).returncode
        except (OSError, subprocess.TimeoutExpired):
            return False
    return code < 0


def smallest_model(path: Path) -> Path:
    """A Llama of one layer, whose matrices have 8 bits to a weight and are all zero."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("token_embd.weight", np.ones((VOCABULARY, WIDTH), dtype=np.float32))
    eight_bits = GGMLQuantizationType.Q8_0
    matrix = quantize(np.zeros((WIDTH, WIDTH), dtype=np.float32), eight_bits)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", matrix, raw_dtype=eight_bits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
