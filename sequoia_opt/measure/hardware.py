"""Which machine this is, and which versions run on it."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


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
        "sequoia_opt": _version("sequoia-opt"),
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
    try:
        found = re.search(r"(\d+\.\d+[.\d]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found.group(1) if found else "unknown"
