"""How prompts are put to a model that converses.

Knows messages. Knows nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sequoia_opt.measure.dataset import Message


@dataclass(frozen=True)
class Template:
    """How prompts are put to a model that converses. Conversations take its chat template always,
    if it has one.

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
            parts.append(
                f"-system-{hashlib.sha256(self.system.encode(errors='replace')).hexdigest()[:6]}"
            )
        parts += [f"-{name}-{value}" for name, value in sorted(self.options.items())]
        return "".join(parts)

    def document(self) -> dict[str, Any]:
        """What differs from plain prompts, for files."""
        values = {"chat": self.for_all, "system": self.system, "template_options": self.options}
        return {name: value for name, value in values.items() if value not in (False, None, {})}


PLAIN = Template()
