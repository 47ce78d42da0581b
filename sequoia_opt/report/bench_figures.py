"""Figures of bench results: speed by method, tokens per step by temperature and by size.

Knows matplotlib. Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import write_bytes
from sequoia_opt.files.names import safe_name
from sequoia_opt.report.bench_results import Results, interval_end, is_solved_tree, speedups
from sequoia_opt.report.style import HIGHLIGHT, MAIN, MARKERS, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
PAIR_AND_DATASET = ("target", "draft", "dataset")
SHARED_SETTINGS = (  # of files that are drawn into one figure
    *PAIR_AND_DATASET, "dtype", "compile", "max_new_tokens", "verifier", "top_p",
    "synthetic_acceptance", "random_weights", "top_k", "min_p", "template",
)  # fmt: skip

Points = list[tuple[float, dict[str, Any]]]  # a line's x values, and the rows with its y values


def figures(files: Sequence[Results]) -> dict[str, Figure]:
    """A figure for each file, by its name, and one for files of several temperatures.

    Raises:
        SequoiaError: two files have the same name, or files of one figure differ in a setting.
    """
    names = [results.name for results in files]
    for name in names:
        if names.count(name) > 1:
            raise SequoiaError(
                f"{name}: two files have this name and would be one figure; draw them separately"
            )
    drawn = {}
    by_pair: dict[str, list[Results]] = {}
    for results in files:
        if "calibration" in results.document:
            drawn[results.name] = _calibration(results)
        elif "sizes" in results.document:
            drawn[results.name] = _sizes(results)
        else:
            drawn[results.name] = _speeds(results)
            by_pair.setdefault(_temperatures_name(results), []).append(results)
    for name, several in by_pair.items():
        if len({results.temperature for results in several}) > 1:
            _check_same_settings(several)
            drawn[name] = _temperatures(several)
    return drawn


def drawn_from(name: str, files: Sequence[Results]) -> list[int]:
    """The indices of the files that the figure of that name shows."""
    named = [index for index, results in enumerate(files) if results.name == name]
    return named or [i for i, results in enumerate(files) if _temperatures_name(results) == name]


def save(figure: Figure, path: Path, mark: str = "") -> None:
    """Write a figure atomically, in the format of the path's ending.

    The same figure gives the same bytes.

    Args:
        mark: names the figure's sources, in its metadata.

    Raises:
        SequoiaError: the file cannot be written.
    """
    import matplotlib as mpl

    buffer = BytesIO()
    file_format = path.suffix[1:]
    metadata: dict[str, str | None] = {}
    if file_format in ("svg", "pdf"):  # no date, so that the bytes do not change
        metadata["Date" if file_format == "svg" else "CreationDate"] = None
    if mark:
        metadata["Keywords" if file_format == "pdf" else "Source"] = mark
    with mpl.rc_context({"svg.hashsalt": "sequoia-opt", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=file_format, dpi=150, metadata=metadata)
    write_bytes(path, buffer.getvalue())


def _temperatures_name(results: Results) -> str:
    """The name of the figure that shows all temperatures of the file's pair and dataset."""
    parts = (str(results.document[part]) for part in PAIR_AND_DATASET)
    return safe_name("--".join(parts)) + "--temperatures"


def _check_same_settings(files: Sequence[Results]) -> None:
    """Refuse files of one figure that differ in more than the temperature.

    Raises:
        SequoiaError: they differ in a setting or in the hardware.
    """
    first = files[0]
    for other in files[1:]:
        documents = first.document, other.document
        differing = [
            setting
            for setting in SHARED_SETTINGS
            # A setting that older files lack had its default value.
            if len({repr(document.get(setting) or None) for document in documents}) > 1
        ]
        machines = {str(document["hardware"].get("name")) for document in documents}
        if len(machines) > 1:
            differing.append("hardware")
        if differing:
            raise SequoiaError(
                f"{first.name} and {other.name} differ in {', '.join(differing)} and cannot share "
                "a figure; draw them separately"
            )


