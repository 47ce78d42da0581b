"""The results that `bench`, `bench-sizes` and `calibrate` write, checked so that they can be drawn.

Knows the results' file. Knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document
from sequoia_opt.files.fields import Fields
from sequoia_opt.types import Document

FORMAT, VERSION = "sequoia-opt/bench", 1
NUMBERS = ("nodes", "tokens_per_step", "tokens_per_second", "speedup")
OPTIONAL_NUMBERS = ("speedup_low", "speedup_high", "tokens_low", "tokens_high")  # may be None
LARGEST = 1e9  # number that can be drawn


@dataclass(frozen=True)
class Results:
    """A results file.

    Attributes:
        name: the file's name without its ending.
        document: its content.
        temperature: the sampling temperature.
    """

    name: str
    document: Document
    temperature: float

    @staticmethod
    def load(path: Path) -> Results:
        """Read and check a file.

        Raises:
            SequoiaError: the file is missing, malformed or of another kind.
        """
        document = read_document(path, FORMAT, VERSION)
        fields = Fields(document, str(path))
        for name in ("target", "draft", "dataset", "dtype"):
            fields.text(name)
        temperature = fields.number("temperature", low=0)
        for name in ("prompts", "max_new_tokens"):
            fields.integer(name, minimum=1)
        if not isinstance(document.get("hardware"), Mapping):
            raise SequoiaError(f"{path}: hardware: expected a mapping, as `bench` writes it")
        if "calibration" in document:
            kind, is_complete = "calibration", _is_calibration(document["calibration"])
        else:
            kind, is_complete = "results", _is_rows(document.get("results"))
        if not is_complete:
            raise SequoiaError(f"{path}: {kind}: expected a list, as `bench` writes it")
        return Results(path.stem, document, temperature)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One mapping per method, the baseline first."""
        rows: list[dict[str, Any]] = self.document.get("results", [])
        return rows

    @property
    def title(self) -> str:
        """The run in two lines: models and machine; dataset and amount."""
        d = self.document
        return (
            f"{self.engine}\n"
            f"{d['dataset']}: {d['prompts']} prompts, {d['max_new_tokens']} new tokens each"
        )

    @property
    def engine(self) -> str:
        """The models, the machine and the settings of the engine."""
        d = self.document
        compiled = ", compiled" if d.get("compile") else ""
        synthetic = ", SYNTHETIC acceptance" if "synthetic_acceptance" in d else ""
        machine = d["hardware"].get("name", "this machine")
        name = d.get("engine", {}).get("name")
        runs_in = f" in {name}" if name else ""
        models = f"{d['target']} with {d['draft']} on {machine}{runs_in}"
        return f"{models}, {d['dtype']}{compiled}{synthetic}"


def speedups(part: Mapping[str, Any]) -> list[Any]:
    """The predicted and measured speeds of a calibration's trees at one temperature."""
    return [tree.get("speedup") for tree in part["trees"]]


def interval_end(row: Mapping[str, float], end: str, value: str) -> float:
    """An end of a row's interval, such as "speedup_low"; its `value` if it has no interval."""
    return row[value] if row.get(end) is None else row[end]


def is_solved_tree(row: Mapping[str, Any]) -> bool:
    """Whether a row is the solved tree's, which figures highlight."""
    return "solved tree" in row["name"] or "adaptive plan" in row["name"]


def _is_calibration(parts: object) -> bool:
    return _have_numbers(parts, ("temperature",)) and all(
        _have_numbers(part.get("trees"), ())
        and _have_numbers(speedups(part), ("predicted", "measured"))
        for part in parts
    )


def _is_rows(rows: object) -> bool:
    return _have_numbers(rows, NUMBERS, OPTIONAL_NUMBERS) and all(
        isinstance(row.get("name"), str) for row in rows
    )


def _have_numbers(
    rows: object, numbers: Sequence[str], optional: Sequence[str] = ()
) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether `rows` is a non-empty list of mappings that all have these numbers."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(
            isinstance(row, Mapping)
            and all(_can_be_drawn(row.get(name)) for name in numbers)
            and all(row.get(name) is None or _can_be_drawn(row[name]) for name in optional)
            for row in rows
        )
    )


def _can_be_drawn(value: object) -> bool:
    """Whether a value is a number and not NaN or too large."""
    return isinstance(value, int | float) and abs(value) <= LARGEST
