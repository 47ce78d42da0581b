"""Speed and quality of the solver: `python tests/benchmarks/solver.py`.

Prints six tables: the time to compute E*(n, D) by size, depth and width; the time of `solve` with
replicates and traces; the time of `solve` for rates of several forms; the time of the command as a
process; how often the solved tree is the fastest of all trees of up to 9 nodes on random machines;
and how its speed compares with the best tree that long simulated annealing finds at 16 to 32 nodes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from itertools import product
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "plan"))
from brute_force import KINDS, fastest, random_profile, random_rates, speed

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import BestFirst, DynamicProgram
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.solver import solve

JOBS = [  # nodes, depth, ranks
    (128, 10, 32),
    (256, 10, 32),
    (512, 10, 32),
    (1024, 10, 32),
    (128, 24, 32),
    (512, 24, 32),
    (1024, 32, 32),
    (512, 24, 8),
    (512, 24, 64),
]


def timed(work: Callable[[], object], repeats: int) -> float:
    """The median milliseconds of a few runs of `work`."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def surface_times() -> None:
    """Print the time to compute E*(n, D) for every size and depth up to the job's."""
    print("| nodes | depth | ranks | best-first, ms | dynamic program, ms | its memory, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for size, depth, ranks in JOBS:
        rates = 0.6 / np.arange(1, ranks + 1) ** 1.7
        table = np.tile(rates / max(1.0, rates.sum()), (depth, 1))
        best_first_ms = timed(lambda t=table, n=size: BestFirst(t, n), 9)
        program_ms = timed(lambda t=table, n=size: DynamicProgram(t, n), 3)
        tracemalloc.start()
        DynamicProgram(table, size)
        megabytes = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        print(
            f"| {size} | {depth} | {ranks} | {best_first_ms:.1f} | {program_ms:.0f} "
            f"| {megabytes:.0f} |"
        )


def solve_times() -> None:
    """Print the time of `solve` with 200 replicates and the traces of 50 documents."""
    print("| nodes | rates | target flat to 64 tokens, ms | rising from 4, ms |")
    print("| ---: | --- | ---: | ---: |")
    generator = np.random.default_rng(4)
    falling = 0.7 / np.arange(1, 33) ** 1.9
    falling /= max(1.0, falling.sum() / 0.98)
    swapped = falling.copy()
    swapped[[1, 2]] = falling[[2, 1]]
    for size in (32, 64, 128, 256):
        machines = [machine(flat, size) for flat in (64, 4)]
        for name, rates in (("falling", falling), ("rising once", swapped)):
            weights = np.append(1 - rates.sum(), rates)
            traces = generator.choice(33, p=weights, size=(50, 128)).tolist()
            acceptance = Acceptance(rates, traces=traces)
            times = [timed(lambda a=acceptance, p=m: solve(p, a), 3) for m in machines]
            print(f"| {size} | {name} | {times[0]:.0f} | {times[1]:.0f} |")


def times_by_rates(cases: int = 24) -> None:
    """Print the time of `solve` on one core for random machines and several forms of rates.

    Falling rates, rates in random order, and rates with a peak at some rank, as from a draft that
    seldom guesses the target's first choice first.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    print("| nodes | rates | trees per second | slowest, ms |")
    print("| ---: | --- | ---: | ---: |")
    for size in (32, 64, 128):
        for name in ("falling", "random", "peaked"):
            generator, times = np.random.default_rng(6), []
            for case in range(cases):
                profile = random_profile(generator, KINDS[case % len(KINDS)], size)
                rates = random_rates(generator, 32, name == "falling")
                if name == "peaked":
                    distance = np.arange(32) - generator.integers(1, 8)
                    rates = np.exp(-0.5 * (distance / generator.uniform(1, 4)) ** 2)
                    rates *= 0.95 / rates.sum()
                times.append(timed(lambda p=profile, r=rates: solve(p, Acceptance(r)), 1))
            print(f"| {size} | {name} | {1000 / np.mean(times):.0f} | {max(times):.0f} |")
    os.sched_setaffinity(0, cores)


def process_times(repeats: int = 15) -> None:
    """Print the time of `sequoia-opt solve` as a process, and of the imports that it needs."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    commands = {
        "import numpy, typer, rich, yaml": ["-c", "import numpy, typer, rich, yaml"],
        "sequoia-opt solve": ["-m", "sequoia_opt", "solve"],
        "sequoia-opt solve-all --check": ["-m", "sequoia_opt", "solve-all", "--check"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with TemporaryDirectory() as folder:
        repository = Path(__file__).parents[2]
        for part in ("profiles", "trees"):
            shutil.copytree(repository / part, Path(folder) / part)
        environment["PYTHONPATH"] = str(repository)
        for repeat in range(repeats + 1):
            for name, arguments in commands.items():
                started = time.perf_counter()
                command = [sys.executable, *arguments]
                subprocess.run(command, cwd=folder, env=environment, capture_output=True)
                if repeat > 0:  # the first run of each warms up
                    times[name].append(1000 * (time.perf_counter() - started))
    print("| process | ms | ratio |")
    print("| --- | ---: | ---: |")
    imports_ms = np.median(next(iter(times.values())))
    for name, samples in times.items():
        median_ms = np.median(samples)
        print(f"| {name} | {median_ms:.0f} | {median_ms / imports_ms:.2f} |")


def machine(flat: int, largest: int) -> LatencyProfile:
    """A profile whose forward passes take constant time up to `flat` tokens, then rise."""
    tokens = [2**i for i in range(largest.bit_length())]
    counts = np.array(tokens, dtype=float)

    def model(base: float) -> ModelLatency:
        times = base * (1 + np.maximum(0.0, counts - flat) / 64)
        return ModelLatency("m", "", [Curve(1, 0, tokens, times, 0.98 * times, 1.02 * times)])

    overhead = {name: Overhead(0.3, 0.001, 0.02) for name in ("greedy", "sequoia")}
    return LatencyProfile({}, {}, {}, model(20.0), model(0.6), overhead)


def against_brute_force(cases: int, seed: int = 2) -> None:
    """Compare the solved tree's speed with the fastest of all trees of up to 9 nodes, 4 ranks."""
    print("| rates | latencies | optimum found | worst | optimum among E*(n, D) trees | worst |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    generator = np.random.default_rng(seed)
    for falling in (True, False):
        for kind in KINDS:
            solved_shares, best_tokens_shares = [], []
            for _ in range(cases):
                acceptance = Acceptance(random_rates(generator, 4, falling))
                profile = random_profile(generator, kind, 9)
                best = fastest(acceptance, profile, 9)[1]
                plan = solve(profile, acceptance)
                solved_shares.append(speed(plan.fastest.tree, acceptance, profile) / best)
                best_tokens_shares.append(np.nanmax(plan.speed) / 1000 / best)
            row = ["falling" if falling else "any", kind]
            for shares in (np.array(solved_shares), np.array(best_tokens_shares)):
                row += [f"{(shares > 1 - 1e-9).mean():.1%}", f"{shares.min():.2%}"]
            print("| " + " | ".join(row) + " |")


def anneal(
    acceptance: Acceptance, profile: LatencyProfile, size: int, moves: int, seed: int
) -> float:
    """The best speed that annealing finds by moving the leaves of a tree of `size` nodes."""
    generator = np.random.default_rng(seed)
    rates = [*acceptance.rates, 0.0]
    drafts = [0.0, *profile.draft.at(list(range(1, size + 1)), 0)]
    overhead = profile.overhead["greedy"]
    fixed = float(profile.target.at([size], 0)[0]) + overhead.constant_ms + overhead.drafting_ms
    # Start from a chain: the parent, depth, value and number of children of each node.
    parent, depth = list(range(-1, size - 1)), list(range(size))
    value, children = [1.0], [1] * (size - 1) + [0]
    for _ in range(size - 1):
        value.append(value[-1] * rates[0])
    last: list[list[int]] = [[node + 1] for node in range(size - 1)] + [[]]  # children in order
    widths = [1] * (size - 1) + [0] * 2
    expected = sum(value)

    def rate() -> float:
        cost = drafts[2] if widths[0] else 0.0
        return expected / (fixed + cost + sum(drafts[w] for w in widths[1:]))

    current = best = rate()
    uniforms = generator.random((moves, 3)).tolist()
    for step, (first, second, chance) in enumerate(uniforms):
        node = 1 + int(first * (size - 1))
        above = parent[node]
        if children[node] or last[above][-1] != node:
            continue
        into = int(second * size)
        if into in (node, above) or children[into] >= len(rates) - 1:
            continue
        before = (parent[node], depth[node], value[node])

        def move(source: int, goal: int, mass: float, moved: int = node) -> None:
            nonlocal expected
            last[source].pop()
            children[source] -= 1
            if not children[source]:
                widths[depth[source]] -= 1
            if not children[goal]:
                widths[depth[goal]] += 1
            children[goal] += 1
            last[goal].append(moved)
            expected += mass - value[moved]
            parent[moved], depth[moved], value[moved] = goal, depth[goal] + 1, mass

        move(above, into, value[into] * rates[children[into]])
        proposed = rate()
        temperature = 0.02 * (1 - step / moves) ** 2 + 1e-6
        if chance < exp(min(0.0, log(proposed / current) / temperature)):
            current = proposed
            best = max(best, current)
        else:
            move(into, above, before[2])
    return best


def against_annealing(cases: int, moves: int, seed: int = 3) -> None:
    """Compare the solved tree's speed with annealing's best, for trees of one size and 8 ranks."""
    print("| nodes | rates | latencies | worst | better than annealing |")
    print("| ---: | --- | --- | ---: | ---: |")
    generator = np.random.default_rng(seed)
    for size, falling in product((16, 24, 32), (True, False)):
        for kind in KINDS:
            shares = []
            for case in range(cases):
                acceptance = Acceptance(random_rates(generator, 8, falling))
                profile = random_profile(generator, kind, size)
                tree = solve(profile, acceptance, size=size).fastest.tree
                annealed = max(
                    anneal(acceptance, profile, size, moves, 9 * case + i) for i in (0, 1)
                )
                shares.append(speed(tree, acceptance, profile) / annealed)
            better = np.mean(np.array(shares) > 1 + 1e-9)
            rates = "falling" if falling else "any"
            print(f"| {size} | {rates} | {kind} | {min(shares):.2%} | {better:.0%} |")


def main(
    cases: Annotated[int, typer.Option(help="Number of random machines of each kind.")] = 300,
    moves: Annotated[int, typer.Option(help="Number of moves in each annealing.")] = 60000,
) -> None:
    """Print the solver's tables."""
    surface_times()
    print()
    solve_times()
    print()
    times_by_rates()
    print()
    process_times()
    print()
    against_brute_force(cases)
    print()
    against_annealing(max(2, cases // 10), moves)


if __name__ == "__main__":
    typer.run(main)
