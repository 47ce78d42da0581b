"""Checked access to the fields of a file; every complaint names the file and the field."""

from __future__ import annotations

import math
import reprlib
from typing import Any, TypeGuard

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.types import FloatArray

LARGEST = 10**15  # whole number: any that is counted is smaller, and a float still holds it
_SHORT = reprlib.Repr()  # of which no more is made than is shown
_SHORT.maxstring = _SHORT.maxother = 60


class Fields:
    """Checked access to one mapping of a file; every complaint names the file and the field."""

    def __init__(self, mapping: Any, where: str) -> None:
        if not isinstance(mapping, dict):
            raise SequoiaError(f"{where}: found {shown(mapping)}, expected a mapping")
        self.mapping = mapping
        self.where = where

    def fail(self, key: str, expected: str) -> SequoiaError:
        """The error for a field that is not what it should be."""
        if key not in self.mapping:
            return SequoiaError(f"{self.where}: {key}: missing, expected {expected}")
        found = shown(self.mapping[key])
        return SequoiaError(f"{self.where}: {key}: found {found}, expected {expected}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.mapping.get(key, default)
        if not isinstance(value, str):
            raise self.fail(key, "text")
        return value

    def integer(self, key: str, minimum: int = 0, default: int | None = None) -> int:
        """A whole number of at least `minimum`."""
        value = self.mapping.get(key, default)
        if not _is_whole(value, minimum):
            raise self.fail(key, _whole(value, minimum))
        return int(value)

    def number(
        self, key: str, low: float = -math.inf, high: float = math.inf, default: float | None = None
    ) -> float:
        """A finite number in [low, high]; YAML's safe loader reads `1e-5` as text: coerced."""
        value = finite(self.mapping.get(key, default))
        if value is None or not low <= value <= high:
            raise self.fail(key, _range("a number", low, high))
        return value

    def numbers(self, key: str, low: float = -math.inf, high: float = math.inf) -> FloatArray:
        """A non-empty list of finite numbers in [low, high]."""
        values = self.mapping.get(key)
        expected = _range("a list of numbers", low, high)
        if not isinstance(values, list) or not values:
            raise self.fail(key, expected)
        converted = [finite(value) for value in values]
        for place, value in enumerate(converted):
            if value is None or not low <= value <= high:
                raise SequoiaError(
                    f"{self.where}: {key}[{place}]: found {shown(values[place])}, "
                    f"expected {_range('a number', low, high)}"
                )
        return np.array(converted, dtype=np.float64)

    def integers(self, key: str, minimum: int = 0) -> list[int]:
        """A list of whole numbers of at least `minimum`."""
        values = self.mapping.get(key)
        if not isinstance(values, list):
            raise self.fail(key, "a list of whole numbers")
        for place, value in enumerate(values):
            if not _is_whole(value, minimum):
                raise SequoiaError(
                    f"{self.where}: {key}[{place}]: found {shown(value)}, "
                    f"expected {_whole(value, minimum)}"
                )
        return values

    def section(self, key: str) -> Fields:
        """A nested mapping."""
        if not isinstance(self.mapping.get(key), dict):
            raise self.fail(key, "a mapping")
        return Fields(self.mapping[key], f"{self.where}: {key}")

    def sections(self, key: str) -> list[Fields]:
        """A non-empty list of nested mappings."""
        values = self.mapping.get(key)
        if not isinstance(values, list) or not values:
            raise self.fail(key, "a list of mappings")
        return [Fields(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(values)]


def _is_whole(value: Any, minimum: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= LARGEST


def _whole(value: Any, minimum: int) -> str:
    """What was expected instead of the value."""
    too_large = isinstance(value, int) and value > LARGEST
    return f"a whole number of at {f'most {LARGEST}' if too_large else f'least {minimum}'}"


def finite(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def shown(value: Any) -> str:
    """A short form of a value for an error message."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _range(kind: str, low: float, high: float) -> str:
    if low == -math.inf and high == math.inf:
        return kind
    if high == math.inf:
        return f"{kind} of at least {low:g}"
    return f"{kind} between {low:g} and {high:g}"
