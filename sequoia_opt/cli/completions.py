"""The file that `complete` writes: a line of JSON per prompt, continued after an interruption.

Knows the fields of a line. Knows nothing of decoding.
"""

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
# Settings that a line has only where they differ from their defaults.
OPTIONAL = (
    *("top_k", "min_p", "frequency_penalty", "presence_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "chat", "system", "template_options"),
)
ASIDE = "record"  # field for the fields of a record whose names a line uses itself


class Completions(Lines):
    """Completions of prompts, in their order; each is on disk before the next begins.

    Attributes:
        done: how many completions the file has.
    """

    def __init__(self, path: Path, prompts: Sequence[Any], settings: Mapping[str, Any]) -> None:
        """Open a file, or create it.

        Args:
            prompts: texts, or messages or token ids, as JSON values.
            settings: how the completions are decoded; every line repeats them.

        Raises:
            SequoiaError: the file is of other prompts or settings, or cannot be written.
        """
        super().__init__(path, '{"prompt": ')
        self._settings = dict(plain(settings))
        lines = self.read()
        if len(lines) > len(prompts):
            raise SequoiaError(
                f"{path}: found {len(lines)} completions of {len(prompts)} prompts; name another "
                "file with -o"
            )
        for number, (line, prompt) in enumerate(zip(lines, prompts, strict=False), start=1):
            difference = self._difference(line if isinstance(line, dict) else {}, prompt)
            if difference is not None:
                raise SequoiaError(
                    f"{path}: line {number}: is of another {difference}; name another file with -o"
                )
        self.done = len(lines)

    def add_completion(
        self,
        prompt: Any,
        completion: Mapping[str, Any],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the next line.

        Args:
            completion: the fields of this completion.
            record: the record of the dataset; the line keeps its other fields too.

        Raises:
            SequoiaError: the line cannot be written; the lines before it are on disk.
        """
        line = {"prompt": as_json(prompt), **completion, **self._settings}
        reserved = {*line, *NUMBERS, *OPTIONAL, ASIDE}
        fields = {str(name): as_json(value) for name, value in (record or {}).items()}
        line |= {name: value for name, value in fields.items() if name not in reserved}
        # The line has the prompt; other fields with reserved names go into a field of their own.
        aside = {name: value for name, value in fields.items() if name in reserved - {"prompt"}}
        self.add(line | ({ASIDE: aside} if aside else {}))
        self.done += 1

    def _difference(self, line: Mapping[str, Any], prompt: Any) -> str | None:
        """The first field in which a line differs from what it would be now; None if none."""
        expected = as_json(prompt)
        # Older versions wrote half of a character as a question mark.
        legible = (
            expected.encode(errors="replace").decode() if isinstance(expected, str) else expected
        )
        if "prompt" not in line or line["prompt"] not in (expected, legible):
            return "prompt"
        differing = (
            key
            for key, setting in self._settings.items()
            if not same_fingerprint(line.get(key), setting)
        )
        unnamed = (key for key in OPTIONAL if key in line and key not in self._settings)
        return next(differing, None) or next(unnamed, None)


def as_json(value: Any) -> Any:
    """A value of a dataset as a JSON value; one of another type becomes text."""
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
