"""The token tree: its structure, the quantities that follow from it, and its file.

Knows nothing of probabilities or times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document, write_document
from sequoia_opt.files.fields import Fields, shown
from sequoia_opt.plan.policy import Policy

FORMAT, VERSION, ADAPTIVE_VERSION, LOOKUP_VERSION = "sequoia-opt/tree", 1, 2, 3
STRUCTURE = ("format", "version", "size", "depth", "parents", "ranks", "policy")

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class TokenTree:
    """A tree of speculated tokens; node 0, the root, is the last committed token.

    Nodes are in breadth-first order, siblings in rank order and next to each other.

    Attributes:
        parents: each node's parent; -1 for the root.
        ranks: each node's place among its siblings, from 1; 0 for the root.
        metadata: all other fields of the tree's file (prediction, models, provenance).
        policy: of an adaptive plan, how each step's tree grows; the nodes are then those of the
            best tree without a policy, for engines that cannot grow one.

    Raises:
        SequoiaError: the lists do not describe such a tree.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    policy: Policy | None = None

    def __init__(
        self,
        parents: Sequence[int],
        ranks: Sequence[int],
        metadata: dict[str, Any] | None = None,
        policy: Policy | None = None,
    ) -> None:
        object.__setattr__(self, "parents", tuple(int(p) for p in parents))
        object.__setattr__(self, "ranks", tuple(int(r) for r in ranks))
        object.__setattr__(self, "metadata", dict(metadata or {}))
        object.__setattr__(self, "policy", policy)
        self._check()

    def _check(self) -> None:
        parents, ranks = self.parents, self.ranks
        if len(parents) != len(ranks):
            raise SequoiaError(f"tree: {len(parents)} parents but {len(ranks)} ranks")
        if not parents or parents[0] != -1 or ranks[0] != 0:
            raise SequoiaError("tree: node 0 must be the root, with parent -1 and rank 0")
        for node in range(1, len(parents)):
            parent, rank = parents[node], ranks[node]
            if not 0 <= parent < node:
                raise SequoiaError(
                    f"tree: parents[{node}]: found {parent}, expected 0 to {node - 1} "
                    "(a parent comes before its children)"
                )
            if parent < parents[node - 1]:
                raise SequoiaError(f"tree: parents[{node}]: nodes are not in breadth-first order")
            next_rank = ranks[node - 1] + 1 if parent == parents[node - 1] else 1
            if rank != next_rank:
                raise SequoiaError(
                    f"tree: ranks[{node}]: found {rank}, expected {next_rank} "
                    "(the children of a node have ranks 1, 2, 3, …)"
                )

    @classmethod
    def from_any_order(cls, parents: Sequence[int], ranks: Sequence[int]) -> TokenTree:
        """The same tree with its nodes put into breadth-first order.

        Args:
            parents: each node's parent, -1 for the root; any order in which the root is first.
            ranks: each node's rank among its siblings.
        """
        children = _child_lists(parents)
        order = [0]
        for node in order:
            order.extend(sorted(children[node], key=ranks.__getitem__))
        position = {node: i for i, node in enumerate(order)}
        return cls(
            [-1] + [position[parents[node]] for node in order[1:]], [ranks[node] for node in order]
        )

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> TokenTree:
        """The tree whose nodes are the given paths of ranks and all their prefixes.

        Args:
            paths: sequences of ranks from the root down, as Medusa and EAGLE write trees
                (they count ranks from 0; here they count from 1).

        Raises:
            SequoiaError: a path lacks an elder sibling.
        """
        prefixes = {()} | {tuple(path[:end]) for path in paths for end in range(1, len(path) + 1)}
        ordered = sorted(prefixes, key=lambda path: (len(path), path))
        position = {path: i for i, path in enumerate(ordered)}
        for path in ordered[1:]:
            if path[-1] > 1 and (*path[:-1], path[-1] - 1) not in position:
                raise SequoiaError(f"tree: path {list(path)} has no elder sibling")
        return cls(
            [-1] + [position[path[:-1]] for path in ordered[1:]],
            [0] + [path[-1] for path in ordered[1:]],
        )

    @property
    def size(self) -> int:
        """Number of nodes, the root included."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Number of edges on the longest path from the root."""
        return int(self.depths[-1])

    @cached_property
    def depths(self) -> IntArray:
        """Depth of each node."""
        depths = np.zeros(self.size, dtype=np.int64)
        for node in range(1, self.size):
            depths[node] = depths[self.parents[node]] + 1
        return depths

    @cached_property
    def levels(self) -> list[list[int]]:
        """The nodes at each depth, the root's level first."""
        levels: list[list[int]] = [[] for _ in range(self.depth + 1)]
        for node, depth in enumerate(self.depths):
            levels[depth].append(node)
        return levels

    @cached_property
    def children(self) -> list[list[int]]:
        """The children of each node, in the order of their ranks."""
        return _child_lists(self.parents)

    @cached_property
    def child_counts(self) -> IntArray:
        """Number of children of each node."""
        return np.bincount(np.array(self.parents[1:], dtype=np.int64), minlength=self.size)

    @cached_property
    def leaves(self) -> int:
        """Number of nodes without children."""
        return int((self.child_counts == 0).sum())

    @property
    def largest_size(self) -> int:
        """The most nodes that a step verifies."""
        if self.policy is None:
            return self.size
        return max(policy.largest_size for policy in self.policy.parts)

    @property
    def most_slots(self) -> int:
        """The most nodes that a step puts into the target's cache or the draft's."""
        if self.policy is None:
            return self.size
        return max(self.largest_size, self.policy.most_drafted)

    @property
    def most_leaves(self) -> int:
        """The most leaves of a step's tree, drafted nodes included."""
        if self.policy is None:
            return self.leaves
        return max(self.largest_size - 1, self.policy.most_drafted_leaves)

    @property
    def largest_depth(self) -> int:
        """The most levels below the root of a step's tree."""
        if self.policy is None:
            return self.depth
        return max(policy.depth for policy in self.policy.parts)

    @property
    def static(self) -> TokenTree:
        """The tree without a policy, which engines run that cannot grow one."""
        if self.policy is None:
            return self
        return TokenTree(self.parents, self.ranks, self.metadata)

    @property
    def speculates(self) -> bool:
        """Whether steps draft anything."""
        return self.size > 1 or self.policy is not None

    @property
    def drafts(self) -> bool:
        """Whether the draft runs in any step, other than a lookup before it."""
        return self.speculates and (self.policy is None or self.policy.drafts)

    @property
    def looks_up_first(self) -> bool:
        """Whether steps ask a lookup before a model drafts."""
        return self.policy is not None and self.policy.lookup is not None

    @cached_property
    def internal_levels(self) -> list[list[int]]:
        """The nodes with children at each depth; one list for each level that has any."""
        levels = ([v for v in level if self.child_counts[v]] for level in self.levels)
        return [level for level in levels if level]

    @cached_property
    def ancestor_mask(self) -> BoolArray:
        """[size, size]: row v marks the nodes that v attends to, its ancestors and itself."""
        mask = np.eye(self.size, dtype=np.bool_)
        for node in range(1, self.size):
            mask[node] |= mask[self.parents[node]]
        return mask

    @property
    def fingerprint(self) -> str:
        """Hash of the structure and the policy, 16 hexadecimal digits."""
        parts: tuple[Any, ...] = (self.parents, self.ranks)
        if self.policy is not None:
            parts = (*parts, self.policy, *filter(None, [self.policy.lookup]))
        content = repr(parts).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def predicted_tokens(self) -> float | None:
        """Predicted tokens per step: by replay if the tree was replayed; None if not predicted."""
        tokens = self.metadata.get("replayed_tokens", self.metadata.get("expected_tokens"))
        return None if tokens is None else float(tokens)

    @property
    def _version(self) -> int:
        """The oldest version of the format that can say what the file says."""
        if self.policy is None:
            return VERSION
        return ADAPTIVE_VERSION if self.policy.lookup is None else LOOKUP_VERSION

    def document(self) -> dict[str, Any]:
        """The tree's file as a mapping."""
        return {
            "format": FORMAT,
            "version": self._version,
            "size": self.size,
            "depth": self.depth,
            "parents": list(self.parents),
            "ranks": list(self.ranks),
            **({} if self.policy is None else {"policy": self.policy.document()}),
            **self.metadata,
        }

    def save(self, path: str | Path) -> None:
        """Write the tree's JSON file atomically."""
        write_document(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> TokenTree:
        """Read a tree's JSON file.

        Raises:
            SequoiaError: the file is missing or malformed, or does not hold a tree.
        """
        document = read_document(path, FORMAT, LOOKUP_VERSION)
        fields = Fields(document, str(path))
        parents, ranks = fields.integers("parents", minimum=-1), fields.integers("ranks")
        metadata = {key: value for key, value in document.items() if key not in STRUCTURE}
        policy = None
        if document["version"] >= ADAPTIVE_VERSION:
            policy = Policy.from_fields(fields.section("policy"))
        try:
            tree = cls(parents, ranks, metadata, policy)
        except SequoiaError as error:
            raise SequoiaError(f"{path}: {error}") from None
        _check_metadata(fields)
        for key in ("size", "depth"):
            if document.get(key, getattr(tree, key)) != getattr(tree, key):
                raise SequoiaError(
                    f"{path}: {key}: found {shown(document[key])}, "
                    f"expected {getattr(tree, key)} (what parents and ranks say)"
                )
        return tree


def _check_metadata(fields: Fields) -> None:
    """Check the metadata that this program reads; numbers that were written as text are converted.

    Raises:
        SequoiaError: a field has the wrong type or is out of range.
    """
    metadata = fields.mapping
    for key in ("temperature", "expected_tokens", "replayed_tokens", "context"):
        if key in metadata:
            metadata[key] = fields.number(key, 0.0)
    if "top_p" in metadata:
        metadata["top_p"] = fields.number("top_p", 0.0, 1.0)
    if "top_k" in metadata:
        metadata["top_k"] = fields.integer("top_k")
    if "min_p" in metadata:
        metadata["min_p"] = fields.number("min_p", 0.0, 1.0)
    for key in ("target", "draft", "draft_path", "draft_passes", "verifier"):
        fields.text(key, "")
    for key in ("hardware", "engine", "provenance", "adaptive", "corpus"):
        if key in metadata:
            fields.section(key)
    engine = fields.section("engine") if "engine" in metadata else Fields({}, "")
    for key, minimum in (("world_size", 1), ("memory_budget", 0), ("threads", 1)):
        if engine.mapping.get(key) is not None:
            engine.integer(key, minimum)
    if "predicted" in metadata:
        predicted = fields.section("predicted")
        for key in ("step_ms", "tokens_per_second", "speedup"):
            predicted.mapping[key] = predicted.number(key, 0.0)
        for key in ("tokens_low", "tokens_high", "speedup_low", "speedup_high"):
            if key in predicted.mapping:
                predicted.mapping[key] = predicted.number(key, 0.0)


def _child_lists(parents: Sequence[int]) -> list[list[int]]:
    """The children of each node, in the nodes' order; node 0 is the root."""
    children: list[list[int]] = [[] for _ in parents]
    for node in range(1, len(parents)):
        children[parents[node]].append(node)
    return children


AUTOREGRESSIVE = TokenTree([-1], [0])
"""The one-node tree: plain decoding, no speculation."""
