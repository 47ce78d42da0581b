from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.engine.llama_cpp import amx
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.engine.model import reserved


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    """The kernels are tried again, in the test and after it."""
    amx.kernels_crash.cache_clear()
    yield
    amx.kernels_crash.cache_clear()


def child(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A build with kernels for AMX, and a child that runs `code` in place of a pass."""
    path = folder / "child.py"
    path.write_text(
        f"import os, sys, time\nassert open(sys.argv[1], 'rb').read(4) == b'GGUF'\n{code}"
    )
    monkeypatch.setattr(amx, "features", lambda: "AVX512 AMX_INT8 OPENMP")
    monkeypatch.setattr(amx, "CHILD", path)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGSEGV)})", True),
        (f"os.kill(os.getpid(), {int(signal.SIGILL)})", True),
        ("sys.exit(0)", False),
        ("sys.exit(1)", False),  # it could not try
        ("raise RuntimeError", False),
    ],
)
def test_a_child_that_dies_of_a_signal_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: bool
) -> None:
    child(tmp_path, monkeypatch, code)
    assert amx.kernels_crash() is expected


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(tmp_path, monkeypatch, "time.sleep(600)")
    monkeypatch.setattr(amx, "SECONDS", 0.5)
    assert not amx.kernels_crash()


def test_a_build_without_the_kernels_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(tmp_path, monkeypatch, f"os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    monkeypatch.setattr(amx, "features", lambda: "AVX512 OPENMP")
    assert not amx.kernels_crash()


def test_a_quantized_model_runs_whatever_the_build(tmp_path: Path) -> None:
    """All matrices are zero, so each token has the logits of every other."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from sequoia_opt.engine.llama_cpp.model import LlamaModel

    header = read_header(amx.smallest_model(tmp_path / "model.gguf"))
    assert header.is_quantized
    model = LlamaModel(header.path, header, Settings(threads=2))
    with reserved(model, 16) as cache:
        logits = model.extend(cache, torch.arange(8)[None], 0, keep=0)[0]
    assert torch.allclose(logits, torch.full_like(logits, float(amx.WIDTH)), rtol=1e-3)
