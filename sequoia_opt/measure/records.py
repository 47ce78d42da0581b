"""Records of published datasets to documents: which field has the prompt, which the text after it.

Knows the shapes that records come in. A record that cannot be used becomes a document with a
`problem`, so that it does not stop the others. Knows nothing of files, tokens or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import shown

# Fields that may hold the prompt or a whole text. Of several, the first one that is set counts.
PROMPT_FIELDS = (
    *("prompt", "messages", "conversations", "conversation", "turns", "instruction"),
    *("question", "text", "input_tokens", "prompt_token_ids", "input_ids"),
)
# Fields that may hold the text after the prompt.
ANSWER_FIELDS = ("completion", "canonical_solution", "output", "response", "answer")
ROLES = {
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
        text: what follows the prompt, or the whole text if the dataset has no prompts.
        is_whole: `text` is a whole text, without a prompt.
        messages: a conversation instead of a prompt, each message with its `role` and `content`;
            the last one is to be answered.
        tokens: the prompt's token ids, where the dataset has them instead of its text.
        fields: the record as the dataset has it.
        where: file and line of the record, for messages.
        problem: why the record cannot be used; empty if it can.
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
        """Whether the document has neither content nor a problem."""
        content = self.prompt.strip() or self.text.strip() or self.messages or self.tokens
        return not content and not self.problem

    @property
    def asked(self) -> str | list[Any] | None:
        """What a completion continues, as a JSON value; None if the record cannot be used."""
        if self.messages or self.tokens:
            return [*self.messages, *self.tokens]
        if self.problem:
            return None
        return self.text if self.is_whole else self.prompt


def from_records(records: Iterable[Any], where: str) -> Iterator[Document]:
    """A document for each record; for one that cannot be used, a document with a `problem`."""
    for record in records:
        fields = record if isinstance(record, Mapping) else {}
        try:
            yield _document(record, fields, where)
        except SequoiaError as error:
            yield unusable(where, str(error), fields)


def from_rows(rows: Iterable[Any], where: str) -> Iterator[Document]:
    """A document for each record, with its number in its `where`."""
    for number, row in enumerate(rows, start=1):
        yield from from_records([row], f"{where}: record {number}")


def unusable(where: str, problem: str, fields: Mapping[str, Any] | None = None) -> Document:
    """The document of a record that cannot be used."""
    return Document("", "", fields=fields or {}, where=where, problem=problem)


def records_in(value: Any) -> list[Any]:
    """The records in a JSON value: a list of records, a mapping with one such list, or a record."""
    if isinstance(value, list):
        return [value] if _is_tokens(value) or _is_conversation(value) else value
    if isinstance(value, dict) and not _prompt_fields_of(value):
        tables = [part for part in value.values() if isinstance(part, list) and part]
        if len(tables) == 1 and all(isinstance(row, dict) for row in tables[0]):
            return tables[0]
    return [value]


def _prompt_fields_of(record: Mapping[str, Any]) -> list[str]:
    return [name for name in PROMPT_FIELDS if name in record]


def _document(record: Any, fields: Mapping[str, Any], where: str) -> Document:
    """The document of a record.

    Raises:
        SequoiaError: the record has no prompt or text that can be used.
    """
    if isinstance(record, str):
        return Document(record, "", where=where)
    if isinstance(record, list):
        record = {"input_tokens" if _is_tokens(record) else "messages": record}
    if not isinstance(record, Mapping):
        raise SequoiaError(f"found {shown(record)}, expected text or a record with {EXPECTED}")
    body = record.get("body")
    if isinstance(body, Mapping) and not _prompt_fields_of(record):  # OpenAI's batch requests
        record = body
    names = _prompt_fields_of(record)
    if not names:
        raise SequoiaError(f"found {shown(record)}, expected a field {EXPECTED}")
    for name in names:
        if record[name] is not None:
            return _from_field(name, record, fields, where)
    raise SequoiaError(f"{names[0]}: found None, expected text")


def _from_field(
    name: str, record: Mapping[str, Any], fields: Mapping[str, Any], where: str
) -> Document:
    """The document of a record whose prompt or text is in the field `name`."""
    value = record[name]
    if name == "turns":
        if not isinstance(value, list) or not value:
            raise SequoiaError(f"turns: found {shown(value)}, expected a list of texts")
        value = value[0]
    if isinstance(value, list) and not _is_tokens(value):
        return _from_conversation(name, value, record, fields, where)
    if isinstance(value, list):
        return Document("", "", tokens=tuple(value), fields=fields, where=where)
    prompt = _text(name, value)
    if name == "instruction":
        context = record.get("input") or record.get("context") or ""
        prompt += f"\n\n{_text('input', context)}" if context else ""
    if name == "text":
        if record.get("code") is None:
            return Document("", prompt, is_whole=True, fields=fields, where=where)
        return Document(prompt, _text("code", record["code"]), fields=fields, where=where)
    text = "" if name == "turns" else _answer(record)
    return Document(prompt, text, fields=fields, where=where)


def _answer(record: Mapping[str, Any]) -> str:
    """The text that follows a record's prompt; empty if the record has none."""
    for name in ANSWER_FIELDS:
        value = record.get(name)
        if isinstance(value, list) and value:  # messages
            return str(_message(name, value[0])["content"])
        if value is not None and (name == "completion" or isinstance(value, str)):
            return _text(name, value)
    return ""


def _from_conversation(
    name: str,
    value: Sequence[Any],
    record: Mapping[str, Any],
    fields: Mapping[str, Any],
    where: str,
) -> Document:
    """The document of a conversation, which is cut before the assistant's last message."""
    messages = [_message(name, message) for message in value]
    text = _answer(record)
    if messages and messages[-1]["role"] == "assistant":
        text = messages.pop()["content"]
    if not messages:
        raise SequoiaError(f"{name}: found {shown(value)}, expected a message to be answered")
    return Document("", text, messages=tuple(messages), fields=fields, where=where)


def _message(name: str, message: Any) -> dict[str, Any]:
    """A message with the `role` and `content` that chat templates expect.

    Raises:
        SequoiaError: it is not a message, or not all of its content is text.
    """
    if not _is_message(message):
        raise SequoiaError(
            f"{name}: found {shown(message)}, expected messages with `role` and `content`, or "
            "`from` and `value`"
        )
    speaker = str(message["role"] if "role" in message else message["from"])
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # parts, some of which may be images
        parts = [part if isinstance(part, Mapping) else {} for part in content]
        content = "".join(_text(f"{name}: a part", part.get("text")) for part in parts)
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    text = _text(f"{name}: content", content or "")
    return {**others, "role": ROLES.get(speaker, speaker), "content": text}


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
