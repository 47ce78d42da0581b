"""A page that shows why a tree was chosen: one HTML file that needs no other.

Knows the page's texts. The plan is solved again from its two inputs, so that the page can also
show what the tree was chosen among. Knows nothing of how the figures are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from sequoia_opt import __version__
from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.judge import kind
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.policy_text import rule
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report import page_figures
from sequoia_opt.report.bench_results import Results
from sequoia_opt.report.policy_sections import compared_plans, policy_sections
from sequoia_opt.report.section import Section

PAGE = Path(__file__).parent / "page.html"


def page(tree: TokenTree, plan: Plan, results: Sequence[Results] = (), mark: str = "") -> str:
    """The page of a plan, as HTML. Of an adaptive one, the tree is its best fixed tree.

    Args:
        tree: the plan to show.
        plan: the plan that was solved from the tree's inputs, with the tree as `given`.
        results: results of `bench` or `calibrate` to show too.
        mark: names the page's sources.
    """
    import plotly

    sections = [
        *(policy_sections(tree) if tree.policy is not None else []),
        *_tree_sections(tree, plan),
        *(
            _latency_section(role, plan)
            for role in ("target", "draft")
            if not getattr(plan.profile, role).is_free
        ),
        *_acceptance_sections(plan),
        *(_results_section(index, measured, plan) for index, measured in enumerate(results)),
    ]
    pair = f"{plan.profile.target.model} with {plan.profile.draft.model}"
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{pair}: {_extent(tree)}"),
        pair=escape(pair),
        summary=escape(_summary(tree, plan)),
        facts=_table(_facts(tree, plan)),
        sections="\n".join(_section_html(section) for section in sections),
        version=escape(__version__),
        mark=escape(mark),
        plotly=plotly.offline.get_plotlyjs(),
    )


def _extent(tree: TokenTree) -> str:
    """How large a plan's trees are."""
    if tree.policy is None:
        return f"{tree.size} nodes"
    return f"up to {tree.largest_size} nodes"


def _tree_sections(tree: TokenTree, plan: Plan) -> list[Section]:
    """The tree, or an adaptive plan's best fixed tree, and the trees that it was chosen among."""
    title = "The tree" if tree.policy is None else "The best fixed tree"
    tree = tree.static
    values = plan.acceptance.node_values(tree)
    text = (
        "The root is the last committed token, every other node is a speculated token; its label "
        "is its rank among its siblings. Nodes are larger and darker the more often verification "
        "reaches them."
    )
    if tree.size > 1:
        text += f" The most valuable node adds {values[1:].max():.2f} tokens per step."
    return [
        Section("tree", title, text, page_figures.tree(tree, values)),
        Section(
            "surface",
            "Speed by size and depth",
            "Predicted speed relative to plain decoding, for the tree with the most expected "
            "tokens at each size and depth. The star is this tree; circles are the next best. "
            "Colours assume independent guesses; the marked trees are replayed on traces.",
            page_figures.surface(plan),
        ),
        Section(
            "candidates",
            "Comparison with other trees",
            "Predicted speed relative to plain decoding, with 95% intervals that combine resampled "
            "documents with the spread of the timings.",
            page_figures.candidates(plan),
        ),
    ]


def _latency_section(role: str, plan: Plan) -> Section:
    model: ModelLatency = getattr(plan.profile, role)
    return Section(
        f"latency-{role}",
        f"Latency of the {role}",
        f"{model.model}: milliseconds per forward pass by number of tokens, a curve for each "
        "context length; bands are 95% intervals of the median.",
        page_figures.latency(model),
    )


def _acceptance_sections(plan: Plan) -> list[Section]:
    rates = plan.acceptance
    rejected = 100 * max(0.0, 1 - rates.rates.sum())
    sections = [
        Section(
            "acceptance",
            "Acceptance by rank",
            f"How often the draft's 1st, 2nd, 3rd, … guess is the accepted token on "
            f"{rates.dataset}; for {rejected:.1f}% of the tokens none of them is.",
            page_figures.acceptance(rates),
        )
    ]
    if rates.by_depth is not None:
        sections.append(
            Section(
                "depths",
                "Acceptance by depth",
                "How often each rank is accepted, by its depth in the tree.",
                page_figures.acceptance_by_depth(rates),
            )
        )
    return sections


def _results_section(index: int, results: Results, plan: Plan) -> Section:
    """Measured speeds, with the prediction for this tree if it was measured."""
    name = f"measured-{index}"
    run = results.title.replace("\n", "; ")
    if "calibration" in results.document:
        return Section(
            name,
            "Predicted and measured speed",
            f"{run}. A tree on the line was as fast as predicted; the band is within 10%.",
            page_figures.calibration(results),
        )
    predicted = _predicted_speedups(results, plan)
    text = (
        f"{run}. Speed relative to {results.rows[0]['name']} with 95% intervals, from resampling "
        "the prompts."
    )
    if predicted:
        text += " The diamond is the prediction for this tree."
    return Section(
        name,
        f"Measured speed at temperature {results.temperature:g}",
        text,
        page_figures.measured_speeds(results, predicted),
    )


