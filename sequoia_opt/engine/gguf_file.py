"""What a GGUF file says of its model before any library opens it.

Knows the metadata's keys, how a model is split into files, and a fingerprint. Knows nothing of
what runs the model.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType, LlamaFileType

from sequoia_opt.engine.gguf_layout import (
    ARRAY,
    Field,
    Layout,
    Tensor,
    array_of,
    opened,
    read_layout,
)
from sequoia_opt.errors import SequoiaError

PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.DOTALL)
GUESSED = 1024  # added to a file type that the writer did not know
# Number types that go by another name in this program's files.
WORDS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}
PLAIN_TYPES = frozenset(GGMLQuantizationType[name.upper()] for name in WORDS)
# The fingerprint reads this many samples of the tensors' bytes, of this many bytes.
SAMPLES, SAMPLE_BYTES = 4096, 64


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file, and of the other files that its model is split into.

    Attributes:
        layouts: of each file, the one that was named first.
    """

    layouts: tuple[Layout, ...] = field(repr=False)

    @property
    def path(self) -> Path:
        """The file that was named."""
        return self.layouts[0].path

    @property
    def parts(self) -> tuple[Path, ...]:
        """All files of the model, `path` first."""
        return tuple(layout.path for layout in self.layouts)

    @property
    def fields(self) -> dict[str, Field]:
        """The metadata of the first file by key, see `value` and `array`."""
        return self.layouts[0].fields

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of all files, in their order."""
        return tuple(tensor for layout in self.layouts for tensor in layout.tensors)

    def value(self, key: str, default: Any = None) -> Any:
        """A number, truth value or text of the metadata; `default` where there is none."""
        entry = self.fields.get(key)
        return default if entry is None or entry.kind == ARRAY else entry.value

    def array(self, key: str) -> list[Any]:
        """An array of the metadata, read from the file; empty where there is none.

        Raises:
            SequoiaError: the file cannot be read any more.
        """
        entry = self.fields.get(key)
        return [] if entry is None or entry.kind != ARRAY else array_of(self.path, entry)

    def number(self, key: str) -> int:
        """A whole number of the metadata; 0 where there is none."""
        value = self.value(key)
        return max(0, value) if isinstance(value, int) else 0

    def text(self, key: str) -> str | None:
        """A text of the metadata; None where there is none."""
        value = self.value(key)
        return value if isinstance(value, str) else None

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp, like "llama"; empty where the file has none."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str | None:
        """The model's name as its maker wrote it."""
        return self.text("general.name")

    @property
    def kind(self) -> str:
        """What the file holds: "model", or "adapter", "mmproj", "imatrix" and the like."""
        return self.text("general.type") or "model"

    @cached_property
    def dtype(self) -> str:
        """The weights' number type as a word for files: "float32", "q8_0", "q4_k_m", …

        It is what the file says of itself, else the type that most weights have. Empty for a file
        without weights.
        """
        if not self.has_weights:
            return ""
        stated = self.value("general.file_type")
        if isinstance(stated, int) and stated % GUESSED in set(LlamaFileType):
            return _word(LlamaFileType(stated % GUESSED).name)
        numbers: Counter[int] = Counter()
        for tensor in self.tensors:
            numbers[tensor.type] += prod(tensor.shape)
        commonest = numbers.most_common(1)[0][0]
        known = commonest in set(GGMLQuantizationType)
        return _word(GGMLQuantizationType(commonest).name) if known else f"type{commonest}"

    @property
    def is_quantized(self) -> bool:
        """Whether some weights are not plain floating-point numbers."""
        return any(tensor.type not in PLAIN_TYPES for tensor in self.tensors)

    @property
    def has_weights(self) -> bool:
        """Whether there are tensors: a file may hold a vocabulary alone."""
        return bool(self.tensors)

    @cached_property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weights in the files; tensors of types that are unknown here count none."""
        return sum(tensor.size or 0 for tensor in self.tensors)

    @property
    def vocabulary(self) -> int:
        """The number of tokens; 0 where the file does not say."""
        tokens = self.fields.get("tokenizer.ggml.tokens")
        return tokens.count if tokens else self.number(f"{self.architecture}.vocab_size")

    @property
    def positions(self) -> int:
        """The context length that the model was made for; 0 where the file does not say."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def layers(self) -> int:
        """The number of blocks; 0 where the file does not say."""
        return self.number(f"{self.architecture}.block_count")

    @property
    def splits(self) -> int:
        """The number of files that the model is split into; 1 for a whole one."""
        return len(self.layouts)

    @property
    def tokenizer(self) -> str:
        """The tokenizer's kind in llama.cpp: "gpt2", "llama", …; empty where there is none."""
        return self.text("tokenizer.ggml.model") or ""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations; None where there is none."""
        return self.text("tokenizer.chat_template")


def is_gguf(name: str | Path) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return str(name).lower().endswith(".gguf")


def stem(name: str | Path) -> str:
    """A GGUF file's name without its folder, its ending and its number among a model's parts."""
    file = Path(name).name
    match = PART.fullmatch(file)
    return match["stem"] if match else file[: -len(".gguf")]


def read_header(path: str | Path) -> GgufHeader:
    """The header of a model's file, and of the other files that it is split into.

    Arrays are skipped, so that a vocabulary of a quarter of a million tokens takes a few tenths of
    a second; `GgufHeader.array` reads one.

    Raises:
        SequoiaError: a file is missing, no GGUF, cut short, damaged, or of a byte order or
            version that is not read here; or the file is not the first part of its model.
    """
    first = read_layout(Path(path))
    return GgufHeader((first, *map(read_layout, _other_parts(GgufHeader((first,))))))


def _other_parts(header: GgufHeader) -> list[Path]:
    """The files that a model is split into, but for the first.

    Raises:
        SequoiaError: the file is not the first part, has a name by which the others cannot be
            found, or one of them is missing.
    """
    path, count, number = header.path, header.number("split.count"), header.number("split.no")
    if count <= 1:
        return []
    match = PART.fullmatch(path.name)
    names = []
    if match and int(match["parts"]) == count:
        names = [f"{match['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]
    if number:
        first = names[0] if names else f"{stem(path)}-00001-of-{count:05d}.gguf"
        raise SequoiaError(
            f"{path}: is part {number + 1} of {count} of a split model; name the first, {first}"
        )
    if not names or path.name != names[0]:
        raise SequoiaError(
            f"{path}: is the first of {count} parts, whose names must end in -00001-of-"
            f"{count:05d}.gguf and so on; rename it"
        )
    others = [path.with_name(name) for name in names[1:]]
    if missing := [other.name for other in others if not other.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SequoiaError(
            f"{path}: is the first of {count} parts, but {missing[0]}{more} cannot be found; "
            "download all parts into one folder"
        )
    return others


def check_model(header: GgufHeader) -> None:
    """Refuse a GGUF file that holds no language model.

    Raises:
        SequoiaError: it has no architecture or no weights, or holds another kind of thing.
    """
    if header.kind != "model":
        raise SequoiaError(f"{header.path}: holds {header.kind!r}, no model; name the model's file")
    if not header.architecture:
        raise SequoiaError(
            f"{header.path}: general.architecture: found none, expected a name like llama; convert "
            "the model again with today's llama.cpp"
        )
    if not header.has_weights:
        raise SequoiaError(
            f"{header.path}: has a vocabulary but no weights; name a file with weights"
        )


def fingerprint(header: GgufHeader) -> str:
    """A fingerprint that tells models apart, with two parts as `names.same_fingerprint` wants.

    The first part is a hash of the headers: metadata, tokenizer, and the tensors' names, types
    and shapes. The second is a hash of the files' sizes and of samples of the tensors' bytes: a
    retrained model differs in every tensor. Takes some hundredths of a second for any size.

    Raises:
        SequoiaError: a file cannot be read.
    """
    headers, samples = hashlib.sha256(), hashlib.sha256()
    for layout in header.layouts:
        with opened(layout.path) as content:
            headers.update(content[: layout.data])
            samples.update(len(content).to_bytes(8, "little"))
            for start in _sample_offsets(layout, SAMPLES // header.splits):
                samples.update(content[start : start + SAMPLE_BYTES])
    return f"{headers.hexdigest()[:16]}-{samples.hexdigest()[:16]}"


def _sample_offsets(layout: Layout, count: int) -> list[int]:
    """About `count` offsets in a file: the middles of its tensors, and where they begin."""
    middles = [tensor.start + (tensor.size or 0) // 2 for tensor in layout.tensors]
    offsets = middles + [tensor.start for tensor in layout.tensors]
    return offsets[:: -(-len(offsets) // max(1, count)) or 1]


def file_type_of(word: str) -> LlamaFileType:
    """llama.cpp's file type of a word that `GgufHeader.dtype` gives.

    Raises:
        KeyError: there is none.
    """
    return {_word(kind.name): kind for kind in LlamaFileType}[word]


def _word(name: str) -> str:
    """A number type of llama.cpp or ggml as a word for files."""
    word = name.lower().removeprefix("all_").removeprefix("mostly_")
    return WORDS.get(word, word)
