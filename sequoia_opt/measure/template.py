"""How prompts are put into a model's chat template.

Knows messages. Knows nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sequoia_opt.measure.records import Message


@dataclass(frozen=True)
class Template:
    """Which prompts go through the chat template, and with what.

    Conversations always do, if the model has a template.

    Attributes:
        for_all: a prompt that is not a conversation becomes a user message.
        system: the system message of conversations that have none.
        options: the template's switches, such as enable_thinking.
    """

    for_all: bool = False
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def conversation(self, messages: list[Message]) -> list[Message]:
        """The messages, after the system message."""
        has_system_message = any(message["role"] == "system" for message in messages)
        if self.system is None or has_system_message:
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    @property
    def label(self) -> str:
        """The ending of a dataset's name that tells these settings from others."""
        parts = ["-chat"] if self.for_all else []
        if self.system is not None:
            digest = hashlib.sha256(self.system.encode(errors="replace")).hexdigest()[:6]
            parts.append(f"-system-{digest}")
        parts += [f"-{name}-{value}" for name, value in sorted(self.options.items())]
        return "".join(parts)

    def document(self) -> dict[str, Any]:
        """The settings that differ from plain prompts, for files."""
        values = {"chat": self.for_all, "system": self.system, "template_options": self.options}
        return {name: value for name, value in values.items() if value not in (False, None, {})}


PLAIN = Template()
