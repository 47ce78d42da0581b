"""Tokenizers of the kinds that write a text's beginning each in a way of its own."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sequoia_opt import demo

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Single characters, and words as Llama 2's tokenizer has them.
PIECES = [*"▁abcdefghijklmnopqrstuvwxyz():\n!", "▁▁", "▁▁▁▁", "ab", "▁ab", "▁▁▁▁ab"]


def llama_2_like(ends: bool = False) -> Any:
    """A tokenizer that writes a beginning with a space, which its decoder strips again.

    Args:
        ends: it puts </s> behind every text.
    """
    vocabulary = {piece: place for place, piece in enumerate([*SPECIAL, *BYTES, *PIECES])}
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("a", "b"), ("▁", "ab"), ("▁▁▁▁", "ab")]
    built = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    built.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    built.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    built.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    built.post_processor = TemplateProcessing(
        single="<s> $A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def byte_level() -> Any:
    """The bundled tokenizer, with names for turns of a conversation."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(demo.FOLDER / "target" / "tokenizer.json")
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def metaspaced() -> Any:
    """Words that begin with a space, which only the first of a text loses."""
    words = [f"▁{word}" for word in ("one", "two", "three")]
    built = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    built.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=built)
