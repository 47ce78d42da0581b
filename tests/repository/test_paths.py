from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sequoia_opt import demo
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.repository import paths


def test_of_files_of_the_same_age_those_without_compiling_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fresh checkout; otherwise the newest file is the default."""
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


def test_a_machines_own_trees_come_before_newer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rates = Acceptance(np.array([0.5]), dataset=demo.DATASET_NAME, verifier="greedy")
    trees = {}
    for age, machine in enumerate(("here", "there")):
        profile = paths.profile_path(machine, demo.TARGET_NAME, demo.DRAFT_NAME, "float32")
        trees[machine] = paths.tree_path(machine, profile, rates)
        trees[machine].parent.mkdir(parents=True)
        trees[machine].touch()
        os.utime(trees[machine], (age, age))
    assert paths.bundled_tree(0.0) == trees["there"]
    assert paths.bundled_tree(0.0, hardware="elsewhere") == trees["there"]
    assert paths.bundled_tree(0.0, hardware="here") == trees["here"]


def test_files_of_an_offloaded_target_are_never_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    plain, disk = (paths.profile_path(*names, offload=offload) for offload in ("none", "disk"))
    assert disk.name.endswith("--float32--offload-disk.yaml")
    for path in (plain, disk):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.utime(plain, (1, 1))
    assert paths.bundled_profile() == plain


def test_a_tree_is_found_for_the_engine_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer files for the other engine are no default; `solve` takes the newest profile of all."""
    monkeypatch.chdir(tmp_path)
    rates = Acceptance(np.array([0.5]), dataset=demo.DATASET_NAME, verifier="greedy")
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    profiles = {
        engine: paths.profile_path(*names, engine=engine) for engine in ("torch", "llama.cpp")
    }
    trees = {engine: paths.tree_path("here", path, rates) for engine, path in profiles.items()}
    for age, path in enumerate((*profiles.values(), *trees.values())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (age, age))
    assert paths.bundled_tree(0.0) == trees["torch"]
    assert paths.bundled_tree(0.0, engine="llama.cpp") == trees["llama.cpp"]
    assert paths.bundled_profile() == profiles["llama.cpp"]
