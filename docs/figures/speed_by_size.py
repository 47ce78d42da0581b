"""Draw `speed_by_size.svg`, the README's figure, from committed profiles and results.

    python docs/figures/speed_by_size.py

The lines are predictions from a machine's profile and the acceptance rates on HumanEval; the points
are `bench` results on the same machine and prompts. Measures nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sequoia_opt import Acceptance, LatencyProfile, solve

ROOT = Path(__file__).resolve().parents[2]
MACHINES = {
    "amd-epyc-2-threads": "AMD EPYC, 2 cores",
    "intel-xeon-processor-2-threads": "Intel Xeon, 2 cores",
}
PROFILE = "demo-target--demo-draft--float32+compiled.yaml"
ACCEPTANCE = "demo-target--demo-draft--humaneval--greedy-T0.yaml"
FASTEST, MOST_TOKENS, PLAIN = "#0b6e4f", "#c2410c", "#57606a"


def predicted(machine: str) -> tuple[np.ndarray, np.ndarray]:
    """Speed over plain decoding by size, [sizes] each: of the fastest of the trees E*(n, D) of
    each size n, and of the one with the most tokens, whatever a step takes."""
    plan = solve(
        LatencyProfile.load(ROOT / "profiles" / machine / PROFILE),
        Acceptance.load(ROOT / "profiles" / "acceptance" / ACCEPTANCE),
    )
    speed = plan.speed[:, 1:] / plan.speed[0, 1]  # [depth + 1, sizes]
    deepest = [int(np.flatnonzero(np.isfinite(column))[-1]) for column in speed.T]
    return np.nanmax(speed, axis=0), speed[deepest, range(speed.shape[1])]


def measured(machine: str) -> list[dict]:
    """The results of `bench`, greedy, on HumanEval's prompts."""
    path = ROOT / "benchmarks" / machine / "humaneval" / "T0.json"
    return json.loads(path.read_text())["results"]


def draw(axes: Axes, machine: str) -> None:
    """One machine's panel."""
    fastest, most_tokens = predicted(machine)
    sizes = np.arange(1, len(fastest) + 1)
    axes.plot(sizes, fastest, color=FASTEST, linewidth=2)
    axes.plot(sizes, most_tokens, color=MOST_TOKENS, linewidth=2)
    axes.axhline(1, color=PLAIN, linewidth=1, linestyle=(0, (4, 3)))
    for result in measured(machine):
        name = result["name"]
        is_adaptive = name.startswith("adaptive plan")
        is_solved = is_adaptive or name.startswith("solved tree")
        if not (is_solved or name.startswith("most tokens")):
            continue
        nodes, speedup = result["nodes"], result["speedup"]
        axes.errorbar(
            [nodes],
            [speedup],
            yerr=[[speedup - result["speedup_low"]], [result["speedup_high"] - speedup]],
            fmt="o",
            markersize=8 if is_solved else 6,
            color=FASTEST if is_solved else MOST_TOKENS,
            capsize=3,
        )
        size = f"up to {nodes}" if is_adaptive else nodes
        label = f"solved: {size} nodes, {speedup:.2f}x" if is_solved else f"{speedup:.2f}x"
        axes.annotate(
            label,
            (nodes, result["speedup_high" if is_solved else "speedup_low"]),
            xytext=(0, 6 if is_solved else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if is_solved else "top",
            color=FASTEST if is_solved else MOST_TOKENS,
            weight="bold",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64, 128], ["1", "2", "4", "8", "16", "32", "64", "128"])
    axes.set_xlim(0.9, 190)
    axes.set_ylim(0, 2.5)
    axes.set_title(MACHINES[machine], fontsize=12, loc="left")
    axes.set_xlabel("tree size (nodes)")
    axes.text(1.3, 0.96, "plain decoding", color=PLAIN, va="top", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    """Draw both machines into the file."""
    matplotlib.rcParams |= {"svg.hashsalt": "sequoia-opt", "font.size": 10}
    figure = Figure(figsize=(9.2, 4.0), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(MACHINES), sharey=True)
    for axes, machine in zip(panels, MACHINES, strict=True):
        draw(axes, machine)
    panels[0].set_ylabel("speed over plain decoding")
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    first, second = panels[0].lines[:2]
    (points,) = panels[0].plot([], [], "o", color=PLAIN)
    figure.legend(
        [first, second, points],
        ["predicted: fastest tree of each size", "predicted: most tokens per step", "measured"],
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
