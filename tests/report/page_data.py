"""A small plan and small results to draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report.bench_results import FORMAT, Results
from sequoia_opt.repository.tree_provenance import plan_again

NASTY = "a</script><script>alert(1)</script>&<b>model</b>"


def rates_of(**others: Any) -> Acceptance:
    rates = np.array([0.6, 0.2, 0.05])
    return Acceptance(rates, rates - 0.05, rates + 0.05, positions=500, dataset=NASTY, **others)


def plan_of(tree: TokenTree) -> Plan:
    """The plan on a machine where eight tokens take hardly longer than one."""

    def model(name: str, unit: float) -> ModelLatency:
        counts = [1, 2, 4, 8, 16]
        curves = []
        for context in (128, 1024):
            median = np.array([unit * (1 + count / 40 + context / 4096) for count in counts])
            curves.append(Curve(1, context, counts, median, 0.97 * median, 1.04 * median))
        return ModelLatency(name, "0", curves)

    profile = LatencyProfile(
        hardware={"slug": "m", "name": NASTY, "device": "cpu"},
        software={"torch": "2"},
        engine={"dtype": "float32", "threads": 2, "compile": ["target"]},
        target=model(NASTY, 10.0),
        draft=model("small", 1.0),
        overhead={"greedy": Overhead(0.1, 0.01, 0.05)},
    )
    return plan_again(tree, profile, rates_of())


def measured(folder: Path) -> tuple[Results, Results]:
    """The results of a `bench` and of a `calibrate`."""
    shared = {
        "format": FORMAT, "version": 1, "target": NASTY, "draft": "small", "dataset": "code",
        "dtype": "float32", "compile": [], "max_new_tokens": 64, "prompts": 4, "temperature": 0.0,
        "hardware": {"name": "a machine"},
    }  # fmt: skip
    rows = [
        {
            "name": name, "nodes": nodes, "tokens_per_step": 2.0, "tokens_per_second": 100 * speed,
            "speedup": speed, "speedup_low": speed - 0.1, "speedup_high": speed + spread,
        }
        for name, nodes, speed, spread in (
            ("plain", 1, 1.0, 0.1), ("solved <tree> (9 nodes)", 9, 2.5, 0.2)
        )
    ]  # fmt: skip
    speeds = [(2.0, 2.1), (1.5, 1.4)]
    trees = [{"name": "x", "speedup": {"predicted": p, "measured": m}} for p, m in speeds]
    loaded = []
    for name, measurement in (
        ("race", {"results": rows}),
        ("calibration", {"calibration": [{"temperature": 0.0, "trees": trees}]}),
    ):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(shared | measurement))
        loaded.append(Results.load(path))
    return loaded[0], loaded[1]
