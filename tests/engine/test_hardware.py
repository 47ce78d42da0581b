from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sequoia_opt
from sequoia_opt.engine import cpu, hardware

KERNEL = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC"


def no_file(path: Path) -> str:
    raise FileNotFoundError(path)


@pytest.mark.parametrize(
    ("kernel", "tool_output", "driver"),
    [
        (lambda path: KERNEL, None, "580.159.04"),
        (no_file, "550.90.07\n550.90.07\n", "550.90.07"),
        (no_file, "[N/A]\n", "unknown"),
        (no_file, None, "unknown"),
    ],
    ids=["kernel", "tool", "tool does not know", "neither"],
)
def test_the_driver_version_comes_from_the_kernel_or_else_from_nvidia_smi(
    kernel: Any, tool_output: str | None, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if tool_output is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, tool_output, "")

    monkeypatch.setattr(Path, "read_text", kernel)
    monkeypatch.setattr(subprocess, "run", run)
    assert hardware._driver_version() == driver


def test_versions_are_known_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that runs by PYTHONPATH has no package metadata."""

    def missing(package: str) -> str:
        raise hardware.PackageNotFoundError(package)

    monkeypatch.setattr(hardware, "version", missing)
    versions = hardware.software(torch.device("cpu"))
    assert versions["sequoia_opt"] == sequoia_opt.__version__
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == "unknown"


@pytest.fixture
def fresh_cpuinfo() -> Iterator[None]:
    """What the system says about its processors is read again, before the test and after it."""
    cpu._cpuinfo.cache_clear()
    yield
    cpu._cpuinfo.cache_clear()


def test_a_machine_is_described(monkeypatch: pytest.MonkeyPatch, fresh_cpuinfo: None) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda path: "model name\t: Intel(R) Xeon(R) CPU @ 2.1GHz\n"
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    machine = hardware.hardware(torch.device("cpu"))
    assert machine["slug"] == "intel-xeon-cpu-2-1ghz-4-threads"
    assert machine["name"] == "Intel(R) Xeon(R) CPU @ 2.1GHz"
    assert machine["device"] == "cpu"
    assert machine["threads"] == 4
    assert machine["memory_gb"] > 0
