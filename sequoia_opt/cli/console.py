"""What the commands print: summaries, tables, progress. No logic, and no torch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from csv import DictWriter
from dataclasses import asdict
from io import StringIO
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sequoia_opt.cli.terminal import printable
from sequoia_opt.plan.intervals import interval

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Generation
    from sequoia_opt.measure.bench import Divergence, Result
    from sequoia_opt.measure.calibration import Checked, Compared
    from sequoia_opt.measure.compare_drafts import Judged
    from sequoia_opt.plan.acceptance import Acceptance
    from sequoia_opt.plan.judge import Candidate
    from sequoia_opt.plan.latency import LatencyProfile
    from sequoia_opt.plan.plan import Plan
    from sequoia_opt.plan.sampling import Sampling
    from sequoia_opt.plan.scaling import Scaling
    from sequoia_opt.plan.sweep import Point
    from sequoia_opt.plan.tree import TokenTree

PLAIN = "plain decoding"
MINUTE = 60  # seconds
FIRST_WORD = 5  # seconds until a pipe is told of what takes long; then twice as many, to a minute
PIPE_WIDTH = 1000  # characters of a table's line where no terminal bounds it
SHOWN_RANKS = 8
MOST_COLUMNS = 7  # sizes that fit beside the rest in 80 characters
SHOWN_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class _Console(Console):
    """Prints names and texts that come from files as they are: no markup, nothing that a terminal
    obeys."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


