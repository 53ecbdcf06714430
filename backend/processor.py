"""Which processor this is: thread counts alone do not tell one machine from another."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def with_processor(device: Mapping[str, Any]) -> dict[str, Any]:
    """A device in words, and where that is a CPU, which one; beside a GPU it matters little."""
    return {**device, "processor": processor()} if device["backend"] == "cpu" else dict(device)


def processor() -> str:
    """The processor's name and how many cores the machine shows, as "AMD EPYC 7763, 2 cores"."""
    return f"{_name() or platform.machine()}, {os.cpu_count()} cores"


def _name() -> str:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "")
