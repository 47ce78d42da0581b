"""Documents to tokens: the same ones for every command that reads a dataset.

Knows how a prompt, a conversation and what follows them are put to a model. Knows nothing of
files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sequoia_opt.engine.models import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import Document, Message


@dataclass(frozen=True)
class Template:
    """How prompts are put to a model that converses. Conversations always take its chat template.

    Attributes:
        for_all: a prompt without a conversation is a message too.
        system: the system's message, where a conversation has none.
        options: switches of the template, as enable_thinking.
    """

    for_all: bool = False
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def conversation(self, messages: list[Message]) -> list[Message]:
        """The messages, the system's before them."""
        has_own = any(message["role"] == "system" for message in messages)
        if self.system is None or has_own:
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    @property
    def label(self) -> str:
        """What a dataset's name ends with whose prompts are put so."""
        parts = ["-chat"] * self.for_all
        if self.system is not None:
            parts.append(f"-system-{hashlib.sha256(self.system.encode()).hexdigest()[:6]}")
        parts += [f"-{name}-{value}" for name, value in sorted(self.options.items())]
        return "".join(parts)

    def document(self) -> dict[str, Any]:
        """What differs from plain prompts, for files."""
        values = {"chat": self.for_all, "system": self.system, "template_options": self.options}
        return {name: value for name, value in values.items() if value not in (False, None, {})}


PLAIN = Template()


def prompt_tokens(pair: Pair, document: Document, template: Template = PLAIN) -> list[int]:
    """Token ids of what is to be gone on from: the prompt, the conversation or the whole text.

    Raises:
        SequoiaError: there are none, or the models cannot read them.
    """
    if document.problem:
        raise SequoiaError(document.problem)
    if document.tokens:
        return list(document.tokens)
    rendered = _rendered(pair, document, template)
    if rendered is not None:
        return pair.encode(rendered, beginning=False)
    return pair.encode(document.text if document.is_whole else document.prompt)


def opening(pair: Pair, document: Document, template: Template = PLAIN) -> list[int]:
    """The same, but of a text that has no prompt the first half of its tokens."""
    tokens = prompt_tokens(pair, document, template)
    has_prompt = template.for_all or not document.is_whole
    return tokens if has_prompt else tokens[: max(1, len(tokens) // 2)]


def prompt_and_text(
    pair: Pair, document: Document, template: Template = PLAIN
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the text that follows it in the dataset.

    The prompt as it is decoded from, the text behind it in tokens of its own; if these would read
    otherwise there, as those of tokenizers do that write a beginning with a space, then in those
    that it has when both are tokenized together.

    Raises:
        SequoiaError: as in `prompt_tokens`.
    """
    has_prompt = document.prompt or document.messages or document.tokens or template.for_all
    if document.text and not has_prompt:
        return [], pair.encode(document.text)
    prompt = prompt_tokens(pair, document, template)
    if not document.text or document.is_whole:
        return prompt, []
    alone = pair.encode(document.text, beginning=False)
    if document.tokens or pair.decode(alone, prompt) == document.text:
        return prompt, alone
    rendered = _rendered(pair, document, template)
    if rendered is not None:
        whole = pair.encode(rendered + document.text, beginning=False)
    else:
        whole = pair.encode(document.prompt + document.text)
    joined = whole[: len(prompt)] != prompt  # by a token that has parts of both
    return prompt, alone if joined else whole[len(prompt) :]


def _rendered(pair: Pair, document: Document, template: Template) -> str | None:
    """The chat template's text; None where the prompt is no conversation."""
    messages = list(document.messages)
    if not messages and not template.for_all:
        return None
    if not messages:
        asked = document.text if document.is_whole else document.prompt
        messages = [{"role": "user", "content": asked}]
    return pair.render_chat(template.conversation(messages), template.options)