def _predicted_speedups(results: Results, plan: Plan) -> dict[str, float]:
    """This tree's predicted speed, by its name in results of the plan's temperature."""
    [this] = plan.given
    trees = results.document.get("trees", {})
    if results.temperature != plan.acceptance.temperature or not isinstance(trees, Mapping):
        return {}
    structure = {"parents": list(this.tree.parents), "ranks": list(this.tree.ranks)}
    return {name: float(this.speedup[0]) for name, tree in trees.items() if tree == structure}


def _summary(tree: TokenTree, plan: Plan) -> str:
    """The plan's predicted speed, in a sentence."""
    if tree.policy is not None:
        return _adaptive_summary(tree)
    [this] = plan.given
    if tree.size == 1:
        if not plan.fastest.is_faster:
            return "One node: plain decoding. No tree is predicted to be faster here."
        return (
            f"One node: plain decoding. A tree of {plan.fastest.tree.size} nodes is predicted to "
            f"run at {plan.fastest.speedup[0]:.2f}x."
        )
    low, high = interval(this.speedup)
    summary = (
        f"{tree.size} nodes, depth {tree.depth}: {this.tokens[0]:.2f} tokens per step in "
        f"{this.step_ms[0]:.2f} ms, {this.speedup[0]:.2f}x plain decoding "
        f"({low:.2f}–{high:.2f}), {this.tokens_per_second[0]:.0f} tokens per second."
    )
    if not this.is_faster:
        return f"It does not pay: plain decoding is predicted to be faster. {summary}"
    return summary


def _adaptive_summary(tree: TokenTree) -> str:
    """An adaptive plan's predicted speed, in a sentence."""
    summary = f"An {kind(tree)} of {_extent(tree)}, {tree.largest_depth} levels at most"
    prediction = compared_plans(tree).get(kind(tree))
    if prediction is None:
        return f"{summary}."
    speedup, low, high = prediction
    return f"{summary}: {speedup:.2f}x plain decoding ({low:.2f}–{high:.2f})."


def _facts(tree: TokenTree, plan: Plan) -> dict[str, str]:
    """The policy, the machine, versions and settings, by their names."""
    profile, rates = plan.profile, plan.acceptance
    dataset = f"{rates.dataset}, {rates.positions} tokens"
    if rates.traces:
        dataset += f" of {len(rates.traces)} documents"
    sampling = f"temperature {rates.temperature:g}, top-p {rates.top_p:g}{rates.sampling.cuts}"
    policy = {} if tree.policy is None else {"policy": "; ".join(rule(tree.policy))}
    facts = policy | {
        "machine": _machine(plan),
        "engine": _engine(profile.engine),
        "versions": ", ".join(f"{name} {version}" for name, version in profile.software.items()),
        "dataset": dataset,
        "sampling": f"{sampling}, verifier {plan.verifier}",
        "context length": f"{plan.context:.0f} tokens",
        "batch": str(plan.batch),
    }
    if doubts := profile.doubts():
        facts["doubtful timings"] = ". ".join(doubts)
    return facts


def _machine(plan: Plan) -> str:
    hardware, engine = plan.profile.hardware, plan.profile.engine
    name = str(hardware.get("name", "unknown"))
    if "threads" in engine and hardware.get("device") == "cpu":
        name += f", {engine['threads']} threads"
    return name


def _engine(engine: Mapping[str, Any]) -> str:
    """How the models were run, in words."""
    parts = [str(engine.get("dtype", "unknown dtype"))]
    if "name" in engine:
        parts.insert(0, str(engine["name"]))
    if engine.get("gpu_layers"):
        all_layers = engine["gpu_layers"] == -1
        parts.append(
            "all layers on the GPU" if all_layers else f"{engine['gpu_layers']} layers on the GPU"
        )
    if engine.get("compile"):
        parts.append("compiled")
    if engine.get("graphs"):
        parts.append("CUDA graphs")
    if engine.get("offload", "none") != "none":
        parts.append(f"offloaded to {engine['offload']}")
    if engine.get("random_weights"):
        parts.append("random weights")
    return ", ".join(parts)


def _table(facts: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    return "\n".join(rows)


def _section_html(section: Section) -> str:
    name = escape(section.name)
    # With its "<" escaped, no text in the figure can end the element that holds it.
    figure = section.figure.replace("<", "\\u003c")
    return (
        f'<section id="{name}"><h2>{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>\n'
        f'<div class="chart" data-figure="figure-{name}"></div>\n'
        f'<script type="application/json" id="figure-{name}">{figure}</script></section>'
    )
