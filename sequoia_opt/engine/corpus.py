"""The corpus of a lookup: texts that it looks into besides the one that is decoded.

Knows files and tokens. Knows nothing of how a lookup guesses.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sequoia_opt.engine.drafters.lookup_index import CorpusIndex
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.reading import MOST_BYTES, read_text

BEGINNING = 2**16  # bytes of a long file that tell whether it is text
PART = 2**17  # characters that are tokenized at once, and up to as many more to a line's end


@dataclass(frozen=True)
class Corpus:
    """Texts from a file or from the files of a folder.

    Attributes:
        name: of the file or folder.
        fingerprint: of the texts and their order, 16 hexadecimal digits.
    """

    name: str
    fingerprint: str
    texts: list[str]

    @property
    def document(self) -> dict[str, str]:
        """What files say of it."""
        return {"name": self.name, "fingerprint": self.fingerprint}


def read_corpus(path: str | Path) -> Corpus:
    """Read a text file, or all text files below a folder.

    In a folder, hidden files and folders, files that are no text, and what is no file are left out.

    Raises:
        SequoiaError: the file is missing or no text, or the folder has no text file, or one that is
            too long.
    """
    path = Path(path)
    texts = list(_texts_below(path)) if path.is_dir() else [_text(path)]
    if not any(texts):
        raise SequoiaError(
            f"corpus: {path}: found no text, expected a UTF-8 text file or a folder "
            "of such; name another"
        )
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return Corpus(path.resolve().name, digest.hexdigest()[:16], texts)


def indexed(corpus: Corpus, pair: Pair) -> CorpusIndex:
    """The index of a corpus, in the pair's tokens.

    Raises:
        SequoiaError: the pair has no tokenizer.
    """
    vocabulary = pair.target.vocabulary
    return CorpusIndex(
        [token for token in pair.encode(part, beginning=False) if token < vocabulary]
        for text in corpus.texts
        for part in _parts(text)
    )


def _text(path: Path) -> str:
    """A file's text.

    Raises:
        SequoiaError: the file is missing or no text.
    """
    text = read_text(path)
    if "\0" in text:
        raise SequoiaError(f"corpus: {path}: found zero bytes, expected UTF-8 text; name another")
    return text


def _texts_below(folder: Path) -> Iterator[str]:
    """The texts of a folder's files, in the order of their names.

    Raises:
        SequoiaError: a text is too long to be read.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(place, name)
            if not path.is_file():  # reading a pipe would wait for its writer
                continue
            if path.stat().st_size > MOST_BYTES and _begins_as_text(path):
                raise SequoiaError(
                    f"corpus: {path}: found {path.stat().st_size >> 20} MiB of text, expected at "
                    f"most {MOST_BYTES >> 20}; split it, or move it out of the folder"
                )
            with suppress(SequoiaError):
                yield _text(path)


def _begins_as_text(path: Path) -> bool:
    """Whether a file's first bytes are text."""
    try:
        with open(path, "rb") as stream:
            beginning = codecs.getincrementaldecoder("utf-8")().decode(stream.read(BEGINNING))
    except (OSError, UnicodeDecodeError):
        return False
    return "\0" not in beginning


def _parts(text: str) -> Iterator[str]:
    """A text in parts that a tokenizer takes at once, of whole lines where these are no longer."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PART - 1) + 1
        if not start < end <= start + 2 * PART:
            end = start + 2 * PART
        yield text[start:end]
        start = end
