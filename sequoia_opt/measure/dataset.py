"""Datasets: files or hub ids to documents, each a prompt and what follows it.

Knows file formats, and the shapes that records of published datasets have. A record that cannot
be used is told apart from the others and stops nobody. Knows nothing of tokens or models.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from sequoia_opt import demo
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.files.fields import shown
from sequoia_opt.measure.progress import Note

PIECE = 4000  # characters of a piece of a plain text file
LONGEST_RECORD = 2**25  # bytes of a line; to parse one takes a few times its size in memory
LARGEST_VALUE = 2**30  # bytes of a file of JSON lines that is tried as values over several lines
NAMED = 10  # records that cannot be used are named one by one, up to so many
FILES = ".jsonl, .json, .txt or .parquet file, the first three also .gz"
# Which field has the prompt and which ones may have what follows it, besides `prompt`.
ANSWERS = ("completion", "canonical_solution", "output", "response", "answer")
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}
EXPECTED = (
    "`prompt`, `messages`, `conversations`, `turns`, `instruction`, `question`, `text` or "
    "`input_tokens`"
)

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """One text of a dataset.

    Attributes:
        prompt: where decoding would start from; empty where the dataset has only texts.
        text: what follows the prompt, or the whole text where there is no prompt.
        is_whole: the dataset has texts only, so that this is one.
        messages: a conversation instead of a prompt, each with its `role` and `content`, the
            last of them to be answered.
        tokens: a prompt's token ids instead of its text.
        fields: the record as the dataset has it.
        where: file and line of it, for messages.
        problem: why it cannot be used; empty if it can.
    """

    prompt: str
    text: str
    is_whole: bool = False
    messages: tuple[Message, ...] = ()
    tokens: tuple[int, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    where: str = field(default="", compare=False)
    problem: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether it says nothing at all."""
        parts = self.prompt.strip() or self.text.strip() or self.messages or self.tokens
        return not parts and not self.problem

    @property
    def asked(self) -> str | list[Any] | None:
        """What is to be gone on from, as JSON has it; None if it cannot be used."""
        if self.messages or self.tokens:
            return [*self.messages, *self.tokens]
        if self.problem:
            return None
        return self.text if self.is_whole else self.prompt


def load_prompts(path: Path) -> list[Document]:
    """The documents of a file in their order, each of them: those that cannot be used have a
    `problem`.

    Raises:
        SequoiaError: as in `load_dataset`, but for its records.
    """
    _, documents = _load(path)
    if not documents:
        raise SequoiaError(f"{path}: the dataset has no documents")
    return documents


def load_dataset(
    name: str | Path | None = None, note: Note = lambda message: None
) -> tuple[str, list[Document]]:
    """A dataset's short name and its documents; by default the bundled one.

    Args:
        name: a .jsonl, .json or .parquet file whose records have `prompt` (text, messages or
            token ids) and, if known, `completion`; `messages` or `conversations`; `turns`;
            `instruction` (and `input`); `question`; or `text`; a .txt file; or a Hugging Face
            dataset id, with a split after an @ (`user/name@validation`; `test` by default).
        note: called with a line for each record that cannot be used, and is left out.

    Raises:
        SequoiaError: missing, unreadable or without any document that can be used, or a package
            for it is not installed.
    """
    short, documents = _load(name)
    usable = [d for d in documents if not d.problem and not d.is_blank]
    problems = [f"{d.where}: {d.problem}" for d in documents if d.problem]
    if not usable:
        raise SequoiaError(problems[0] if problems else f"{name}: the dataset has no documents")
    tell_left_out(problems, note)
    return short, usable


def tell_left_out(problems: Sequence[str], note: Note) -> None:
    """A line for each of the first records that cannot be used, and one for the others."""
    for problem in problems[:NAMED]:
        note(f"{problem}; left out")
    if len(problems) > NAMED:
        note(f"{len(problems) - NAMED} more records that cannot be used are left out")


