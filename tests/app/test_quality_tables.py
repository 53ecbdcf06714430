"""What `leankv evaluate` prints of an evaluation that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from leankv.app.commands._quality_tables import print_quality
from leankv.serving.quality import load_quality, samples_table


def test_shares_come_with_how_many_they_are_of(
    made: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Growth with its interval and prompts, cut-off answers and prompts left out, negative samples of the benign."""
    quality = load_quality(made.quality_folder(tmp_path / "mine"))  # type: ignore[attr-defined]
    rows = quality.samples.to_pylist()
    for row in rows:
        if row["task"] == "answers":
            row["stopped"] = int(row["sample_id"]) >= (4 if row["policy"] == "fp16" else 12)
    print_quality(replace(quality, samples=samples_table(rows)))
    shown = capsys.readouterr().out
    second = [line for line in shown.splitlines() if line.startswith("int4 ")][1]
    assert "of 36 [" in second and "22%" in second.split("of 36 [")[1]
    assert second.split()[-3].isdigit() and second.split()[-2] == "of" and 0 < int(second.split()[-1]) < 4 * 40
    assert "expanded where they are few" in shown
