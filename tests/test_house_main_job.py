"""The main job, word for word as the README gives it, on the real trace."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from leankv.app import cli

REQUESTS_IN_THE_TRACE = 19_366


def readme_command(readme: str) -> list[str]:
    """The README's first `leankv simulate` on the trace that it downloads, as a list of words."""
    command = re.search(r"^leankv (simulate --trace azure-conv-2023 (?:.*\\\n)*.*)$", readme, re.MULTILINE)
    assert command, "the README no longer shows the main job"
    return shlex.split(command[1].replace("\\\n", " "))


def test_the_readme_command_completes_the_real_trace(repository: Path, shared: Path, tmp_path: Path) -> None:
    words = readme_command((repository / "README.md").read_text())
    child = [sys.executable, "-P", "-m", "leankv.app.cli", *words]
    downloaded = {**os.environ, "LEANKV_TRACES": str(shared / "traces")}
    subprocess.run(child, cwd=tmp_path, env=downloaded, check=True, stdout=subprocess.PIPE)

    runs = json.loads((tmp_path / words[words.index("--json") + 1]).read_text())["runs"]
    assert [(run["policy"], run["source"]) for run in runs] == [("fp16", "simulated"), ("leankv", "simulated")]
    assert [run["summary"]["completed"] for run in runs] == [REQUESTS_IN_THE_TRACE] * 2


def test_the_command_that_help_teaches_works(tmp_path: Path) -> None:
    words = shlex.split(re.search(r"^  leankv (simulate .*)$", cli.TEACHING, re.MULTILINE)[1])
    child = [sys.executable, "-P", "-m", "leankv.app.cli", *words, "--limit", "100"]
    shown = subprocess.run(child, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "fp16" in shown and "leankv" in shown
