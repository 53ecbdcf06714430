"""Run folders: whole or absent, and read back as written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from leankv.serving import runs
from leankv.serving.errors import InputError
from leankv.serving.runs import SCHEMA_VERSION, Run, config_hash, load_run, save_run


@pytest.fixture
def run() -> Run:
    table = pa.table({"request_id": [0, 1], "ttft_ms": [1.5, float("nan")]})
    return Run("simulated", {"policy": "fp16", "seed": 1}, {"completed": 2}, table, table.slice(1), table.slice(0, 1))


def test_round_trip(run: Run, tmp_path: Path) -> None:
    back = load_run(save_run(run, tmp_path / "a" / "run"))
    assert (back.source, back.config, back.summary, back.policy) == ("simulated", run.config, run.summary, "fp16")
    for name in runs.TABLES:
        assert str(getattr(back, name).to_pydict()) == str(getattr(run, name).to_pydict())
    stamp = back.requests.schema.metadata
    assert stamp[b"schema_version"] == str(SCHEMA_VERSION).encode() and stamp[b"config_hash"] and stamp[b"commit"]


def test_a_failure_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "commit", lambda: "x")
    broken = replace(run, segments=None)
    with pytest.raises(AttributeError):
        save_run(broken, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(run: Run, tmp_path: Path) -> None:
    save_run(run, tmp_path / "run")
    with pytest.raises(InputError, match="already holds files"):
        save_run(run, tmp_path / "run")


@pytest.mark.parametrize("missing", ["config.json", "summary.json", "requests.parquet", "segments.parquet"])
def test_a_missing_or_broken_file_is_named(run: Run, tmp_path: Path, missing: str) -> None:
    folder = save_run(run, tmp_path / "run")
    (folder / missing).write_bytes(b"half a fi")
    with pytest.raises(InputError, match=missing):
        load_run(folder)
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing):
        load_run(folder)


def test_a_newer_schema_is_refused(run: Run, tmp_path: Path) -> None:
    folder = save_run(run, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(InputError, match="update"):
        load_run(folder)


def test_the_hash_ignores_order_and_sees_values() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
