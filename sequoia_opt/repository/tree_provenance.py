"""A tree with the inputs and options that it was solved from, and the plan solved again from them.

Knows what a tree's file says of its origin. Knows nothing of paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sequoia_opt import __version__
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.names import content_fingerprint
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository.provenance import Provenance

THIS = "this tree"  # its name among a plan's candidates


@dataclass(frozen=True)
class Source:
    """The files that a tree was solved from."""

    profile: Path
    acceptance: Path


def planned_tree(plan: Plan, source: Source, options: dict[str, Any]) -> TokenTree:
    """The plan's tree with its provenance: both input files, the solver and its options."""
    tree = plan.tree
    origins = _origins(plan)
    provenance: dict[str, Any] = {
        kind: {"file": path.name, "fingerprint": content_fingerprint(path), **origins[kind]}
        for kind, path in (("profile", source.profile), ("acceptance", source.acceptance))
    } | {
        "solver": plan.method,
        "options": {key: value for key, value in options.items() if value is not None},
        "sequoia_opt": __version__,
    }
    if plan.profile.date:
        provenance["profile"]["date"] = plan.profile.date
    metadata = tree.metadata | {"provenance": provenance}
    return TokenTree(tree.parents, tree.ranks, metadata, tree.policy)


def _origins(plan: Plan) -> dict[str, dict[str, Any]]:
    """The models of the profile and the dataset of the acceptance, where a name is not enough."""
    parts = {
        "profile": (plan.profile.document(), ("target", "draft")),
        "acceptance": (plan.acceptance.document(), ("dataset",)),
    }
    stated: dict[str, dict[str, Any]] = {}
    for kind, (document, names) in parts.items():
        origins = {
            name: {"source": origin.source, "fingerprint": origin.fingerprint}
            for name, origin in Provenance.of(document).origins.items()
            if origin.source is not None and name in names
        }
        stated[kind] = {"from": origins} if origins else {}
    return stated


def of_one_pair(profile: LatencyProfile, acceptance: Acceptance) -> bool:
    """Whether both were measured with the same models, as far as they say."""
    first, second = (Provenance.of(part.document()).origins for part in (profile, acceptance))
    return all(first[role].is_like(second[role]) for role in ("target", "draft"))


def plan_again(tree: TokenTree, profile: LatencyProfile, acceptance: Acceptance) -> Plan:
    """The plan that a tree was chosen in: solved with the options that the tree names.

    The tree itself is a candidate too, under the name `THIS`; of an adaptive plan it is the tree
    for engines that cannot grow one.

    Raises:
        SequoiaError: the profile does not cover the tree, or an option is invalid.
    """
    provenance = tree.metadata.get("provenance", {})
    fields = Fields(provenance.get("options", {}), "tree: provenance: options")
    options: dict[str, Any] = {
        name: fields.integer(name)
        for name in ("max_size", "max_depth", "size", "depth", "batch", "max_width")
        if name in fields.mapping
    }
    if "shape" in fields.mapping:
        options["shape"] = fields.text("shape")
    if "confidence" in fields.mapping:
        options["confidence"] = fields.number("confidence", 0.0, 1.0)
    if "context" in fields.mapping:
        weights = fields.section("context")
        try:
            options["context"] = {
                float(length): weights.number(length, 0.0) for length in weights.mapping
            }
        except ValueError:
            raise fields.fail("context", "context lengths and their weights") from None
    return solve(profile, acceptance, **options, given={THIS: TokenTree(tree.parents, tree.ranks)})
