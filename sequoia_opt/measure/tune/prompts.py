"""A dataset's documents as prompts for a server, which has the tokenizer and the chat template.

Knows documents and how a server reads them. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sequoia_opt.engine.http_client import ServerGoneError
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import spread_over, tell_left_out
from sequoia_opt.measure.progress import Note
from sequoia_opt.measure.records import Document


class Reader(Protocol):
    """Turns texts into tokens; raises `ServerGoneError` where no further one can be turned."""

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, with those that the model expects at a beginning."""
        ...

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation in the model's chat template."""
        ...


def prompts_for(
    reader: Reader, documents: Sequence[Document], limit: int, most: int | None, note: Note
) -> list[list[int]]:
    """The tokens of prompts that are spread over the documents, each once.

    A document that cannot be used as a prompt is replaced by another one, and noted.

    Args:
        limit: number of prompts.
        most: the most tokens that a prompt may have; None for any number.

    Raises:
        ServerGoneError: the reader's server does not answer.
        SequoiaError: there is none.
    """
    first = spread_over(documents, limit)
    chosen = set(map(id, first))
    prompts: list[list[int]] = []
    problems: list[str] = []
    for document in (*first, *(other for other in documents if id(other) not in chosen)):
        if len(prompts) == limit:
            break
        try:
            prompt = _tokens(reader, document)
            problem = _problem(prompt, most)
        except ServerGoneError:
            raise
        except SequoiaError as error:
            problem = str(error)
        if problem:
            problems.append(f"{document.where}: {problem}")
        elif prompt not in prompts:  # engines remember texts, so none is decoded twice
            prompts.append(prompt)
    if not prompts:
        raise SequoiaError(f"no prompt is usable: {problems[0]}")
    tell_left_out(problems, note)
    return prompts


def _tokens(reader: Reader, document: Document) -> list[int]:
    """The tokens that decoding starts from: of a whole text, those of its first half."""
    if document.problem:
        raise SequoiaError(document.problem)
    if document.tokens:
        return list(document.tokens)
    if document.messages:
        return reader.tokens(reader.chat_text(document.messages))
    if not document.is_whole:
        return reader.tokens(document.prompt)
    tokens = reader.tokens(document.text)
    return tokens[: max(1, len(tokens) // 2)]


def _problem(prompt: Sequence[int], most: int | None) -> str:
    """Why a prompt cannot be used; empty if it can."""
    if not prompt:
        return "the prompt is empty; expected at least one token"
    if most is not None and len(prompt) > most:
        return f"the prompt has {len(prompt)} tokens, which leaves the model too few positions"
    return ""
