from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sequoia_opt.engine.llama_cpp import library
from sequoia_opt.errors import SequoiaError


@pytest.fixture(autouse=True)
def unloaded() -> Iterator[None]:
    """The bindings are looked for again, before the test and after it."""
    library.bindings.cache_clear()
    yield
    library.bindings.cache_clear()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def import_module(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_a_missing_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(monkeypatch, ModuleNotFoundError("No module", name="llama_cpp"))
    with pytest.raises(SequoiaError, match=r"llama.cpp is not installed; pip install 'llama-cpp"):
        library.bindings()


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("libllama.so: undefined symbol: llama_decode"),
        FileNotFoundError("Shared library with base name 'llama' not found"),
        RuntimeError("Failed to load shared library"),
    ],
    ids=["too old", "missing", "broken"],
)
def test_a_library_that_does_not_fit_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(SequoiaError, match="does not fit the bindings") as raised:
        library.bindings()
    assert str(error) in str(raised.value)
    assert "LLAMA_CPP_LIB_PATH" in str(raised.value)


def test_bindings_that_are_too_old_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(llama_decode=None)
    monkeypatch.setattr(importlib, "import_module", lambda name: old)
    with pytest.raises(SequoiaError, match="they have no llama_batch_init"):
        library.bindings()


class OtherLayout:
    """The real bindings, with one field of a struct that has another value than the default."""

    def __init__(self, module: Any, function: str, field: str, value: Any) -> None:
        self._module, self._function = module, function
        self._field, self._value = field, value

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name != self._function:
            return found

        def changed() -> Any:
            defaults = found()
            setattr(defaults, self._field, self._value)
            return defaults

        return changed


@pytest.mark.parametrize(
    ("function", "field", "value"),
    [
        ("llama_context_default_params", "n_ctx", 2048),
        ("llama_context_default_params", "type_v", 0),
        ("llama_context_default_params", "kv_unified", True),
        ("llama_model_default_params", "use_extra_bufts", False),
    ],
)
def test_another_layout_is_refused(
    monkeypatch: pytest.MonkeyPatch, function: str, field: str, value: Any
) -> None:
    """Fields that shifted have other values than the library's defaults."""
    module = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed").llama_cpp
    other = OtherLayout(module, function, field, value)
    monkeypatch.setattr(importlib, "import_module", lambda name: other)
    with pytest.raises(SequoiaError, match=rf"another version of the library .*{field}: found"):
        library.bindings()


def test_the_library_says_what_it_is() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    versions = library.versions()
    assert versions["llama_cpp_python"]
    assert versions["llama_cpp_build"].startswith("CPU")
    assert library.most_sequences() >= 64


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llama_model_load: error loading model: unknown model architecture: 'x'",
         "unknown model architecture: 'x'"),
        ("init: invalid seq_id", "invalid seq_id"),
        ("out of memory", "out of memory"),
    ],
)  # fmt: skip
def test_reasons_do_not_begin_with_function_names(line: str, expected: str) -> None:
    assert library.reason(deque([line, "later"]), "unknown") == expected
    assert library.reason(deque(), "unknown") == "unknown"


def test_a_line_of_the_log_may_come_in_pieces() -> None:
    log = library.Log()
    log.add(2, b"information", None)
    log.add(4, b"an error", None)
    log.add(library.CONTINUED, b" goes on\n", None)
    assert list(log.lines) == ["an error", "goes on"]
