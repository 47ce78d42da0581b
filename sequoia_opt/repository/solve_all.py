"""Every measured profile with every acceptance of the same pair: solve them all, or check.

What a CI job runs for the machines it owns: the trees in the repository are what their inputs
give, or it says which are not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sequoia_opt import __version__
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_text
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.names import content_fingerprint
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import FORMAT, TokenTree
from sequoia_opt.repository import paths
from sequoia_opt.repository.outputs import Maker

THIS = "this tree"
TOLERANCE = 1e-3  # relative: other processors add up in another order


@dataclass(frozen=True)
class Source:
    """Where a tree comes from, as its provenance says it."""

    profile: Path
    acceptance: Path


def planned_tree(plan: Plan, source: Source, options: dict[str, Any]) -> TokenTree:
    """The plan's tree with its provenance: both inputs, the solver and what was asked of it."""
    tree = plan.tree
    read_from = _read_from(plan)
    provenance: dict[str, Any] = {
        kind: {"file": path.name, "fingerprint": content_fingerprint(path), **read_from[kind]}
        for kind, path in (("profile", source.profile), ("acceptance", source.acceptance))
    } | {
        "solver": plan.method,
        "options": {key: value for key, value in options.items() if value is not None},
        "sequoia_opt": __version__,
    }
    return TokenTree(tree.parents, tree.ranks, tree.metadata | {"provenance": provenance})


def _read_from(plan: Plan) -> dict[str, dict[str, Any]]:
    """Which models and dataset both inputs are of, where their names alone do not say it."""
    parts = {"profile": plan.profile.document(), "acceptance": plan.acceptance.document()}
    said = {}
    for kind, document in parts.items():
        origins = Maker.of(document).origins
        said[kind] = {
            what: {"source": origin.source, "fingerprint": origin.fingerprint}
            for what, origin in origins.items()
            if origin.source is not None and (kind == "profile") == (what != "dataset")
        }
    return {kind: {"from": origins} if origins else {} for kind, origins in said.items()}


def of_one_pair(profile: LatencyProfile, acceptance: Acceptance) -> bool:
    """Whether both were measured with the same models, as far as they say so."""
    here, there = (Maker.of(part.document()).origins for part in (profile, acceptance))
    return all(here[role].is_like(there[role]) for role in ("target", "draft"))


def plan_again(tree: TokenTree, profile: LatencyProfile, acceptance: Acceptance) -> Plan:
    """The plan that a tree was chosen in: solved as its provenance says, the tree itself given.

    Raises:
        SequoiaError: the profile cannot price the tree, or options that cannot be.
    """
    provenance = tree.metadata.get("provenance", {})
    asked = Fields(provenance.get("options", {}), "tree: provenance: options")
    known: dict[str, Any] = {
        name: asked.integer(name)
        for name in ("max_size", "max_depth", "size", "depth", "batch", "max_width")
        if name in asked.mapping
    }
    if "shape" in asked.mapping:
        known["shape"] = asked.text("shape")
    if "confidence" in asked.mapping:
        known["confidence"] = asked.number("confidence", 0.0, 1.0)
    if "context" in asked.mapping:
        weights = asked.section("context")
        try:
            known["context"] = {
                float(length): weights.number(length, 0.0) for length in weights.mapping
            }
        except ValueError:
            raise asked.fail("context", "numbers of cached tokens and their weights") from None
    return solve(profile, acceptance, **known, given={THIS: tree})


