"""Figures of what `bench` keeps: speed by method, tokens per step by temperature and by size.

Knows the results' file and matplotlib; nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import write_bytes
from sequoia_opt.files.documents import read_document
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.names import safe_name
from sequoia_opt.types import Document

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT, VERSION = "sequoia-opt/bench", 1
FORMATS = ("svg", "png", "pdf")
SAME = (  # in files that are set together
    "target", "draft", "dataset", "dtype", "compile", "max_new_tokens", "verifier", "top_p",
    "synthetic_acceptance", "random_weights", "top_k", "min_p", "template",
)  # fmt: skip
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#999933")
MARKERS = "os^Dv<>P"
NUMBERS = ("nodes", "tokens_per_step", "tokens_per_second", "speedup")
OPTIONAL = ("speedup_low", "speedup_high", "tokens_low", "tokens_high")  # or None
LARGEST = 1e9  # that any of them can be


@dataclass(frozen=True)
class Results:
    """A file that `bench --output` wrote.

    Attributes:
        name: the file's, without its ending.
        document: its content.
        temperature: that was decoded at.
    """

    name: str
    document: Document
    temperature: float

    @staticmethod
    def load(path: Path) -> Results:
        """Read and check a file.

        Raises:
            SequoiaError: it is not of this kind.
        """
        document = read_document(path, FORMAT, VERSION)
        fields = Fields(document, str(path))
        for name in ("target", "draft", "dataset", "dtype"):
            fields.text(name)
        temperature = fields.number("temperature", low=0)
        for name in ("prompts", "max_new_tokens"):
            fields.integer(name, minimum=1)
        if not isinstance(document.get("hardware"), Mapping):
            raise SequoiaError(f"{path}: hardware: expected what `bench` writes")
        if "calibration" in document:
            parts = document["calibration"]
            complete = _lists(parts, ("temperature",)) and all(
                _lists(part.get("trees"), ()) and _lists(_speedups(part), ("predicted", "measured"))
                for part in parts
            )
        else:
            rows = document.get("results")
            complete = _lists(rows, NUMBERS, OPTIONAL) and all(
                isinstance(row.get("name"), str) for row in rows or []
            )
        if not complete:
            kind = "calibration" if "calibration" in document else "results"
            raise SequoiaError(f"{path}: {kind}: expected a list of what `bench` found")
        return Results(path.stem, document, temperature)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What each method did."""
        rows: list[dict[str, Any]] = self.document.get("results", [])
        return rows

    @property
    def title(self) -> str:
        """What was run, where, on what, in two lines."""
        d = self.document
        prompts = f"{d['prompts']} prompts of {d['max_new_tokens']} new tokens"
        return f"{self.engine}\n{d['dataset']}: {prompts}"

    @property
    def engine(self) -> str:
        """What was run, and where."""
        d = self.document
        compiled = ", compiled" if d.get("compile") else ""
        synthetic = ", acceptance SYNTHETIC" if "synthetic_acceptance" in d else ""
        machine = d["hardware"].get("name", "this machine")
        return f"{d['target']} with {d['draft']} on {machine}, {d['dtype']}{compiled}{synthetic}"


def figures(found: Sequence[Results]) -> dict[str, Figure]:
    """A figure for each file by its name, and one for those that differ in the temperature.

    Raises:
        SequoiaError: files of one name, or of other settings that would be set together.
    """
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SequoiaError(f"{twice}: files of one name would be one figure; draw them apart")
    drawn = {}
    together: dict[str, list[Results]] = {}
    for each in found:
        if "calibration" in each.document:
            drawn[each.name] = _calibration(each)
        elif "sizes" in each.document:
            drawn[each.name] = _sizes(each)
        else:
            drawn[each.name] = _speeds(each)
            together.setdefault(_temperatures_name(each), []).append(each)
    for name, several in together.items():
        if len({each.temperature for each in several}) > 1:
            _check_alike(several)
            drawn[name] = _temperatures(several)
    return drawn


def _temperatures_name(results: Results) -> str:
    """The name of the figure of all temperatures that a file is a part of."""
    pair_and_dataset = (str(results.document[part]) for part in SAME[:3])
    return safe_name("--".join(pair_and_dataset)) + "--temperatures"


def drawn_from(name: str, found: Sequence[Results]) -> list[int]:
    """Which files the figure of that name shows, by their place."""
    own = [place for place, each in enumerate(found) if each.name == name]
    return own or [p for p, each in enumerate(found) if _temperatures_name(each) == name]