out = _Console(soft_wrap=not sys.stdout.isatty())
err = _Console(stderr=True, soft_wrap=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """How far long work is, on standard error: a bar, or a line now and then where that is no
    terminal."""
    if not err.is_terminal:
        with waiting(label):
            yield _lines_now_and_then(label)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=err, transient=True)
    with bar:
        task = bar.add_task(printable(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines_now_and_then(label: str) -> Callable[[int, int], None]:
    """Says how much is done, and how long the rest will take at that pace."""
    began, said, pause = time.monotonic(), time.monotonic(), 2 * FIRST_WORD
    first, last = -1, 0  # what was there already took no time

    def advance(done: int, total: int) -> None:
        nonlocal began, said, pause, first, last
        now = time.monotonic()
        if first < 0 or done < last:  # another part of it, with turns of its own
            began, first = now, done
        last = done
        if now - said >= pause and first < done < total:
            rest = (now - began) * (total - done) / (done - first)
            left = f"{rest / MINUTE:.0f} min" if rest >= MINUTE else f"{rest:.0f} s"
            note(f"{label}: {done} of {total}, about {left} left")
            said, pause = now, min(2 * pause, MINUTE)

    return advance


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Say on standard error what takes a while, as long as it does; a pipe is told once, and only
    if it does."""
    if err.is_terminal:
        with err.status(Text(printable(f"{label} …"))):
            yield
        return
    timer = threading.Timer(FIRST_WORD, note, [f"{label} …"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def note(message: str) -> None:
    """A line on standard error."""
    err.print(message, markup=False)


def plain(text: str, end: str = "\n") -> None:
    """A text for another program on standard output: as it is, unless a terminal shows it."""
    print(printable(text) if sys.stdout.isatty() else text, end=end)


def written(path: Path) -> None:
    """Say where a file went."""
    note(f"wrote {path}")


def profile_summary(profile: LatencyProfile) -> None:
    """Both models' latencies at each context, and the overhead."""
    name = profile.hardware.get("name", "unknown")
    engine = profile.engine
    pair = f"{profile.target.model} and {profile.draft.model}"
    setting = f"{name}, {engine.get('dtype')}, {engine.get('threads')} threads"
    out.print(f"{pair} on {setting}", markup=False)
    if engine.get("random_weights"):
        out.print("measured with random weights: latency does not depend on them")
    for role, gain in engine.get("compile_gain", {}).items():
        used = "compiled" if role in (engine.get("compile") or []) else "eager, for that reason"
        out.print(f"{role}: compiled forwards are {gain:.2f} × as fast; measured {used}")
    table = Table(title="milliseconds of a forward, by tokens", title_justify="left")
    table.add_column("model")
    batched = any(curve.batch > 1 for curve in profile.target.curves)
    if batched:
        table.add_column("batch", justify="right")
    table.add_column("context", justify="right")
    measured = profile.target.curves[0].tokens
    shown = [count for count in SHOWN_TOKENS if count in measured]
    if len(shown) > MOST_COLUMNS:
        shown = [*shown[:-1:2], shown[-1]]
    for count in shown:
        table.add_column(str(count), justify="right")
    for role, model in (("target", profile.target), ("draft", profile.draft)):
        for curve in model.curves:
            times = dict(zip(curve.tokens, curve.median_ms, strict=True))
            cells = [str(curve.batch)] * batched + [str(curve.context)]
            cells += [_digits(times[count]) if count in times else "" for count in shown]
            table.add_row(role, *cells)
    show(table)
    for verifier, overhead in profile.overhead.items():
        out.print(
            f"rest of a step, {verifier}: {overhead.constant_ms:.2f} ms, "
            f"{1000 * overhead.per_token_ms:+.0f} µs a token, "
            f"{1000 * overhead.per_level_ms:+.0f} µs a level, "
            f"{overhead.drafting_ms:+.2f} ms for drafting at all",
            markup=False,
        )
    for line in profile.doubts():
        out.print(line, markup=False)


def show(table: Table) -> None:
    """Print a table on standard output; where that is not a terminal, cut no column."""
    (out if out.is_terminal else _Console(width=PIPE_WIDTH)).print(table)


def bar(share: float, length: int) -> str:
    """A bar of at most `length` characters, to an eighth of one."""
    eighths = round(8 * length * min(max(share, 0.0), 1.0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _digits(number: float) -> str:
    """Three of them, at most two behind the point, and all before it."""
    return f"{number:.{max(0, 2 - int(log10(max(number, 1))))}f}"


def acceptance_summary(acceptance: Acceptance) -> None:
    """The first ranks' rates with their intervals."""
    out.print(
        f"{acceptance.draft} for {acceptance.target} on {acceptance.dataset}: temperature "
        f"{acceptance.temperature:g}, top-p {acceptance.top_p:g}{acceptance.sampling.cuts}, "
        f"{acceptance.verifier}, "
        f"{acceptance.positions} tokens"
        + (f" of {len(acceptance.traces)} documents" if acceptance.traces else "")
        + ("" if acceptance.fit == "raw" else f", {acceptance.fit} fit"),
        markup=False,
    )
    table = Table()
    for column in ("rank", "accepted", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for k in range(min(SHOWN_RANKS, acceptance.rates.size)):
        interval = ""
        if acceptance.low is not None and acceptance.high is not None:
            interval = f"{acceptance.low[k]:.3f} – {acceptance.high[k]:.3f}"
        rate = acceptance.rates[k]
        table.add_row(str(k + 1), f"{rate:.3f}", interval, bar(rate, 32))
    show(table)
    rest = acceptance.rates[SHOWN_RANKS:]
    together = f"ranks {SHOWN_RANKS + 1} to {acceptance.rates.size}: {rest.sum():.3f} together; "
    none = f"none of them: {max(0.0, 1 - acceptance.rates.sum()):.3f}"
    out.print((together if rest.size else "") + none, markup=False)


def plan_summary(plan: Plan) -> None:
    """The chosen tree, the next best, and what others use."""
    choice, fastest = plan.choice, plan.fastest
    if not plan.may_speculate:
        out.print(f"One node was asked for: {PLAIN}.", markup=False)
    elif fastest.tree.size == 1:
        out.print(
            "Speculation does not pay here: no tree is predicted to beat plain decoding, "
            f"so the tree has one node: {PLAIN}.",
            markup=False,
        )
    elif choice.tree.size == 1:
        out.print(
            f"Speculation hardly pays here: the fastest tree, of {fastest.tree.size} "
            f"nodes, is predicted at {_speedup(fastest)}, so the tree has one node: {PLAIN}.",
            markup=False,
        )
    else:
        low, high = interval(choice.tokens)
        name = "Best tree" if choice.is_faster else "It does not pay. Best of what was asked for"
        out.print(
            f"{name}: {choice.tree.size} nodes, {choice.tree.depth} deep: "
            f"{choice.tokens[0]:.2f} tokens a step ({low:.2f} – {high:.2f}), {_speedup(choice)}",
            markup=False,
        )
        levels = " ".join(str(len(level)) for level in choice.tree.levels)
        out.print(f"nodes at each depth: {levels}; E*(n, D) by {plan.method}", markup=False)
        if choice is not fastest and plan.confidence is not None:
            out.print(
                f"{fastest.tree.size} nodes are predicted to be {fastest.speedup[0]:.2f} × as fast "
                f"as plain decoding, but this tree is surer to be fast: its speed-up is exceeded "
                f"with a probability of {plan.confidence:g} from "
                f"{np.quantile(choice.speedup, 1 - plan.confidence):.2f} × down.",
                markup=False,
            )
        elif choice is not fastest:
            out.print(
                f"{fastest.tree.size} nodes are predicted to be {fastest.speedup[0]:.2f} × as fast "
                "as plain decoding, which the data cannot tell apart: the smaller tree is taken.",
                markup=False,
            )
    sequences = f", {plan.batch} sequences together" if plan.batch > 1 else ""
    title = f"predicted at {plan.context:.0f} cached tokens{sequences}"
    table = Table(title=title, title_justify="left")
    table.add_column("tree", no_wrap=True)
    for column in ("nodes", "depth", "E(T)", "replayed", "ms/step", "tokens/s", "speed"):
        table.add_column(column, justify="right")
    rows: list[tuple[str, Candidate]] = [("chosen", choice)]
    rows += [("fastest", fastest)] if choice is not fastest else []
    rows += [("next best", other) for other in plan.runners_up if other is not fastest]
    rows += [(candidate.name, candidate) for candidate in (*plan.baselines, *plan.given)]
    for label, candidate in rows:
        table.add_row(*_candidate_row(label, candidate), style="bold" if label == "chosen" else "")
    show(table)


def _speedup(candidate: Candidate) -> str:
    low, high = interval(candidate.speedup)
    return (
        f"{candidate.speedup[0]:.2f} × plain decoding ({low:.2f} – {high:.2f}; "
        f"faster in {100 * candidate.pays:.0f} % of resamplings)"
    )


def _candidate_row(label: str, candidate: Candidate) -> list[str]:
    replayed = candidate.replayed_tokens
    return [
        label,
        str(candidate.tree.size),
        str(candidate.tree.depth),
        f"{candidate.expected_tokens:.2f}",
        "–" if replayed is None else f"{replayed:.2f}",
        f"{candidate.step_ms[0]:.2f}",
        f"{candidate.tokens_per_second[0]:.1f}",
        f"{candidate.speedup[0]:.2f} ×",
    ]


def comparison(plans: Mapping[int, Plan]) -> None:
    """The fastest tree of each budget beside the shapes that other tools use."""
    table = Table(title="speed over plain decoding (tokens a step), by nodes at most")
    table.title_justify = "left"
    others = [c.name for plan in plans.values() for c in (*plan.baselines, *plan.given)]
    names = [name for name in dict.fromkeys(["solved", *others]) if name != "plain"]
    table.add_column("nodes", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for budget, plan in plans.items():
        found = {c.name: c for c in (*plan.baselines, plan.fastest, *plan.given)}
        cells = [found.get(name) for name in names]
        table.add_row(
            str(budget),
            *(f"{c.speedup[0]:.2f} × ({c.tokens[0]:.2f})" if c else "" for c in cells),
        )
    show(table)


def sweep_table(axis: str, points: Sequence[Point]) -> None:
    """The best tree at each value, and what the chosen one gives up there."""
    title = {"context": "best tree by cached tokens", "batch": "best tree by sequences together"}
    table = Table(title=title[axis], title_justify="left")
    columns = ("nodes", "depth", "tokens", "ms/step", "speed", "pays", "chosen tree", "loses")
    for column in (axis, *columns):
        table.add_column(column, justify="right")
    for point in points:
        best = point.plan.choice
        table.add_row(
            str(point.value),
            str(best.tree.size),
            str(best.tree.depth),
            f"{best.tokens[0]:.2f}",
            f"{best.step_ms[0]:.2f}",
            f"{best.speedup[0]:.2f} ×",
            "" if best.tree.size == 1 else f"{100 * best.pays:.0f} %",
            "" if point.given is None else f"{point.given.speedup[0]:.2f} ×",
            "not measured" if point.lost is None else f"{100 * point.lost:.1f} %",
        )
    show(table)


def scaling_summary(found: Scaling) -> None:
    """Tokens a step by size: a table, a plot and the fitted growth."""
    table = Table(title="expected tokens a step, depth without limit", title_justify="left")
    for column in ("nodes", "solved tree", "k sequences", "advantage"):
        table.add_column(column, justify="right")
    table.add_column("")
    widest = 28 / found.trees.max()
    for size, tree, sequences in zip(found.sizes, found.trees, found.sequences, strict=True):
        marks = "█" * round(widest * sequences) + "░" * round(widest * (tree - sequences))
        table.add_row(
            str(size), f"{tree:.2f}", f"{sequences:.2f}", f"{tree / sequences:.2f} ×", marks
        )
    show(table)
    out.print(
        f"solved trees from 8 nodes on: {found.offset:.2f} + {found.per_doubling:.2f} for each "
        f"doubling (within {100 * found.error:.1f} %); "
        f"k sequences never exceed {found.plateau:.2f}",
        markup=False,
    )


def generation_summary(generation: Generation, tree: TokenTree | None, times: bool) -> None:
    """Speed, and how close the prediction of `tree` came; of its times only if `times`."""
    out.print(
        f"{len(generation.tokens)} tokens in {generation.steps} steps after the first: "
        f"{generation.tokens_per_step:.2f} tokens a step, "
        f"{generation.tokens_per_second:.1f} tokens/s",
        markup=False,
    )
    if tree is not None and tree.size == 1:
        out.print(f"the tree has one node: {PLAIN}", markup=False)
    predicted = None if tree is None else tree.predicted_tokens
    if tree is None or predicted is None or not generation.steps:
        return
    off = _off(generation.tokens_per_step, predicted)
    line = f"predicted: {predicted:.2f} tokens a step ({off})"
    if times and "predicted" in tree.metadata:
        speed = tree.metadata["predicted"]["tokens_per_second"]
        line += f", {speed:.1f} tokens/s ({_off(generation.tokens_per_second, speed)})"
    out.print(line, markup=False)


def _off(measured: float, predicted: float) -> str:
    return f"measured {measured:.2f}, {100 * (measured / predicted - 1):+.1f} %"


def race_table(results: Sequence[Result], title: str, greedy: bool) -> None:
    """Methods side by side; sampled texts are not compared."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE, collapse_padding=True, pad_edge=False
    )
    table.add_column("method", overflow="fold")  # a name that is cut says nothing
    for column in _race_columns(results, greedy):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.name, *_race_cells(result, greedy))
    show(table)


def race_markdown(results: Sequence[Result], title: str, greedy: bool) -> None:
    """Methods side by side, for a README."""
    columns = [column.replace("\n", " ") for column in _race_columns(results, greedy)]
    lines = [
        f"| method | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(f"| {r.name} | {' | '.join(_race_cells(r, greedy))} |" for r in results),
        "",
        title,
    ]
    out.print("\n".join(lines), markup=False, soft_wrap=True)


def race_csv(results: Sequence[Result], settings: Mapping[str, object]) -> None:
    """Methods side by side, one a row, each with all that was set: rows of several runs add up."""
    _csv([{**asdict(result), **_flat(settings)} for result in results])


def calibration_csv(
    parts: Sequence[tuple[Sampling, Sequence[Checked]]], settings: Mapping[str, object]
) -> None:
    """Predicted and measured, a tree a row, each with all that was set."""
    _csv(
        [
            {**_flat(each.document()), **_flat({**settings, **asdict(sampling)})}
            for sampling, found in parts
            for each in found
        ]
    )


def _csv(rows: Sequence[Mapping[str, object]]) -> None:
    lines = StringIO()
    sheet = DictWriter(lines, rows[0], lineterminator="\n")
    sheet.writeheader()
    sheet.writerows(rows)
    plain(lines.getvalue(), end="")


def _flat(document: Mapping[str, object]) -> dict[str, object]:
    """A mapping's numbers and texts in one row: those of a part under its name and theirs. What is
    deeper, as trees are, is left out."""
    row: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            parts = {name: inner for name, inner in value.items() if not isinstance(inner, Mapping)}
            row |= {f"{key}_{name}": inner for name, inner in parts.items()}
        else:
            row[key] = value
    return row


def calibration(found: Sequence[Checked], title: str, form: str) -> None:
    """Predicted and measured, tree by tree; then how far off, and whether the choice was right.

    Args:
        form: "table" or "md".
    """
    kinds = ("tokens/step", "plain steps", "speed-up")
    columns = ["nodes", "depth"]
    for kind in kinds:
        columns += [f"{kind},\npredicted", "measured", "off by"]
    columns.append("× the chosen\n(95 %)")
    rows = []
    for each in found:
        cells = [each.name, str(each.tree.size), str(each.tree.depth)]
        for number in (each.tokens, each.step, each.speedup):
            cells += [f"{number.predicted:.2f}", _measured(number)]
            cells.append(f"{100 * number.error:+.1f} %")
        rows.append([*cells, _measured(each.beside_chosen)])
    if form == "md":
        lines = [["tree", *(column.replace("\n", " ") for column in columns)]]
        lines += [["---", *["---:"] * len(columns)], *rows]
        out.print("\n".join(f"| {' | '.join(line)} |" for line in lines), markup=False)
        out.print(title, markup=False)
    else:
        table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
        table.add_column("tree")
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        show(table)
    filed = "by the profile on file, "
    for kind, name in (
        *zip(kinds, ("tokens", "step", "speedup"), strict=True),
        (f"{filed}{kinds[1]}", "filed_step"),
        (f"{filed}{kinds[2]}", "filed_speedup"),
    ):
        errors = [abs(getattr(each, name).error) for each in found]
        middle, most = 100 * float(np.median(errors)), 100 * max(errors)
        out.print(f"{kind}: off by {middle:.1f} % (median), {most:.1f} % at most", markup=False)
    best = max(found, key=lambda each: each.beside_chosen.measured)
    out.print(
        "the chosen tree is the fastest of them"
        if best is found[0]
        else f"the fastest is {best.name}, {_measured(best.beside_chosen)} × the chosen one",
        markup=False,
    )


def _measured(number: Compared) -> str:
    """A measured number, with its interval where it has one."""
    return f"{number.measured:.2f}{_interval(number.low, number.high)}"


def _interval(low: float | None, high: float | None) -> str:
    """In brackets; nothing where there is none."""
    return "" if low is None or high is None else f" ({low:.2f} – {high:.2f})"


def drafts_table(judged: Sequence[Judged]) -> None:
    """Drafts by predicted speed."""
    table = Table(title=f"drafts for {judged[0].profile.target.model}", title_justify="left")
    table.add_column("draft")
    for column in ("parameters", "1st guess", "cost", "tree", "tokens/step", "speed-up (95 %)"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in judged:
        choice = each.choice
        low, high = interval(choice.speedup[1:])
        table.add_row(
            each.draft,
            f"{each.parameters / 1e6:,.1f} M",
            f"{each.acceptance.rates[0]:.2f}",
            f"{100 * each.relative_cost:.0f} %",
            f"{choice.tree.size} nodes, {choice.tree.depth} deep",
            f"{choice.tokens[0]:.2f}",
            f"{choice.speedup[0]:.2f} × ({low:.2f} – {high:.2f})",
        )
    show(table)
    out.print("cost: a forward of the draft over one of the target", markup=False)
    if len(judged) > 1:
        first, second = (each.choice.speedup[1:] for each in judged[:2])
        surer = float((first[:, None] > second[None, :]).mean())
        out.print(
            f"{judged[0].draft} is predicted to be the fastest, ahead of {judged[1].draft} in "
            f"{100 * surer:.0f} % of pairs of resamplings",
            markup=False,
        )


def _race_columns(results: Sequence[Result], greedy: bool) -> list[str]:
    first = results[0].name
    ratio = "speed-up (95 %)" if first == "plain" else "× the first (95 %)"
    return ["tokens/step", "tokens/s", "ms/token", ratio, *["same\ntext"] * greedy, "repeated"]


def _race_cells(result: Result, greedy: bool) -> list[str]:
    return [
        f"{result.tokens_per_step:.2f}",
        f"{result.tokens_per_second:.1f}",
        f"{result.ms_per_token:.2f}",
        f"{result.speedup:.2f} ×" + _interval(result.speedup_low, result.speedup_high),
        *[f"{100 * result.agreement:.0f} %"] * greedy,
        f"{100 * result.repeated:.0f} %",
    ]


def settings_line(settings: Mapping[str, Any]) -> str:
    """What a comparison was run with, in a line."""
    hardware, software = settings["hardware"], settings["software"]
    threads = f", {hardware['threads']} threads" if "threads" in hardware else ""
    ways = [
        name
        for name, used in (("compiled", settings["compile"]), ("graphs", settings["graphs"]))
        if used
    ]
    engine = " ".join([settings["dtype"], *ways])
    warmth = f"temperature {settings['temperature']:g}"
    if settings["temperature"] > 0:
        warmth += f", top-p {settings['top_p']:g}" * (settings["top_p"] < 1)
        warmth += f", top-k {settings['top_k']}" * bool(settings.get("top_k"))
        warmth += f", min-p {settings['min_p']:g}" if settings.get("min_p") else ""
        warmth += f", {settings['verifier']}"
    warmth += f", {settings['repeats']} repetitions" * (settings["repeats"] > 1)
    versions = ", ".join(f"{key} {software[key]}" for key in ("torch", "transformers"))
    if "synthetic_acceptance" in settings:
        engine += f", acceptance SYNTHETIC from {settings['synthetic_acceptance']}"
    if settings.get("random_weights"):
        engine += ", random weights"
    if "offload" in settings:
        engine += f", layers from {settings['offload']}"
    if "world_size" in settings:
        engine += f", {settings['world_size']} processes"
    return (
        f"{settings['dataset']}: {settings['prompts']} prompts of {settings['max_new_tokens']} new "
        f"tokens, {warmth}; {settings['target']} with {settings['draft']}, {engine}; "
        f"{hardware['name']}{threads}; {versions}"
    )


def prediction_lines(result: Result, tree: TokenTree, times: bool) -> None:
    """Measured tokens per step and speed-up beside the tree's prediction."""
    tokens = tree.predicted_tokens
    if tokens is not None:
        off = _off(result.tokens_per_step, tokens)
        out.print(f"tokens a step: predicted {tokens:.2f}, {off}", markup=False)
    if times and "predicted" in tree.metadata:
        speedup = tree.metadata["predicted"]["speedup"]
        off = _off(result.speedup, speedup)
        out.print(f"speed-up: predicted {speedup:.2f} ×, {off}", markup=False)


def divergences(found: Sequence[tuple[int, Divergence]], prompts: int) -> None:
    """Whether greedy tokens agree with plain decoding's."""
    if not found:
        out.print(f"greedy tokens agree with plain decoding on all {prompts} prompts", markup=False)
    for prompt, divergence in found:
        out.print(
            f"prompt {prompt + 1}: tokens differ from plain decoding's from token "
            f"{divergence.place + 1} on, where the target's two best logits are "
            f"{divergence.gap:.1e} apart",
            markup=False,
        )


def library_divergences(found: Sequence[tuple[int, Divergence]], prompts: int) -> None:
    """Whether greedy tokens are those of transformers' own forward pass."""
    if not found:
        texts = "1 prompt" if prompts == 1 else f"{prompts} prompts"
        out.print(
            f"greedy tokens are those of transformers' own forward pass on {texts}", markup=False
        )
    for prompt, divergence in found:
        out.print(
            f"prompt {prompt + 1}: transformers' own forward pass has another best token at token "
            f"{divergence.place + 1}, by a logit that is {divergence.gap:.1e} larger",
            markup=False,
        )