def solve_all(
    root: Path,
    options: dict[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
    settle: Callable[[Path, TokenTree], Path] = lambda path, tree: path,
) -> Iterator[tuple[Path, TokenTree]]:
    """Each tree and the file it belongs in, by path.

    Args:
        root: folder that holds `profiles`.
        options: of `solve`, the same for all.
        settle: the file that a tree belongs in instead of its usual one.

    Raises:
        SequoiaError: no profile has an acceptance of its pair, or a file is malformed.
    """
    profiles = [
        (path, LatencyProfile.load(path))
        for path in sorted(root.glob("profiles/*/*.yaml"))
        if path.parent.name != paths.ACCEPTANCE
    ]
    rates = [
        (path, Acceptance.load(path))
        for path in sorted(root.glob(f"profiles/{paths.ACCEPTANCE}/*.yaml"))
    ]
    jobs = [
        (profile_path, profile, rates_path, acceptance)
        for profile_path, profile in profiles
        for rates_path, acceptance in rates
        if of_one_pair(profile, acceptance)
    ]
    if not jobs:
        raise SequoiaError(
            f"{root / 'profiles'}: no profile has an acceptance of the same pair; run "
            "`sequoia-opt profile` and `sequoia-opt estimate` first"
        )
    taken: dict[Path, Path] = {}
    for done, (profile_path, profile, rates_path, acceptance) in enumerate(jobs, start=1):
        try:
            plan = solve(profile, acceptance, **options)
        except SequoiaError as error:
            raise SequoiaError(f"{profile_path} with {rates_path.name}: {error}") from None
        slug = str(profile.hardware.get("slug", "unknown"))
        path = root / paths.tree_path(slug, profile_path, acceptance, rates_path)
        if path in taken:
            raise SequoiaError(
                f"{rates_path} and {taken[path].name} are of the same dataset, verifier and "
                "temperature; only one of them can have the tree"
            )
        taken[path] = rates_path
        tree = planned_tree(plan, Source(profile_path, rates_path), options)
        yield settle(path, tree), tree
        progress(done, len(jobs))


def left_over(root: Path, solved: Collection[Path]) -> list[str]:
    """One line for each other tree under `root` that was solved from what is here no more.

    Trees that were written or imported by hand have no provenance, and are left alone.
    """
    here = {(path.name, content_fingerprint(path)) for path in root.glob("profiles/*/*.yaml")}
    lines = []
    for path in sorted(set(root.glob("trees/*/*.json")) - set(solved)):
        if FORMAT not in read_text(path):
            continue  # not ours
        try:
            provenance = TokenTree.load(path).metadata.get("provenance", {})
        except SequoiaError as error:
            lines.append(str(error))
            continue
        for kind in ("profile", "acceptance"):
            of = provenance.get(kind)
            if isinstance(of, dict) and (of.get("file"), of.get("fingerprint")) not in here:
                lines.append(f"{path}: the {kind} that it was solved from is not here")
                break
    return lines


def difference(path: Path, tree: TokenTree) -> str | None:
    """How the file at `path` differs from `tree`, in one line; None if it does not."""
    try:
        found = TokenTree.load(path)
    except SequoiaError as error:
        return str(error)
    if found != tree:
        return (
            f"{path}: found {found.size} nodes, {found.depth} deep, expected {tree.size}, "
            f"{tree.depth} deep" + ("" if found.size != tree.size else ", of another structure")
        )
    place = _unlike(_compared(found), _compared(tree))
    return None if place is None else f"{path}: {place}"


def _compared(tree: TokenTree) -> dict[str, Any]:
    """What must be the same: all but the program's version."""
    provenance = dict(tree.metadata.get("provenance", {}))
    provenance.pop("sequoia_opt", None)
    return tree.metadata | {"provenance": provenance}


def _unlike(found: Any, expected: Any, place: str = "") -> str | None:
    """The first place where two documents differ by more than rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in {**expected, **found}:
            where = f"{place}.{key}" if place else str(key)
            if key not in found or key not in expected:
                return f"{where}: {'missing' if key not in found else 'not expected'}"
            if unlike := _unlike(found[key], expected[key], where):
                return unlike
        return None
    numbers = (int, float)
    if isinstance(expected, numbers) and isinstance(found, numbers):
        if abs(found - expected) <= TOLERANCE * max(abs(found), abs(expected)):
            return None
    elif found == expected:
        return None
    return f"{place}: found {found!r}, expected {expected!r}"
