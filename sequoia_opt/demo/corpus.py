"""The bundled pair's text: the Python standard library, with whole modules held out.

Besides it the source of the packages that the program depends on, as text that neither model
is taught but over which the draft is shown what the target would say. Knows which files are
read, in which order, and which never reach the training. Knows nothing of models or tokens.
"""

from __future__ import annotations

import importlib.util
import random
import re
import sysconfig
from pathlib import Path

HELD_OUT_MODULES = (
    "argparse",
    "calendar",
    "configparser",
    "csv",
    "fractions",
    "heapq",
    "queue",
    "sched",
    "shlex",
    "statistics",
    "textwrap",
    "zipfile",
)
"""Top-level modules of the standard library that the pair has never seen."""

# Tests and vendored packages are another kind of text; the others are tables, not code.
SKIPPED_FOLDERS = {
    *("site-packages", "test", "tests", "testing", "idle_test", "_vendor"),
    *("encodings", "pydoc_data"),
}
SKIPPED_FILES = re.compile(r"_sysconfigdata.*|entities|__phello__.*")

PACKAGES = ("torch", "transformers", "numpy", "scipy", "rich", "typer", "yaml")
LONGEST = 24_000  # characters that are read of a package's file

Document = tuple[str, str]
"""Module path relative to the library, and its source."""


def library_files() -> list[Document]:
    """Every readable source file of this interpreter's standard library, sorted by path.

    Files are keyed by their path relative to the library, so the order, and with it the
    training, does not depend on where Python is installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts) or SKIPPED_FILES.fullmatch(path.stem):
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if source.strip():
            documents.append((relative.as_posix(), source))
    return documents


def is_held_out(path: str) -> bool:
    """Whether a file belongs to one of the held-out modules."""
    return path.split("/")[0].removesuffix(".py") in HELD_OUT_MODULES


def package_files(characters: int, seed: int) -> list[Document]:
    """Source files of the packages, in a random order, of so many characters together.

    Without tests and copies of other packages, and without any file or folder that bears the
    name of a held-out module.
    """
    found: list[tuple[str, Path]] = []
    for name in PACKAGES:
        specification = importlib.util.find_spec(name)
        if specification is None or specification.origin is None:
            continue
        root = Path(specification.origin).parent
        paths = ((path.relative_to(root).parts, path) for path in root.rglob("*.py"))
        for parts, path in sorted(paths):
            if not SKIPPED_FOLDERS.intersection(parts) and not any(
                part.removesuffix(".py") in HELD_OUT_MODULES for part in parts
            ):
                found.append((f"{name}/{'/'.join(parts)}", path))
    random.Random(seed).shuffle(found)
    documents, length = [], 0
    for key, path in found:
        source = path.read_text(encoding="utf-8", errors="replace")[:LONGEST]
        if source.strip():
            documents.append((key, source))
            length += len(source)
        if length >= characters:
            break
    return documents


def split() -> tuple[list[Document], list[Document]]:
    """The training documents and the held-out ones."""
    documents = library_files()
    return (
        [document for document in documents if not is_held_out(document[0])],
        [document for document in documents if is_held_out(document[0])],
    )


def excerpts(
    documents: list[Document], per_document: int, prompt_chars: int, chars: int, seed: int
) -> list[dict[str, str]]:
    """Pieces of the documents, each cut in a prompt and what follows it.

    A piece starts at a function, a class or a method,
    and its prompt ends at the end of a line. Pieces of one document never overlap.

    Args:
        documents: where the pieces come from.
        per_document: at most so many pieces of each.
        prompt_chars: length of a prompt, at least.
        chars: length of prompt and completion together.
        seed: which pieces are taken.
    """
    generator = random.Random(seed)
    pieces = []
    for path, source in documents:
        starts = [
            m.start() for m in re.finditer(r"^(?: {4})?(?:def |class |@)", source, re.MULTILINE)
        ]
        generator.shuffle(starts)
        chosen: list[int] = []
        for start in starts:
            apart = all(abs(start - other) >= chars for other in chosen)
            if apart and start + chars <= len(source) and len(chosen) < per_document:
                chosen.append(start)
        for start in sorted(chosen):
            cut = source.index("\n", start + prompt_chars) + 1
            pieces.append(
                {
                    "id": f"{path}:{source.count(chr(10), 0, start) + 1}",
                    "prompt": source[start:cut],
                    "completion": source[cut : start + chars],
                }
            )
    return pieces