def _speeds(results: Results) -> Figure:
    """Speeds relative to the first method, with their intervals."""
    rows = results.rows[::-1]  # matplotlib draws the first bar at the bottom
    title = f"{results.title}, temperature {results.temperature:g}"
    figure, axes = _figure(title, height=1.2 + 0.35 * len(rows))
    axes.barh(
        [_literal(row["name"]) for row in rows],
        [row["speedup"] for row in rows],
        xerr=_errors(rows, "speedup", "speedup_low", "speedup_high"),
        color=[HIGHLIGHT if is_solved_tree(row) else MAIN for row in rows],
        capsize=2,
    )
    for index, row in enumerate(rows):
        label = f"{row['speedup']:.2f}x  ({row['tokens_per_second']:.0f} tokens/s)"
        end = interval_end(row, "speedup_high", "speedup")
        axes.annotate(
            label, (end, index), (6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.25)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"speed relative to {_literal(results.rows[0]['name'])} (95% interval)")
    axes.grid(visible=False, axis="y")
    return figure


def _temperatures(files: Sequence[Results]) -> Figure:
    """Tokens per step by temperature, a line for each method with a tree."""
    ordered = sorted(files, key=lambda results: results.temperature)
    figure, axes = _figure(f"{ordered[0].engine}\n{ordered[0].document['dataset']}")
    lines: dict[str, Points] = {}
    for results in ordered:
        rows = [row for row in results.rows if row["nodes"] > 1]
        methods = [_method(row) for row in rows]
        for method, row in zip(methods, rows, strict=True):
            name = method if methods.count(method) == 1 else row["name"]
            lines.setdefault(name, []).append((results.temperature, row))
    _draw_lines(axes, lines)
    axes.set_xlabel("temperature")
    return figure


def _sizes(results: Results) -> Figure:
    """Tokens per step by number of nodes, a line for each shape."""
    figure, axes = _figure(f"{results.title}, temperature {results.temperature:g}")
    lines: dict[str, Points] = {}
    for row in results.rows:
        if row["nodes"] > 1:
            lines.setdefault(_method(row), []).append((float(row["nodes"]), row))
    _draw_lines(axes, lines)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("nodes")
    return figure


def _calibration(results: Results) -> Figure:
    """Measured against predicted speeds, a point for each tree."""
    figure, axes = _figure(results.title, width=5.5, height=5.0)
    largest = 0.0
    for index, part in enumerate(results.document["calibration"]):
        predicted = [speeds["predicted"] for speeds in speedups(part)]
        measured = [speeds["measured"] for speeds in speedups(part)]
        axes.scatter(
            predicted,
            measured,
            color=colour(index),
            marker=MARKERS[index % len(MARKERS)],
            label=f"temperature {part['temperature']:g}",
        )
        largest = max(largest, *predicted, *measured)
    axes.plot([0, largest], [0, largest], color="black", linewidth=0.8)
    axes.fill_between(
        [0, largest], [0, 0.9 * largest], [0, 1.1 * largest], color="black", alpha=0.08,
        label="within 10%",
    )  # fmt: skip
    axes.set_xlabel("predicted speed relative to plain decoding")
    axes.set_ylabel("measured speed")
    axes.legend(fontsize=8)
    return figure


def _draw_lines(axes: Axes, lines: Mapping[str, Points]) -> None:
    """A line of tokens per step for each name."""
    for index, (name, points) in enumerate(lines.items()):
        rows = [row for _, row in points]
        axes.errorbar(
            [x for x, _ in points],
            [row["tokens_per_step"] for row in rows],
            yerr=_errors(rows, "tokens_per_step", "tokens_low", "tokens_high"),
            color=colour(index),
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=_literal(name),
        )
    axes.set_ylabel("tokens per step (95% interval)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, ncols=2)


def _figure(title: str, width: float = 7.5, height: float = 4.5) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_literal(title), fontsize=8, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _errors(
    rows: Sequence[Mapping[str, float]], value: str, low: str, high: str
) -> tuple[list[float], list[float]]:
    """Distances from the values to both ends of their intervals, as matplotlib takes them."""
    below = [max(0.0, row[value] - interval_end(row, low, value)) for row in rows]
    above = [max(0.0, interval_end(row, high, value) - row[value]) for row in rows]
    return below, above


def _literal(text: str) -> str:
    """A text in which matplotlib reads no dollar sign as the start of a formula."""
    return text.replace("$", r"\$")


def _method(row: Mapping[str, Any]) -> str:
    """A row's name without its number of nodes."""
    return str(row["name"]).partition(" (")[0]
