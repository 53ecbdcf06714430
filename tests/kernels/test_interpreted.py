"""The Triton kernels under Triton's CPU interpreter, each set in its own process: the variable is read at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(path.name for path in Path(__file__).parent.glob("interpreted_*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_kernels_agree_with_their_reference(script: str) -> None:
    pytest.importorskip("triton", reason="triton is part of the extra `live`")
    child = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).parent / script)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stdout + child.stderr
