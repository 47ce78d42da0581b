"""Checked access to the fields of a file; every complaint names the file and the field."""

from __future__ import annotations

import math
import reprlib
from typing import Any, TypeGuard

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.types import FloatArray

LARGEST = 10**15  # whole number; every count is smaller, and a float still represents it exactly
LONGEST_SHOWN = 60  # characters of a value in a message
_REPR = reprlib.Repr()  # formats no more of a large value than is shown
_REPR.maxstring = _REPR.maxother = LONGEST_SHOWN


class Fields:
    """Checked access to one mapping of a file.

    Every method raises SequoiaError for a field that is missing or is not what the method's name
    says.
    """

    def __init__(self, mapping: Any, where: str) -> None:
        """Check that `mapping` is one; `where` names the file and the part of it in messages.

        Raises:
            SequoiaError: it is not a mapping.
        """
        if not isinstance(mapping, dict):
            raise SequoiaError(f"{where}: found {shown(mapping)}, expected a mapping")
        self.mapping = mapping
        self.where = where

    def fail(self, key: str, expected: str) -> SequoiaError:
        """The error for a field that is not as expected."""
        if key not in self.mapping:
            return SequoiaError(f"{self.where}: {key}: missing, expected {expected}")
        value = shown(self.mapping[key])
        return SequoiaError(f"{self.where}: {key}: found {value}, expected {expected}")

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
            raise self.fail(key, _expected_whole(value, minimum))
        return int(value)

    def number(
        self, key: str, low: float = -math.inf, high: float = math.inf, default: float | None = None
    ) -> float:
        """A finite number in [low, high]; a text such as `1e-5`, as YAML reads it, is converted."""
        value = finite(self.mapping.get(key, default))
        if value is None or not low <= value <= high:
            raise self.fail(key, _expected_range("a number", low, high))
        return value

    def numbers(self, key: str, low: float = -math.inf, high: float = math.inf) -> FloatArray:
        """A non-empty list of finite numbers in [low, high]."""
        values = self.mapping.get(key)
        if not isinstance(values, list) or not values:
            raise self.fail(key, _expected_range("a list of numbers", low, high))
        converted = [finite(value) for value in values]
        for index, value in enumerate(converted):
            if value is None or not low <= value <= high:
                raise SequoiaError(
                    f"{self.where}: {key}[{index}]: found {shown(values[index])}, "
                    f"expected {_expected_range('a number', low, high)}"
                )
        return np.array(converted, dtype=np.float64)

    def integers(self, key: str, minimum: int = 0) -> list[int]:
        """A list of whole numbers of at least `minimum`."""
        values = self.mapping.get(key)
        if not isinstance(values, list):
            raise self.fail(key, "a list of whole numbers")
        for index, value in enumerate(values):
            if not _is_whole(value, minimum):
                raise SequoiaError(
                    f"{self.where}: {key}[{index}]: found {shown(value)}, "
                    f"expected {_expected_whole(value, minimum)}"
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
    text = _REPR.repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _is_whole(value: Any, minimum: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= LARGEST


def _expected_whole(value: Any, minimum: int) -> str:
    """What was expected instead of `value`."""
    if isinstance(value, int) and value > LARGEST:
        return f"a whole number of at most {LARGEST}"
    return f"a whole number of at least {minimum}"


def _expected_range(kind: str, low: float, high: float) -> str:
    if low == -math.inf and high == math.inf:
        return kind
    if high == math.inf:
        return f"{kind} of at least {low:g}"
    return f"{kind} between {low:g} and {high:g}"
