from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sequoia_opt import demo, paths
from sequoia_opt.plan.acceptance import Acceptance


def test_of_files_of_one_age_those_of_the_plain_engine_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fresh checkout; but what was made last comes first."""
    monkeypatch.chdir(tmp_path)
    rates = Acceptance(np.array([0.5]), dataset=demo.DATASET_NAME, verifier="greedy")
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    profiles = [paths.profile_path(*names, compiled=compiled) for compiled in (True, False)]
    trees = [paths.tree_path("here", profile, rates) for profile in profiles]
    for path in (*profiles, *trees):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1, 1))
    assert paths.bundled_profile() == profiles[1]
    assert paths.bundled_tree(0.0) == trees[1]
    assert paths.bundled_tree(0.0, compiled=True) == trees[0]
    for path in (profiles[0], trees[0]):
        os.utime(path, (2, 2))
    assert paths.bundled_profile() == profiles[0]
    assert paths.bundled_tree(0.0) == trees[0]
