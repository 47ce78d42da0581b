"""Small tokenizers, of kinds that treat the beginning of a text differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sequoia_opt import demo

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Single characters, and words in the form of Llama 2's tokenizer.
PIECES = [*"▁abcdefghijklmnopqrstuvwxyz():\n!", "▁▁", "▁▁▁▁", "ab", "▁ab", "▁▁▁▁ab"]


def llama_2_like(ends: bool = False) -> Any:
    """A tokenizer that prepends a space to each text; its decoder removes the space.

    Args:
        ends: append </s> to every text.
    """
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *BYTES, *PIECES])}
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("a", "b"), ("▁", "ab"), ("▁▁▁▁", "ab")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def byte_level() -> Any:
    """The bundled tokenizer, with special tokens for the turns of a conversation."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(demo.FOLDER / "target" / "tokenizer.json")
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def metaspaced() -> Any:
    """A tokenizer of words with a leading space, which only the first word of a text loses."""
    words = [f"▁{word}" for word in ("one", "two", "three")]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def save_word_tokenizer(folder: Path, words: list[str]) -> None:
    """Save a tokenizer whose tokens are the words into a model's folder."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[0]).save_pretrained(folder)
