"""A GGUF file's tokenizer for transformers, which gives the tokens that llama.cpp gives.

Knows the tokenizer's metadata and how each family of models splits text before merging, as the
models' own tokenizer.json do. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sequoia_opt.engine.gguf_file import GgufHeader
from sequoia_opt.errors import SequoiaError, one_line

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of tokens
SPACE = "\u2581"  # what a sentencepiece vocabulary writes for a space
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITALS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LINES_OR_SLASHES = _LINES.replace(r"[\r\n]*", r"[\r\n/]*", 1)
GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
STARCODER = (r"\p{N}", *GPT2)
LLAMA3 = (rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_LINES}",)
QWEN2 = (rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_LINES}",)
QWEN35 = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
TEKKEN = (rf"{_CAPITALS}*{_SMALL}+|{_CAPITALS}+{_SMALL}*|\p{{N}}|{_LINES_OR_SLASHES}",)
GPT4O = (
    rf"{_CAPITALS}*{_SMALL}+{_ENGLISH}?|{_CAPITALS}+{_SMALL}*{_ENGLISH}?|\p{{N}}{{1,3}}"
    rf"|{_LINES_OR_SLASHES}",
)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# The expressions that split a text in turn, by `tokenizer.ggml.pre`.
SPLITS: dict[str, Sequence[str]] = {
    name: splits
    for names, splits in (
        ("gpt-2 phi-2 gigachat mellum exaone4 olmo jais trillion granite-docling mpt", GPT2),
        ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", STARCODER),
        ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2", LLAMA3),
        ("dbrx smaug-bpe chatglm-bpe glm4 glm5", LLAMA3),
        ("qwen2 deepseek-r1-qwen kormo megrez hunyuan stablelm2 solar-open grok-2", QWEN2),
        ("qwen35", QWEN35),
        ("tekken", TEKKEN),
        ("gpt-4o llama4 kanana2 minimax-m2", GPT4O),
        ("deepseek-coder", DEEPSEEK_CODER),
        ("deepseek-v3 hunyuan-dense", DEEPSEEK3),
    )
    for name in names.split()
}
# A word that is a token needs no merges in these, and the first ones begin a text with a token.
BEGINNING = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"}
BEGINNING |= {"lfm2", "tekken"}
WHOLE_WORDS = BEGINNING | {"glm4", "glm5"}
# The special tokens of a sentencepiece vocabulary whose file does not name them.
DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}
# Tokens with these names end a text, besides those that the metadata names; llama.cpp takes them
# for special ones whatever the metadata says.
ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>",
    "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<turn|>", "<|tool_response>", "[e~[",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
    "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
}  # fmt: skip


def tokenizer_of(header: GgufHeader) -> PreTrainedTokenizerFast | None:
    """A GGUF file's tokenizer, with its chat template; None where the file has none.

    Raises:
        SequoiaError: it is of a kind that is not known here, or damaged.
    """
    if header.tokenizer in ("", "none", "no_vocab"):
        return None
    tokens = header.array("tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise SequoiaError(
            f"{header.path}: its tokenizer has the token {twice!r} twice, which llama.cpp alone "
            "reads; use --engine llama.cpp"
        )
    try:
        tokenizer = _byte_level(header, tokens) if header.tokenizer == BYTE_LEVEL else None
        if header.tokenizer == SENTENCEPIECE:
            tokenizer = _sentencepiece(header, tokens)
        if tokenizer is None:
            raise SequoiaError(
                f"{header.path}: its tokenizer is of the kind {header.tokenizer!r}, which is read "
                "by llama.cpp alone; use --engine llama.cpp"
            )
        return _finished(header, tokenizer, tokens)
    except SequoiaError:
        raise
    except Exception as error:  # of many kinds: merges of what is no token, and the library's own
        raise SequoiaError(
            f"{header.path}: its tokenizer cannot be used ({one_line(error)[:160]}); download the "
            "file again"
        ) from None


def end_tokens_of(header: GgufHeader) -> list[int]:
    """The tokens that end a text, as llama.cpp has them."""
    tokens = header.array("tokenizer.ggml.tokens")
    # Where a call ends a text, <|end|> only ends one of its messages.
    names = ENDS - ({"<|end|>"} if {"<|return|>", "<|call|>"} <= set(tokens) else set())
    ids = {i for i, token in enumerate(tokens) if token in names}
    ids |= {_special_id(header, name) for name in ("eos", "eot", "eom")}
    return sorted(i for i in ids if i in range(len(tokens)))


def _byte_level(header: GgufHeader, tokens: list[str]) -> Tokenizer:
    """BPE on bytes, as GPT-2 introduced it, with a family's own way to split text."""
    family = header.text("tokenizer.ggml.pre") or ""
    if family not in SPLITS:
        raise SequoiaError(
            f"{header.path}: tokenizer.ggml.pre: found {family!r}, a way to split text that is "
            "known to llama.cpp alone; use --engine llama.cpp"
        )
    merges = [_pair(merge) for merge in header.array("tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=family in WHOLE_WORDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated") for split in SPLITS[family]]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(header: GgufHeader, tokens: list[str]) -> Tokenizer:
    """Sentencepiece's BPE: pieces with scores, which say what is merged first, and bytes."""
    scores = header.array("tokenizer.ggml.scores")
    types = header.array("tokenizer.ggml.token_type")
    if not len(scores) == len(types) == len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(scores)} scores and {len(types)} types")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = next(
        (token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None
    )
    model = BPE(
        vocabulary,
        _merges(vocabulary, scores, types),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=BYTE in types,
    )
    tokenizer = Tokenizer(model)
    spaced = header.value("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        ([normalizers.Prepend(SPACE)] if spaced else []) + [normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if spaced else [])
    )
    return tokenizer


