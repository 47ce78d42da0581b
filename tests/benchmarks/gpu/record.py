"""A part's record, written as it runs, so that a part that is stopped loses no results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sequoia_opt.engine.pair import Pair
from sequoia_opt.files.documents import plain
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.solve_options import ANY_TREE
from sequoia_opt.repository import paths, tree_provenance

# The settings of `solve-all`, so that it takes these trees for its own.
SOLVE_SETTINGS = {"batch": 1, "shape": ANY_TREE}


@dataclass
class Record:
    """The stages and numbers of a part, in a file that is rewritten at each change.

    Attributes:
        path: the JSON file.
        entries: folder for profiles and trees, laid out like the repository's root.
        values: the numbers so far, by name.
        stages: seconds of each finished stage.
        under_way: the current stage; empty between stages.
    """

    path: Path
    entries: Path
    values: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    under_way: str = ""
    _began: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print and record the start of a stage, and record its duration."""
        started, self.under_way = time.monotonic(), name
        print(f"{started - self._began:6.1f} s  {name}", flush=True)
        self._save()
        yield
        self.stages[name], self.under_way = round(time.monotonic() - started, 2), ""
        self._save()

    def note(self, **values: Any) -> None:
        """Record and print numbers by name."""
        self.values |= values
        for name, value in values.items():
            print(f"          {name}: {value}", flush=True)
        self._save()

    def save_profile(self, pair: Pair, profile: LatencyProfile) -> tuple[Path, LatencyProfile]:
        """Save a pair's profile as an entry.

        Returns:
            path: the entry's.
            saved: the profile with the file's rounded numbers. A plan must be solved from these,
                or `solve-all`, which reads the file, may find another one.
        """
        name = paths.profile_path(
            profile.hardware["slug"],
            pair.target_name,
            pair.draft_name,
            pair.dtype,
            bool(pair.compiled),
            pair.random_weights,
            pair.offload,
        )
        self.note(engine=profile.engine, disturbed=profile.disturbed or "nothing")
        path = self._entry(name, profile)
        return path, LatencyProfile.load(path)

    def save_acceptance(self, acceptance: Acceptance) -> tuple[Path, Acceptance]:
        """Save acceptance rates as an entry; returns its path and what it holds, rounded."""
        greedy = acceptance.temperature == 0
        name = paths.acceptance_path(
            acceptance.target,
            acceptance.draft,
            acceptance.dataset,
            "greedy" if greedy else acceptance.verifier,
            acceptance.temperature,
            acceptance.top_p,
        )
        path = self._entry(name, acceptance)
        return path, Acceptance.load(path)

    def save_plan(self, plan: Plan, profile: Path, acceptance: Path) -> Path:
        """Save a plan's tree as an entry and record its predictions; returns its path."""
        choice = plan.choice
        self.note(
            nodes=choice.tree.largest_size,
            depth=choice.tree.largest_depth,
            predicted_tokens=choice.tokens[0],
            predicted_step_ms=choice.step_ms[0],
            predicted_plain_ms=choice.plain_ms[0],
            predicted_speedup=choice.speedup[0],
        )
        slug = str(plan.profile.hardware["slug"])
        tree = tree_provenance.planned_tree(
            plan, tree_provenance.Source(profile, acceptance), SOLVE_SETTINGS
        )
        return self._entry(paths.tree_path(slug, profile, plan.acceptance), tree)

    def _entry(self, name: Path, document: Any) -> Path:
        path = self.entries / name
        path.parent.mkdir(parents=True, exist_ok=True)
        document.save(path)
        return path

    def _save(self) -> None:
        document = {"values": self.values, "stages": self.stages, "under_way": self.under_way}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(plain(document)))
        os.replace(partial, self.path)
