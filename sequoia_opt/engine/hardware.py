"""Identifies the machine and the software versions that timings depend on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sequoia_opt import __version__
from sequoia_opt.engine.cpu import cpu_name

VERSION_NUMBER = re.compile(r"\b(\d+\.\d+[.\d]*)")


def hardware(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Describe the machine; `slug` is the name of its folder.

    Args:
        threads: processors that compute, on a CPU; by default torch's.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "slug": slug(properties.name),
            "device": "cuda",
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
        }
    name, threads = cpu_name(), threads or torch.get_num_threads()
    return {
        "slug": slug(f"{name}-{threads}-threads"),
        "device": device.type,
        "name": name,
        "threads": threads,
        "memory_gb": _memory_gb(),
    }


def software(device: torch.device) -> dict[str, Any]:
    """Versions of the software that runs the models."""
    versions = own_versions() | {
        "torch": str(torch.__version__),
        "transformers": _package_version("transformers"),
    }
    if device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "driver": _driver_version()}
    return versions


def own_versions() -> dict[str, str]:
    """Versions of this program and of Python."""
    return {
        "sequoia_opt": __version__,  # a checkout that is not installed has no metadata
        "python": platform.python_version(),
    }


def _package_version(package: str) -> str:
    """An installed package's version; "unknown" without metadata."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def slug(name: str) -> str:
    """A name in lower-case letters, digits and hyphens, without trademark signs."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", name).lower()).strip("-")


def _memory_gb() -> float:
    """The machine's memory in GiB; 0 where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return 0.0


def _driver_version() -> str:
    """The NVIDIA driver's version from the kernel or, where a sandbox hides it, from nvidia-smi."""
    try:
        output = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.SubprocessError):
            return "unknown"
    number = VERSION_NUMBER.search(output)
    return number.group(1) if number else "unknown"
