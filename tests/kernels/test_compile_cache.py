"""The cache's kernels compile for Ampere and Hopper without a GPU, and spill no registers."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from leankv.kernels.compile_report import compiled
from leankv.kernels.compile_variants import cache_variants
for variant in cache_variants():
    for capability in (80, 90):
        print(compiled(variant, capability).line, flush=True)
"""


def test_kernels_compile_without_spills() -> None:
    pytest.importorskip("triton", reason="triton is part of the extra `live`")
    child = subprocess.run([sys.executable, "-P", "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 42
    assert all(" 0 B spilled" in line for line in lines), child.stdout
