from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import sequoia_opt
from sequoia_opt.measure import hardware

KERNEL = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC"


def no_file(path: Path) -> str:
    raise FileNotFoundError(path)


@pytest.mark.parametrize(
    ("kernel", "tool", "driver"),
    [
        (lambda path: KERNEL, None, "580.159.04"),
        (no_file, "550.90.07\n550.90.07\n", "550.90.07"),
        (no_file, "[N/A]\n", "unknown"),
        (no_file, None, "unknown"),
    ],
    ids=["kernel", "tool", "tool does not know", "neither"],
)
def test_the_driver_is_asked_of_the_kernel_then_of_its_tool(
    kernel: Any, tool: str | None, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if tool is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, tool, "")

    monkeypatch.setattr(Path, "read_text", kernel)
    monkeypatch.setattr(subprocess, "run", run)
    assert hardware._driver() == driver


def test_versions_are_known_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that runs by PYTHONPATH has no metadata of its own."""

    def missing(package: str) -> str:
        raise hardware.PackageNotFoundError(package)

    monkeypatch.setattr(hardware, "version", missing)
    found = hardware.software(torch.device("cpu"))
    assert found["sequoia_opt"] == sequoia_opt.__version__
    assert found["torch"] == torch.__version__
    assert found["transformers"] == "unknown"
