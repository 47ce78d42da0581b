"""A page to look at a tree with: one HTML file that needs nothing else.

Knows the page; figures.py knows the figures. The tree is solved again from its two inputs, so
that what it was chosen from can be shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from sequoia_opt import __version__
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report import figures
from sequoia_opt.report.plots import Results

PAGE = Path(__file__).parent / "page.html"


@dataclass(frozen=True)
class Section:
    """A figure with what it says.

    Attributes:
        name: of its element in the page.
        text: what to see in it, one or two sentences.
        figure: plotly's, as JSON.
    """

    name: str
    title: str
    text: str
    figure: str


def page(tree: TokenTree, plan: Plan, results: Sequence[Results] = (), mark: str = "") -> str:
    """The page of a tree.

    Args:
        tree: the tree to show.
        plan: what the solver finds from its inputs, this tree given to it.
        results: what `bench` measured, to be shown too.
        mark: says what the page was made from.
    """
    import plotly

    sections = [
        *_planned(tree, plan),
        *(_measured(place, r, plan) for place, r in enumerate(results)),
    ]
    pair = f"{plan.profile.target.model} with {plan.profile.draft.model}"
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{pair}: {tree.size} nodes"),
        pair=escape(pair),
        summary=escape(_summary(tree, plan)),
        facts=_table(_facts(plan)),
        sections="\n".join(_section(section) for section in sections),
        version=escape(__version__),
        mark=escape(mark),
        plotly=plotly.offline.get_plotlyjs(),
    )


def _planned(tree: TokenTree, plan: Plan) -> list[Section]:
    """What leads to the tree, and what it was chosen among."""
    rates, values = plan.acceptance, plan.acceptance.node_values(tree)
    widest = max(range(tree.size), key=lambda node: values[node] * (node > 0))
    found = [
        Section(
            "tree",
            "The tree",
            "The root is the last committed token, every other node a guess; the number is its "
            "rank among the draft's guesses. The darker and larger, the more often verification "
            "gets there."
            + (
                f" The most valuable guess is worth {values[widest]:.2f} tokens a step."
                if tree.size > 1
                else ""
            ),
            figures.tree(tree, values),
        ),
        Section(
            "surface",
            "Speed by size and depth",
            "Predicted speed over plain decoding of the trees of most tokens, for every number of "
            "nodes and every depth. The star is this tree, circles are the next best.",
            figures.surface(plan),
        ),
        Section(
            "candidates",
            "Beside other trees",
            "Predicted speed over plain decoding with its 95 % interval: texts resampled, and the "
            "timings' spread.",
            figures.candidates(plan),
        ),
    ]
    for role, model in (("target", plan.profile.target), ("draft", plan.profile.draft)):
        found.append(
            Section(
                f"latency-{role}",
                f"A forward of the {role}",
                f"{model.model}: milliseconds by the tokens of a forward, for each number of "
                "cached tokens; bands are 95 % intervals of the median.",
                figures.latency(model),
            )
        )
    found.append(
        Section(
            "acceptance",
            "Accepted guesses",
            f"How often the draft's 1st, 2nd, 3rd … guess is the accepted one, on {rates.dataset}; "
            f"none of them {100 * max(0.0, 1 - rates.rates.sum()):.1f} % of the time.",
            figures.acceptance(rates),
        )
    )
    if rates.by_depth is not None:
        found.append(
            Section(
                "depths",
                "Accepted guesses by depth",
                "How often each rank is accepted, by its depth in the tree.",
                figures.by_depth(rates),
            )
        )
    return found


def _measured(place: int, results: Results, plan: Plan) -> Section:
    """What a bench found, and what had been predicted where it ran this tree."""
    document = results.document
    where = results.title.replace("\n", "; ")
    if "calibration" in document:
        return Section(
            f"measured-{place}",
            "Predicted and measured",
            f"{where}. On the line, decoding was as fast as predicted; the band is 10 % off.",
            figures.calibration(results),
        )
    predicted = _predicted(results, plan)
    return Section(
        f"measured-{place}",
        f"Measured at temperature {results.temperature:g}",
        f"{where}. Speed over {results.rows[0]['name']} with 95 % intervals, prompts resampled."
        + (" The diamond is what was predicted for this tree." if predicted else ""),
        figures.race(results, predicted),
    )


def _predicted(results: Results, plan: Plan) -> dict[str, float]:
    """This tree's predicted speed-up, by the name that it has in results of its temperature."""
    [given] = plan.given
    trees = results.document.get("trees", {})
    if results.temperature != plan.acceptance.temperature or not isinstance(trees, Mapping):
        return {}
    own = {"parents": list(given.tree.parents), "ranks": list(given.tree.ranks)}
    return {name: float(given.speedup[0]) for name, tree in trees.items() if tree == own}


def _summary(tree: TokenTree, plan: Plan) -> str:
    """What the tree promises, in a sentence."""
    [given] = plan.given
    if tree.size == 1:
        others = (
            f"A tree of {plan.fastest.tree.size} nodes is predicted at "
            f"{plan.fastest.speedup[0]:.2f} ×."
            if plan.fastest.is_faster
            else "No tree is predicted to be faster here."
        )
        return f"One node: plain decoding. {others}"
    low, high = interval(given.speedup)
    verdict = (
        "" if given.is_faster else "It does not pay: plain decoding is predicted to be faster. "
    )
    return (
        f"{verdict}{tree.size} nodes, {tree.depth} deep: {given.tokens[0]:.2f} tokens a step in "
        f"{given.step_ms[0]:.2f} ms, {given.speedup[0]:.2f} × plain decoding "
        f"({low:.2f} – {high:.2f}), {given.tokens_per_second[0]:.0f} tokens a second."
    )


def _facts(plan: Plan) -> dict[str, str]:
    """Machine, versions and settings."""
    profile, rates = plan.profile, plan.acceptance
    engine, software = profile.engine, profile.software
    hardware = [str(profile.hardware.get("name", "unknown"))]
    if "threads" in engine and profile.hardware.get("device") == "cpu":
        hardware.append(f"{engine['threads']} threads")
    ways = [str(engine.get("dtype", "unknown dtype"))]
    ways += [name for name in ("compile", "graphs") if engine.get(name)]
    if engine.get("offload", "none") != "none":
        ways.append(f"offloaded to {engine['offload']}")
    if engine.get("random_weights"):
        ways.append("random weights")
    warmth = f"temperature {rates.temperature:g}, top-p {rates.top_p:g}{rates.sampling.cuts}"
    warmth += f", {plan.verifier}"
    return {
        "machine": ", ".join(hardware),
        "engine": ", ".join(ways),
        "versions": ", ".join(f"{name} {version}" for name, version in software.items()),
        "dataset": f"{rates.dataset}, {rates.positions} tokens"
        + (f" of {len(rates.traces)} documents" if rates.traces else ""),
        "sampling": warmth,
        "cached tokens": f"{plan.context:.0f}",
        "sequences": str(plan.batch),
        **({"doubts about times": ". ".join(doubts)} if (doubts := profile.doubts()) else {}),
    }


def _table(facts: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    return "\n".join(rows)


def _section(section: Section) -> str:
    name = escape(section.name)
    return (
        f'<section id="{name}"><h2>{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>\n'
        f'<div class="chart" data-figure="figure-{name}"></div>\n'
        # Nothing in the data can end the element that holds it.
        f'<script type="application/json" id="figure-{name}">'
        f"{section.figure.replace('<', chr(92) + 'u003c')}</script></section>"
    )