def _merges(
    vocabulary: dict[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, the piece with the highest score first."""
    pairs = []
    for piece, i in vocabulary.items():
        if types[i] in (UNKNOWN, CONTROL, BYTE):
            continue
        for cut in range(1, len(piece)):
            first, second = piece[:cut], piece[cut:]
            if first in vocabulary and second in vocabulary:
                pairs.append((-scores[i], vocabulary[first], vocabulary[second], first, second))
    return [(first, second) for *_, first, second in sorted(pairs)]


def _finished(
    header: GgufHeader, tokenizer: Tokenizer, tokens: list[str]
) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens, beginning and chat template."""
    types = header.array("tokenizer.ggml.token_type")
    phi3 = any(name in (header.name or "").lower() for name in ("phi-3", "phi3"))
    for token, kind in zip(tokens, types, strict=False):
        if kind in (CONTROL, UNKNOWN) or token in ENDS:
            takes_space = phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")
            added = AddedToken(token, normalized=False, special=True, rstrip=takes_space)
            tokenizer.add_special_tokens([added])
        elif kind == USER_DEFINED and token:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    names: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        i = _special_id(header, key)
        # A usual token that goes by such a name would be left out of every text.
        if i in range(len(tokens)) and (types[i : i + 1] != [NORMAL] or tokens[i] in ENDS):
            names[f"{name}_token"] = tokens[i]
    family, first = header.text("tokenizer.ggml.pre"), _special_id(header, "bos")
    by_default = header.tokenizer == SENTENCEPIECE or family in BEGINNING
    is_added = header.value("tokenizer.ggml.add_bos_token", by_default)
    if is_added and first in range(len(tokens)):
        token = tokens[first]
        tokenizer.post_processor = TemplateProcessing(
            f"{token} $A", f"{token} $A $B", [(token, first)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=header.chat_template,
        model_max_length=header.positions or None,
        **names,
    )


def _special_id(header: GgufHeader, name: str) -> int:
    """A special token's number; -1 where the file has none."""
    default = DEFAULT_IDS.get(name, -1) if header.tokenizer == SENTENCEPIECE else -1
    found = header.value(f"tokenizer.ggml.{name}_token_id", default)
    return found if isinstance(found, int) else -1


def _pair(merge: str) -> tuple[str, str]:
    """The two pieces of a merge; a space separates them, which is not the first character."""
    cut = merge.index(" ", 1)
    return merge[:cut], merge[cut + 1 :]
