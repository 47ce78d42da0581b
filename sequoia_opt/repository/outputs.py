"""Whether a file may be written where another one lies: only a newer version replaces it.

A file that this program wrote states its kind and its provenance. A path that the user names may
replace any file of the same kind. A default path, which follows from the names of models and
datasets and from options, may only replace a file of the same provenance, since different models
or texts often have the same name. Knows when files may be replaced. Knows nothing of how they are
made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import check_writable, is_stream
from sequoia_opt.files.documents import parse_document
from sequoia_opt.repository.kinds import EMPTY, FIGURE, KINDS, REPORT, kind_of
from sequoia_opt.repository.provenance import Provenance

Note = Callable[[str], None]

DISTINCTION = re.compile(r"~[0-9a-f]{6}(?=$|[.~-])")  # in a file's name


def check_named(
    path: Path, kind: str | None, inputs: Sequence[Path | None] = (), force: bool = False
) -> None:
    """Refuse to write to a path that the user names if it holds something else.

    Args:
        kind: format of the new file; None if it has none.
        inputs: the files that the command reads.
        force: replace any file but an input.

    Raises:
        SequoiaError: the path is an input, holds something else, or cannot be written.
    """
    check_writable(path)
    if is_stream(path):
        return
    if any(read is not None and _is_same_file(read, path) for read in inputs):
        raise SequoiaError(f"{path}: the command reads this file; name another one to write")
    if kind is None or force or not os.path.exists(path):
        return
    former_kind = kind_of(path)
    if former_kind not in (EMPTY, kind):
        raise SequoiaError(
            f"{path}: holds {KINDS.get(former_kind or '', 'something else')}, not {KINDS[kind]}; "
            "name another file with -o, or replace it with --force"
        )


def settled(
    path: Path, provenance: Provenance, force: bool = False, note: Note = lambda message: None
) -> Path:
    """The path to write for a default path, see `set_apart`; its folder is made.

    Raises:
        SequoiaError: both paths hold other files, or the file cannot be written.
    """
    path = set_apart(path, provenance, force, note)
    check_writable(path)
    return path


def set_apart(
    path: Path, provenance: Provenance, force: bool = False, note: Note = lambda message: None
) -> Path:
    """The path itself, or a path with the provenance's distinction if it holds another file.

    Args:
        provenance: of the new file.
        force: replace any file.
        note: called with the reason if another file is kept.

    Raises:
        SequoiaError: both paths hold other files.
    """
    if force or (difference := _difference(path, provenance)) is None:
        return path
    other = path.with_name(f"{path.stem}{provenance.distinction}{path.suffix}")
    if (second_difference := _difference(other, provenance)) is not None:
        raise SequoiaError(
            f"{path} and {other.name} are kept (the first: {difference}; the second: "
            f"{second_difference}); name a file with -o, or replace the first with --force"
        )
    note(f"{path} is kept: {difference}; the new file is {other.name}")
    return other


def distinction_in(path: Path) -> str:
    """The part of a file's name that tells it from another of the same models and dataset."""
    return "".join(DISTINCTION.findall(path.name))


def undistinguished(name: str) -> str:
    """A file's name without its distinction."""
    return DISTINCTION.sub("", name)


def _is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths name the same file, which need not exist."""
    if os.path.exists(first) and os.path.exists(second):
        return os.path.samefile(first, second)
    return os.path.realpath(first) == os.path.realpath(second)


def _difference(path: Path, provenance: Provenance) -> str | None:
    """Why the file at a path may not be replaced; None if it may, or no file is there."""
    if is_stream(path) or not os.path.exists(path):
        return None
    kind = kind_of(path)
    if kind == EMPTY:
        return None
    if kind in (REPORT, FIGURE):
        return provenance.difference(Provenance.in_mark(path) or Provenance(kind))
    if kind != provenance.kind:
        return provenance.difference(Provenance(kind or "unknown"))
    try:
        former = Provenance.of(parse_document(path))
    except (SequoiaError, TypeError, ValueError, AttributeError):
        return "it cannot be read"
    return provenance.difference(former)
