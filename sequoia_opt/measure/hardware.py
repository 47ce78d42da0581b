"""Which machine this is, and which versions run on it."""

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

DRIVER_NUMBER = re.compile(r"\b(\d+\.\d+[.\d]*)")


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine's identity; `slug` names its folder."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "slug": _slug(properties.name),
            "device": "cuda",
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
        }
    name, threads = _cpu_name(), torch.get_num_threads()
    return {
        "slug": _slug(f"{name}-{threads}-threads"),
        "device": device.type,
        "name": name,
        "threads": threads,
        "memory_gb": _memory_gb(),
    }


def software(device: torch.device) -> dict[str, Any]:
    """Versions that timings depend on."""
    found = {
        "sequoia_opt": __version__,  # also where it runs from a checkout, not installed
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": _version("transformers"),
    }
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "driver": _driver()}
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", name).lower()).strip("-")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return 0.0


def _driver() -> str:
    """The NVIDIA driver's version, as the kernel says it or, in a sandbox, nvidia-smi."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.SubprocessError):
            return "unknown"
    number = DRIVER_NUMBER.search(said)
    return number.group(1) if number else "unknown"