def spread_over(documents: Sequence[Document], count: int) -> list[Document]:
    """`count` documents, or all, evenly spread: neighbours in a file are often alike."""
    count = min(count, len(documents))
    return [documents[place * len(documents) // count] for place in range(count)]


def _load(name: str | Path | None) -> tuple[str, list[Document]]:
    """A dataset's short name and all its documents, those that cannot be used too."""
    if name is None or str(name) == demo.DATASET_NAME:
        return demo.DATASET_NAME, _from_json(demo.DATASET, in_lines=True)
    path = Path(name)
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    readers: dict[str, Callable[[Path], list[Document]]] = {
        ".jsonl": lambda path: _from_json(path, in_lines=True),
        ".json": lambda path: _from_json(path, in_lines=False),
        ".txt": _from_text,
        ".parquet": _from_parquet,
    }
    reader = readers.get(bare.suffix.lower())
    if reader is not None and (bare == path or reader is not _from_parquet):
        if not path.is_file():
            raise SequoiaError(f"{path}: no such file")
        try:
            return bare.stem, reader(path)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise SequoiaError(f"{path}: cannot be read ({one_line(error)})") from None
    if path.exists():
        raise SequoiaError(f"{path}: expected a {FILES}")
    return str(name), _from_hub(str(name))


def _opened(path: Path) -> IO[bytes]:
    opening: Callable[[Path], Any] = gzip.open if path.suffix == ".gz" else partial(open, mode="rb")
    stream: IO[bytes] = opening(path)
    return stream


def _from_json(path: Path, in_lines: bool) -> list[Document]:
    """A record on each line; or the file is one value, or several one after the other.

    Args:
        in_lines: what is tried first.
    """
    if in_lines:
        documents = list(_from_lines(path))
        small = path.stat().st_size <= LARGEST_VALUE
        if small and documents and documents[0].problem.startswith(_NOT_JSON):
            values = _values(path)
            return documents if values is None else list(_from_values(values, path))
        return documents
    values = _values(path)
    return list(_from_lines(path) if values is None else _from_values(values, path))


def _from_lines(path: Path) -> Iterator[Document]:
    """The documents of a file of JSON lines."""
    with _opened(path) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            where = f"{path}: line {number}"
            if line is None:
                yield _problem(where, f"longer than {LONGEST_RECORD // 2**20} MiB")
            elif line.strip():
                try:
                    value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except json.JSONDecodeError as error:
                    yield _problem(where, f"{_NOT_JSON} ({error.msg})")
                except UnicodeDecodeError as error:
                    yield _problem(where, f"not UTF-8 ({error.reason})")
                except (RecursionError, ValueError) as error:
                    yield _problem(where, f"cannot be read as JSON ({one_line(error)})")
                else:
                    yield from _records(_listed(value), where)


_NOT_JSON = "not valid JSON"


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Each line, or None in the place of one that is too long."""
    while line := stream.readline(LONGEST_RECORD):
        whole = len(line) < LONGEST_RECORD or line.endswith(b"\n")
        yield line if whole else None
        while not whole and (rest := stream.readline(LONGEST_RECORD)):
            whole = rest.endswith(b"\n")


def _values(path: Path) -> list[Any] | None:
    """The JSON values that a file consists of; None if it does not."""
    with _opened(path) as stream:
        text = stream.read().decode("utf-8-sig")
    decoder, place, found = json.JSONDecoder(), 0, []
    try:
        while place < len(text):
            if text[place].isspace():
                place += 1
                continue
            value, place = decoder.raw_decode(text, place)
            found.append(value)
    except (ValueError, RecursionError):
        return None
    return found


def _from_values(values: Sequence[Any], path: Path) -> Iterator[Document]:
    """The documents of a file's values: records, or lists of them."""
    records = [record for value in values for record in _listed(value)]
    return _numbered(records, str(path))


def _listed(value: Any) -> list[Any]:
    """The records of a value: itself, or those that it is a list of, or has one of."""
    if isinstance(value, list):
        return [value] if _is_tokens(value) or _is_conversation(value) else value
    if isinstance(value, dict) and not _known_fields(value):
        tables = [part for part in value.values() if isinstance(part, list) and part]
        if len(tables) == 1 and all(isinstance(row, dict) for row in tables[0]):
            return tables[0]
    return [value]


def _from_text(path: Path) -> list[Document]:
    """A text file, cut at line ends into pieces of about `PIECE` characters."""
    with _opened(path) as stream:
        lines = stream.read().decode("utf-8-sig").splitlines(keepends=True)
    pieces, piece = [], ""
    for line in lines:
        for start in range(0, len(line), PIECE):
            piece += line[start : start + PIECE]
            if len(piece) >= PIECE:
                pieces.append(piece)
                piece = ""
    pieces += [piece] if piece else []
    return [
        Document("", text, is_whole=True, where=f"{path}: piece {number}")
        for number, text in enumerate(pieces, start=1)
    ]


def _from_parquet(path: Path) -> list[Document]:
    if importlib.util.find_spec("pyarrow") is None:
        raise SequoiaError(f"{path}: reading .parquet needs pyarrow; pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SequoiaError(f"{path}: cannot be read ({one_line(error)})") from None
    return list(_numbered(rows, str(path)))


def _from_hub(name: str) -> list[Document]:
    if importlib.util.find_spec("datasets") is None:
        raise SequoiaError(
            f"{name}: no such file; to read it from the Hugging Face hub, pip install datasets"
        )
    import datasets

    identifier, _, split = name.partition("@")
    try:
        rows = datasets.load_dataset(identifier, split=split or "test")
    except Exception as error:  # the hub's client raises many kinds, none of them ours to know
        raise SequoiaError(f"{name}: cannot be loaded ({one_line(error)[:200]})") from None
    return list(_numbered(rows, name))


def _numbered(rows: Iterable[Any], where: str) -> Iterator[Document]:
    for number, row in enumerate(rows, start=1):
        yield from _records([row], f"{where}: record {number}")


def _records(records: Iterable[Any], where: str) -> Iterator[Document]:
    """The documents of records, those that cannot be used with what is wrong."""
    for record in records:
        fields = record if isinstance(record, Mapping) else {}
        try:
            yield _document(record, fields, where)
        except SequoiaError as error:
            yield _problem(where, str(error), fields)


def _problem(where: str, problem: str, fields: Mapping[str, Any] | None = None) -> Document:
    return Document("", "", fields=fields or {}, where=where, problem=problem)


def _known_fields(record: Mapping[str, Any]) -> list[str]:
    """The fields that a prompt or a text may be in, and is, in the order that they count in."""
    fields = (
        *("prompt", "messages", "conversations", "conversation", "turns", "instruction"),
        *("question", "text", "input_tokens", "prompt_token_ids", "input_ids"),
    )
    return [name for name in fields if name in record]


def _document(record: Any, fields: Mapping[str, Any], where: str) -> Document:
    """The document of a record.

    Raises:
        SequoiaError: it has none that can be used.
    """
    if isinstance(record, str):
        return Document(record, "", where=where)
    if isinstance(record, list):
        record = {"input_tokens" if _is_tokens(record) else "messages": record}
    if not isinstance(record, Mapping):
        raise SequoiaError(f"found {shown(record)}, expected text or a record with {EXPECTED}")
    body = record.get("body")
    if isinstance(body, Mapping) and not _known_fields(record):  # a batch of requests
        record = body
    named = _known_fields(record)
    if not named:
        raise SequoiaError(f"found {shown(record)}, expected a field {EXPECTED}")
    given = [name for name in named if record[name] is not None]
    if not given:
        raise SequoiaError(f"{named[0]}: found None, expected text")
    return _of_field(given[0], record, fields, where)


def _of_field(
    name: str, record: Mapping[str, Any], fields: Mapping[str, Any], where: str
) -> Document:
    """The document of a record whose prompt is in the field of that name."""
    value = record[name]
    if name == "turns":
        if not isinstance(value, list) or not value:
            raise SequoiaError(f"turns: found {shown(value)}, expected a list of texts")
        value = value[0]
    if isinstance(value, list) and not _is_tokens(value):
        return _of_conversation(name, value, record, fields, where)
    if isinstance(value, list):
        return Document("", "", tokens=tuple(value), fields=fields, where=where)
    prompt = _text(name, value)
    if name == "instruction":
        more = record.get("input") or record.get("context") or ""
        prompt += f"\n\n{_text('input', more)}" if more else ""
    if name == "text":
        if record.get("code") is None:
            return Document("", prompt, is_whole=True, fields=fields, where=where)
        return Document(prompt, _text("code", record["code"]), fields=fields, where=where)
    text = "" if name == "turns" else _answer(record)
    return Document(prompt, text, fields=fields, where=where)


def _answer(record: Mapping[str, Any]) -> str:
    """What follows the prompt of a record, as far as it is known."""
    for name in ANSWERS:
        value = record.get(name)
        if isinstance(value, list) and value:  # messages
            return str(_message(name, value[0])["content"])
        if value is not None and (name in ANSWERS[:1] or isinstance(value, str)):
            return _text(name, value)
    return ""


def _of_conversation(
    name: str,
    value: Sequence[Any],
    record: Mapping[str, Any],
    fields: Mapping[str, Any],
    where: str,
) -> Document:
    """A conversation, up to the assistant's last turn."""
    messages = [_message(name, message) for message in value]
    text = _answer(record)
    if messages and messages[-1]["role"] == "assistant":
        text = messages.pop()["content"]
    if not messages:
        raise SequoiaError(f"{name}: found {shown(value)}, expected a message to be answered")
    return Document("", text, messages=tuple(messages), fields=fields, where=where)


def _message(name: str, message: Any) -> dict[str, Any]:
    """A message with its `role` and `content`, as chat templates know them.

    Raises:
        SequoiaError: it is none, or not all of it is text.
    """
    if not _is_message(message):
        raise SequoiaError(
            f"{name}: found {shown(message)}, expected messages with `role` and `content`, or "
            "`from` and `value`"
        )
    speaker = str(message["role"] if "role" in message else message["from"])
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # in parts, some of which may be pictures
        parts = [part if isinstance(part, Mapping) else {} for part in content]
        content = "".join(_text(f"{name}: a part", part.get("text")) for part in parts)
    kept = {key: value for key, value in message.items() if key not in ("from", "value")}
    text = _text(f"{name}: content", content or "")
    return {**kept, "role": SPEAKERS.get(speaker, speaker), "content": text}


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"role", "from"} & value.keys())


def _is_conversation(value: list[Any]) -> bool:
    return bool(value) and all(map(_is_message, value))


def _is_tokens(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SequoiaError(f"{name}: found {shown(value)}, expected text")
    return value