def save(figure: Figure, path: Path, mark: str = "") -> None:
    """Write a figure in one piece, in the format of the path's ending; the same one, the same
    bytes.

    Args:
        mark: says what it was drawn from.

    Raises:
        SequoiaError: it cannot be written.
    """
    import matplotlib as mpl

    buffer = BytesIO()
    date = {"svg": "Date", "pdf": "CreationDate"}.get(path.suffix[1:])
    metadata: dict[str, str | None] = {date: None} if date else {}
    metadata |= {"Keywords" if path.suffix == ".pdf" else "Source": mark} if mark else {}
    with mpl.rc_context({"svg.hashsalt": "sequoia-opt", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_bytes(path, buffer.getvalue())


def _check_alike(several: Sequence[Results]) -> None:
    first = several[0]
    for other in several[1:]:
        machines = [each.document["hardware"].get("name") for each in (first, other)]
        documents = first.document, other.document
        # What older files lack is as it was then.
        differing = [
            part for part in SAME if len({repr(d.get(part) or None) for d in documents}) > 1
        ]
        differing += ["hardware"] * (machines[0] != machines[1])
        if differing:
            raise SequoiaError(
                f"{first.name} and {other.name} differ in {', '.join(differing)}: nothing to set "
                "side by side"
            )


def _speedups(part: Mapping[str, Any]) -> list[Any]:
    """Of a calibration's trees at one temperature."""
    return [tree.get("speedup") for tree in part["trees"]]


def _lists(rows: object, numbers: Sequence[str], optional: Sequence[str] = ()) -> bool:
    """Whether these are mappings, at least one, each with these numbers."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(
            isinstance(row, Mapping)
            and all(_is_number(row.get(name)) for name in numbers)
            and all(row.get(name) is None or _is_number(row[name]) for name in optional)
            for row in rows
        )
    )


def _is_number(value: object) -> bool:
    """Whether it is one that can be drawn."""
    return isinstance(value, int | float) and abs(value) <= LARGEST  # which NaN is not


def _figure(title: str, width: float = 7.5, height: float = 4.5) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_literal(title), fontsize=8, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _speeds(results: Results) -> Figure:
    """Speed-ups over the first method, with their intervals."""
    rows = results.rows[::-1]
    warmth = f", temperature {results.temperature:g}"
    figure, axes = _figure(results.title + warmth, height=1.2 + 0.35 * len(rows))
    speeds = [row["speedup"] for row in rows]
    errors = _errors(rows, "speedup", "speedup_low", "speedup_high")
    colours = [COLOURS[1] if "solved tree" in row["name"] else COLOURS[0] for row in rows]
    axes.barh(
        [_literal(row["name"]) for row in rows], speeds, xerr=errors, color=colours, capsize=2
    )
    for place, row in enumerate(rows):
        label = f"{row['speedup']:.2f} ×  ({row['tokens_per_second']:.0f} tokens/s)"
        end = end_of(row, "speedup_high", "speedup")
        axes.annotate(
            label, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.25)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"speed over {_literal(results.rows[0]['name'])} (95 % interval)")
    axes.grid(visible=False, axis="y")
    return figure


def _temperatures(several: Sequence[Results]) -> Figure:
    """Tokens per step of each tree method by temperature."""
    ordered = sorted(several, key=lambda each: each.temperature)
    figure, axes = _figure(f"{ordered[0].engine}\n{ordered[0].document['dataset']}")
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for each in ordered:
        trees = [row for row in each.rows if row["nodes"] > 1]
        kinds = [_kind(row["name"]) for row in trees]
        for kind, row in zip(kinds, trees, strict=True):
            name = kind if kinds.count(kind) == 1 else row["name"]
            lines.setdefault(name, []).append((each.temperature, row))
    _draw_lines(axes, lines)
    axes.set_xlabel("temperature")
    return figure


def _sizes(results: Results) -> Figure:
    """Tokens per step by nodes, for each shape."""
    figure, axes = _figure(f"{results.title}, temperature {results.temperature:g}")
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for row in results.rows:
        if row["nodes"] > 1:
            lines.setdefault(_kind(row["name"]), []).append((float(row["nodes"]), row))
    _draw_lines(axes, lines)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("nodes")
    return figure


def _calibration(results: Results) -> Figure:
    """Predicted over measured speed-ups, tree by tree."""
    figure, axes = _figure(results.title, width=5.5, height=5.0)
    largest = 0.0
    for place, part in enumerate(results.document["calibration"]):
        x, y = ([one[key] for one in _speedups(part)] for key in ("predicted", "measured"))
        label = f"temperature {part['temperature']:g}"
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.scatter(x, y, color=colour, marker=marker, label=label)
        largest = max(largest, *x, *y)
    axes.plot([0, largest], [0, largest], color="black", linewidth=0.8)
    axes.fill_between(
        [0, largest], [0, 0.9 * largest], [0, 1.1 * largest], color="black", alpha=0.08,
        label="within 10 %",
    )  # fmt: skip
    axes.set_xlabel("predicted speed over plain decoding")
    axes.set_ylabel("measured")
    axes.legend(fontsize=8)
    return figure


def _draw_lines(axes: Axes, lines: Mapping[str, list[tuple[float, dict[str, Any]]]]) -> None:
    for place, (name, points) in enumerate(lines.items()):
        rows = [row for _, row in points]
        axes.errorbar(
            [x for x, _ in points],
            [row["tokens_per_step"] for row in rows],
            yerr=_errors(rows, "tokens_per_step", "tokens_low", "tokens_high"),
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=_literal(name),
        )
    axes.set_ylabel("tokens per step (95 % interval)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, ncols=2)


def _errors(
    rows: Sequence[Mapping[str, float]], value: str, low: str, high: str
) -> tuple[list[float], list[float]]:
    """Distances to both ends of an interval, as matplotlib wants them."""
    ends: list[Callable[[Mapping[str, float]], float]] = [
        lambda row: max(0.0, row[value] - end_of(row, low, value)),
        lambda row: max(0.0, end_of(row, high, value) - row[value]),
    ]
    below, above = ([end(row) for row in rows] for end in ends)
    return below, above


def _literal(text: str) -> str:
    """A text in which no dollar begins a formula."""
    return text.replace("$", r"\$")


def end_of(row: Mapping[str, float], end: str, value: str) -> float:
    """Of an interval; where there is none, the value itself."""
    return row[value] if row.get(end) is None else row[end]


def _kind(name: str) -> str:
    """A method's name without its number of nodes."""
    return name.partition(" (")[0]
