"""The bundled pair's text: the Python standard library, with whole modules held out.

Also the source of the packages that the program depends on: neither model is trained to write it,
but the draft is trained on what the target would predict there. Knows which files are read and
which never reach the training. Knows nothing of models or tokens.
"""

from __future__ import annotations

import importlib.util
import random
import re
import sysconfig
from pathlib import Path

# Top-level modules of the standard library that neither model was trained on.
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

# Tests and vendored packages are another kind of text; the others are tables rather than code.
SKIPPED_FOLDERS = {
    *("site-packages", "test", "tests", "testing", "idle_test", "_vendor"),
    *("encodings", "pydoc_data"),
}
SKIPPED_FILES = re.compile(r"_sysconfigdata.*|entities|__phello__.*")

PACKAGES = ("torch", "transformers", "numpy", "scipy", "rich", "typer", "yaml")
LONGEST = 24_000  # characters; the rest of a package's file is not read

Document = tuple[str, str]  # path relative to the library, and source


def library_files() -> list[Document]:
    """Every readable source file of this interpreter's standard library, sorted by path.

    The paths are relative to the library, so that the order, and with it the training, does not
    depend on where Python is installed.
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
    """Source files of the packages in a random order, of at least `characters` characters in all.

    Tests, vendored packages, and files and folders with the name of a held-out module are left
    out.
    """
    candidates: list[tuple[str, Path]] = []
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
                candidates.append((f"{name}/{'/'.join(parts)}", path))
    random.Random(seed).shuffle(candidates)
    documents, length = [], 0
    for key, path in candidates:
        source = path.read_text(encoding="utf-8", errors="replace")[:LONGEST]
        if source.strip():
            documents.append((key, source))
            length += len(source)
        if length >= characters:
            break
    return documents


def split() -> tuple[list[Document], list[Document]]:
    """The training documents and the held-out documents."""
    documents = library_files()
    return (
        [document for document in documents if not is_held_out(document[0])],
        [document for document in documents if is_held_out(document[0])],
    )


def excerpts(
    documents: list[Document], per_document: int, prompt_chars: int, chars: int, seed: int
) -> list[dict[str, str]]:
    """Excerpts of the documents, each with an `id`, a `prompt` and a `completion`.

    An excerpt starts at a function, a class or a method, and its prompt ends at the end of a
    line. Excerpts of one document do not overlap.

    Args:
        documents: the documents to cut from.
        per_document: most excerpts of a document.
        prompt_chars: least characters of a prompt.
        chars: characters of prompt and completion together.
        seed: of the random choice among starts.
    """
    generator = random.Random(seed)
    records = []
    for path, source in documents:
        starts = [
            m.start() for m in re.finditer(r"^(?: {4})?(?:def |class |@)", source, re.MULTILINE)
        ]
        generator.shuffle(starts)
        chosen: list[int] = []
        for start in starts:
            is_apart = all(abs(start - other) >= chars for other in chosen)
            if is_apart and start + chars <= len(source) and len(chosen) < per_document:
                chosen.append(start)
        for start in sorted(chosen):
            prompt_end = source.index("\n", start + prompt_chars) + 1
            line_number = source.count("\n", 0, start) + 1
            records.append(
                {
                    "id": f"{path}:{line_number}",
                    "prompt": source[start:prompt_end],
                    "completion": source[prompt_end : start + chars],
                }
            )
    return records
