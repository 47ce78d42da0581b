from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt import demo
from sequoia_opt.files.documents import write_document
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.repository import paths


def write(path: Path, date: str = "") -> None:
    """A profile, or a tree that was solved from one, of that date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"date": date} if date else {}
    if path.suffix == ".json":
        document = {"date": "2099-01-01", "provenance": {"profile": document}}
    write_document(path, document or {"format": "none"})


def tree_of(profile: Path) -> Path:
    """The path of the tree that the greedy rates give with a profile."""
    rates = Acceptance(np.array([0.5]), dataset=demo.DATASET_NAME, verifier="greedy")
    return paths.tree_path(profile.parent.name, profile, rates)


def test_of_files_of_the_same_date_those_without_compiling_are_the_default() -> None:
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    profiles = [paths.profile_path(*names, compiled=compiled) for compiled in (True, False)]
    trees = [tree_of(profile) for profile in profiles]
    for dates in (("", ""), ("2026-01-01", "2026-01-01")):
        for files in (profiles, trees):
            for path, date in zip(files, dates, strict=True):
                write(path, date)
        assert paths.bundled_profile() == profiles[1]
        assert paths.bundled_tree(0.0) == trees[1]
        assert paths.bundled_tree(0.0, compiled=True) == trees[0]


def test_the_newest_profile_and_what_was_solved_from_it_are_the_default() -> None:
    """By the dates that they state: a checkout gives its files any time and order."""
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    newest, older, undated = (
        paths.profile_path(*names, compiled=True),
        paths.profile_path(*names),
        paths.profile_path("there", *names[1:]),
    )
    for files in ((newest, older, undated), tuple(map(tree_of, (newest, older, undated)))):
        for age, (path, date) in enumerate(
            zip(files, ("2026-02-01T08:00:00+00:00", "2026-01-31T09:00:00+00:00", ""), strict=True)
        ):
            write(path, date)
            os.utime(path, (age, age))
    assert paths.bundled_profile() == newest
    assert paths.bundled_tree(0.0) == tree_of(newest)
    assert paths.bundled_tree(0.0, hardware="there") == tree_of(undated)
    tree_of(newest).unlink()
    assert paths.bundled_tree(0.0) == tree_of(older)


def test_a_file_that_cannot_be_read_is_the_oldest() -> None:
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    broken, whole = paths.profile_path(*names), paths.profile_path(*names, compiled=True)
    write(whole, "2026-01-01")
    broken.write_text("a: [1")
    assert paths.bundled_profile() == whole


def test_a_machines_own_trees_come_before_newer_ones() -> None:
    trees = {}
    for age, machine in enumerate(("here", "there"), start=1):
        profile = paths.profile_path(machine, demo.TARGET_NAME, demo.DRAFT_NAME, "float32")
        trees[machine] = tree_of(profile)
        write(trees[machine], f"2026-01-0{age}")
    assert paths.bundled_tree(0.0) == trees["there"]
    assert paths.bundled_tree(0.0, hardware="elsewhere") == trees["there"]
    assert paths.bundled_tree(0.0, hardware="here") == trees["here"]


def test_files_of_an_offloaded_target_are_never_the_default() -> None:
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    plain, disk = (paths.profile_path(*names, offload=offload) for offload in ("none", "disk"))
    assert disk.name.endswith("--float32--offload-disk.yaml")
    write(plain, "2026-01-01")
    write(disk, "2026-01-02")
    assert paths.bundled_profile() == plain


def test_a_tree_is_found_for_the_engine_that_runs_it() -> None:
    """Newer files for the other engine are no default; `solve` takes the newest profile of all."""
    names = "here", demo.TARGET_NAME, demo.DRAFT_NAME, "float32"
    profiles = {
        engine: paths.profile_path(*names, engine=engine) for engine in ("torch", "llama.cpp")
    }
    trees = {engine: tree_of(path) for engine, path in profiles.items()}
    for age, engine in enumerate(profiles, start=1):
        write(profiles[engine], f"2026-01-0{age}")
        write(trees[engine], f"2026-01-0{age}")
    assert paths.bundled_tree(0.0) == trees["torch"]
    assert paths.bundled_tree(0.0, engine="llama.cpp") == trees["llama.cpp"]
    assert paths.bundled_profile() == profiles["llama.cpp"]
