"""Solves every profile with every acceptance of its pair, or checks the trees in a repository.

A CI job runs this for the machines it owns: either the committed trees are what their inputs
give, or it names those that are not. Knows the repository's layout. Knows nothing of how a tree
is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.names import content_fingerprint
from sequoia_opt.files.reading import read_text
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.recorded import recording_of
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import FORMAT, TokenTree
from sequoia_opt.repository import paths
from sequoia_opt.repository.tree_provenance import Source, of_one_pair, planned_tree

TOLERANCE = 1e-3  # relative; other processors add numbers up in another order


def solve_all(
    root: Path,
    options: dict[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
    settle: Callable[[Path, TokenTree], Path] = lambda path, tree: path,
) -> Iterator[tuple[Path, TokenTree]]:
    """Solve each profile with each acceptance of its pair: the trees with their paths, by file.

    Args:
        root: folder that holds `profiles`.
        options: of `solve`, the same for all.
        progress: called with the number of trees solved so far and of all.
        settle: maps a tree's default path to the path that it belongs at.

    Raises:
        SequoiaError: no profile has an acceptance of its pair, or a file is malformed.
    """
    profiles = [
        (path, LatencyProfile.load(path))
        for path in sorted(root.glob("profiles/*/*.yaml"))
        if path.parent.name != paths.ACCEPTANCE
    ]
    acceptances = [
        (path, Acceptance.load(path))
        for path in sorted(root.glob(f"profiles/{paths.ACCEPTANCE}/*.yaml"))
    ]
    recordings = {} if options.get("static") else _recordings(acceptances)
    jobs = [
        (profile_path, profile, acceptance_path, acceptance)
        for profile_path, profile in profiles
        for acceptance_path, acceptance in acceptances
        if of_one_pair(profile, acceptance)
    ]
    if not jobs:
        raise SequoiaError(
            f"{root / 'profiles'}: no profile has an acceptance of the same pair; run "
            "`sequoia-opt profile` and `sequoia-opt estimate` first"
        )
    solved: dict[Path, Path] = {}  # each tree's acceptance file
    for done, (profile_path, profile, acceptance_path, acceptance) in enumerate(jobs, start=1):
        try:
            plan = solve(profile, acceptance, **options, recording=recordings.get(acceptance_path))
        except SequoiaError as error:
            raise SequoiaError(f"{profile_path} with {acceptance_path.name}: {error}") from None
        hardware = str(profile.hardware.get("slug", "unknown"))
        path = root / paths.tree_path(hardware, profile_path, acceptance, acceptance_path)
        if path in solved:
            raise SequoiaError(
                f"{acceptance_path} and {solved[path].name} have the same dataset, verifier and "
                f"temperature, so both would have the tree {path.name}; remove one of them"
            )
        solved[path] = acceptance_path
        tree = planned_tree(plan, Source(profile_path, acceptance_path), options)
        yield settle(path, tree), tree
        progress(done, len(jobs))


def _recordings(acceptances: Iterable[tuple[Path, Acceptance]]) -> dict[Path, Recording]:
    """The recorded drafts beside acceptance files, by the acceptance file."""
    recordings = ((path, recording_of(acceptance, path)) for path, acceptance in acceptances)
    return {path: recording for path, recording in recordings if recording is not None}


def left_over(root: Path, solved: Collection[Path]) -> list[str]:
    """One line for each other tree under `root` whose profile or acceptance no longer exists.

    Trees that were written or imported by hand have no provenance and are not listed.
    """
    inputs = {(path.name, content_fingerprint(path)) for path in root.glob("profiles/*/*.yaml")}
    lines = []
    for path in sorted(set(root.glob("trees/*/*.json")) - set(solved)):
        if FORMAT not in read_text(path):
            continue  # not a tree of this program
        try:
            provenance = TokenTree.load(path).metadata.get("provenance", {})
        except SequoiaError as error:
            lines.append(str(error))
            continue
        for kind in ("profile", "acceptance"):
            source = provenance.get(kind)
            if not isinstance(source, dict):
                continue
            if (source.get("file"), source.get("fingerprint")) not in inputs:
                lines.append(f"{path}: the {kind} that it was solved from is not here")
                break
    return lines


def difference(path: Path, tree: TokenTree) -> str | None:
    """How the file at `path` differs from `tree`, in one line; None if it does not."""
    try:
        written = TokenTree.load(path)
    except SequoiaError as error:
        return str(error)
    if written.policy != tree.policy:
        return f"{path}: policy: found another one than its inputs give"
    if written != tree:
        line = (
            f"{path}: found {written.size} nodes, depth {written.depth}, expected {tree.size}, "
            f"depth {tree.depth}"
        )
        return line if written.size != tree.size else f"{line}, of another structure"
    unlike = _first_unlike(_compared(written), _compared(tree))
    return None if unlike is None else f"{path}: {unlike}"


def _compared(tree: TokenTree) -> dict[str, Any]:
    """The tree's metadata without the program's version and the name of its method, which older
    files spell in another way."""
    provenance = dict(tree.metadata.get("provenance", {}))
    for key in ("sequoia_opt", "solver"):
        provenance.pop(key, None)
    return tree.metadata | {"provenance": provenance}


def _first_unlike(actual: Any, expected: Any, field: str = "") -> str | None:
    """The first field in which two documents differ by more than rounding, in words."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key in {**expected, **actual}:
            name = f"{field}.{key}" if field else str(key)
            if key not in actual or key not in expected:
                return f"{name}: {'missing' if key not in actual else 'not expected'}"
            if unlike := _first_unlike(actual[key], expected[key], name):
                return unlike
        return None
    numbers = (int, float)
    if isinstance(expected, numbers) and isinstance(actual, numbers):
        if abs(actual - expected) <= TOLERANCE * max(abs(actual), abs(expected)):
            return None
    elif actual == expected:
        return None
    return f"{field}: found {actual!r}, expected {expected!r}"
