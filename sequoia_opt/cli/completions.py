"""A file of completions, a line each, that a run which was cut off is resumed from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import plain
from sequoia_opt.files.jsonl import Lines
from sequoia_opt.files.names import same_fingerprint

NUMBERS = ("prompt", "completion", "stopped", "error", "tokens", "steps", "seconds")
# Settings that a line has only where they differ from what they are without being named.
OPTIONAL = (
    *("top_k", "min_p", "frequency_penalty", "presence_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "chat", "system", "template_options"),
)
ASIDE = "record"  # holds fields of a record whose names are a line's own


class Completions(Lines):
    """Completions of prompts, in their order, each on the disk before the next begins.

    Attributes:
        done: how many there are already.
    """

    def __init__(self, path: Path, prompts: Sequence[Any], settings: Mapping[str, Any]) -> None:
        """Open a file, or begin one.

        Args:
            prompts: texts, or what else stands for them, as JSON has it.
            settings: what every line says of how it came about; a file of others is not continued.

        Raises:
            SequoiaError: the file is of other prompts or settings, or cannot be written.
        """
        super().__init__(path, '{"prompt": ')
        self._settings = dict(plain(settings))
        found = self.read()
        if len(found) > len(prompts):
            raise SequoiaError(
                f"{path}: has {len(found)} completions of {len(prompts)} prompts; name another "
                "file with -o"
            )
        for number, (line, prompt) in enumerate(zip(found, prompts, strict=False), start=1):
            given = line if isinstance(line, dict) else {}
            other = self._other(given, prompt)
            if other is not None:
                raise SequoiaError(
                    f"{path}: line {number}: is of another {other}; name another file with -o"
                )
        self.done = len(found)

    def add_completion(
        self,
        prompt: Any,
        completion: Mapping[str, Any],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the next one.

        Args:
            record: the dataset's; its other fields are kept.

        Raises:
            SequoiaError: it cannot be written; those before it are.
        """
        own = {"prompt": as_json(prompt), **completion, **self._settings}
        reserved = {*own, *NUMBERS, *OPTIONAL, ASIDE}
        kept = {str(name): as_json(value) for name, value in (record or {}).items()}
        fields = {name: value for name, value in kept.items() if name not in reserved}
        # The prompt is there; what else has a name of ours would be taken for ours.
        aside = {name: kept[name] for name in kept if name in reserved - {"prompt"}}
        self.add({**own, **fields, **({ASIDE: aside} if aside else {})})
        self.done += 1

    def _other(self, line: Mapping[str, Any], prompt: Any) -> str | None:
        """What a line differs in from what it would be now; None if it is the same."""
        asked = as_json(prompt)
        # Half of a character was once written as a question mark.
        legible = asked.encode(errors="replace").decode() if isinstance(asked, str) else asked
        if "prompt" not in line or line["prompt"] not in (asked, legible):
            return "prompt"
        differing = (
            key
            for key, setting in self._settings.items()
            if not same_fingerprint(line.get(key), setting)
        )
        unnamed = (key for key in OPTIONAL if key in line and key not in self._settings)
        return next(differing, None) or next(unnamed, None)


def as_json(value: Any) -> Any:
    """A value of a dataset as JSON has it: what it does not know is text."""
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    plainer = plain(value)
    return str(value) if plainer is value else json.loads(json.dumps(plainer, default=str))
