"""A file of completions, a line each, that a run which was cut off is taken up from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.files import plain, same_fingerprint
from sequoia_opt.plan.lines import Lines


class Completions(Lines):
    """Completions of prompts, in their order, each on the disk before the next begins.

    Attributes:
        done: how many there are already.
    """

    def __init__(self, path: Path, prompts: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Open a file, or begin one.

        Args:
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
            wanted = {"prompt": prompt} | self._settings
            given = line if isinstance(line, dict) else {}
            same = same_fingerprint
            other = next((key for key in wanted if not same(given.get(key), wanted[key])), None)
            if other is not None:
                raise SequoiaError(
                    f"{path}: line {number}: is of another {other}; name another file with -o"
                )
        self.done = len(found)

    def add_completion(self, prompt: str, completion: Mapping[str, Any]) -> None:
        """Write the next one.

        Raises:
            SequoiaError: it cannot be written; those before it are.
        """
        self.add({"prompt": prompt, **completion, **self._settings})
        self.done += 1
