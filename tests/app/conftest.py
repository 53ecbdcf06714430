"""Small tables with the schema of a run folder, for figures and pages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

PS = 10**12


def requests(n: int = 300, seed: int = 0, slow: float = 1.0) -> pa.Table:
    """`n` requests, most finished; number 0 rejected, number 1 unfinished, number 2 of a single output token."""
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(0.2, n))
    queue = random.exponential(0.05 * slow, n)
    ttft = queue + random.uniform(0.05, 0.4, n) * slow
    outputs = random.integers(2, 300, n)
    outputs[2] = 1
    tpot = random.uniform(0.01, 0.04, n) * slow
    e2el = ttft + tpot * (outputs - 1)
    status = np.array(["finished"] * n, dtype=object)
    status[0], status[1] = "rejected", "unfinished"
    done, admitted = status == "finished", status != "rejected"

    def times(seconds: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.where(where, (seconds * PS).astype(np.int64), -1)

    def ms(seconds: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.where(where, seconds * 1000, np.nan)

    return pa.table(
        {
            "request_id": np.arange(n),
            "replica": np.zeros(n, np.int32),
            "status": pa.array(status.tolist()),
            "prompt_tokens": random.integers(10, 4000, n).astype(np.int32),
            "output_tokens": outputs.astype(np.int32),
            "arrival_ps": (arrival * PS).astype(np.int64),
            "admitted_ps": times(arrival + queue, admitted),
            "first_token_ps": times(arrival + ttft, done),
            "finish_ps": times(arrival + e2el, done),
            "ttft_ms": ms(ttft, done),
            "tpot_ms": ms(tpot, done & (outputs > 1)),
            "e2el_ms": ms(e2el, done),
            "queue_ms": ms(queue, admitted),
            "preemptions": (np.arange(n) % 50 == 7).astype(np.int32),
            "reason": pa.array(["too long"] + [""] * (n - 1)),
        }
    )


def timeline(n: int = 1000, replica: int = 0, pages: int = 1000) -> pa.Table:
    """A timeline of `n` samples half a second apart; the last page count is its highest."""
    ramp = np.linspace(0, 0.8 * pages, n).astype(np.int64)
    return pa.table(
        {
            "time_s": np.arange(n) * 0.5,
            "replica": np.full(n, replica, np.int32),
            "running": np.minimum(np.arange(n), 64).astype(np.int32),
            "waiting": (np.arange(n) % 7).astype(np.int32),
            "kv_pages_used": ramp,
            "kv_pages_staging": ramp // 10,
            "kv_pages_tier0": ramp // 2,
            "kv_pages_tier1": ramp - ramp // 2 - ramp // 10,
            "kv_pages_capacity": np.full(n, pages, np.int64),
            "batch_tokens": np.full(n, 512, np.int32),
            "preemptions": (np.arange(n) // 100).astype(np.int64),
        }
    )


def summary(**changes: Any) -> dict[str, Any]:
    """The summary of a calm run of 1,000 requests over 100 seconds; `changes` replace values."""
    return {
        "completed": 1000,
        "rejected": 0,
        "duration_s": 100.0,
        "request_throughput": 10.0,
        "request_goodput": 9.5,
        "mean_e2el_ms": 4000.0,
        "limited_by": "memory bandwidth",
        "stable": True,
        "intervals": {},
        **changes,
    }


def sweep(curves: dict[str, list[tuple[float, float, float]]]) -> pa.Table:
    """policy -> (offered rate, share in time, mean end-to-end ms) as the table that a rate sweep writes."""
    rows = [
        {
            "policy": policy,
            "rate_scale": rate,
            "offered_rps": rate,
            "attainment": share,
            "goodput_rps": rate * share,
            "throughput_rps": rate,
            "mean_e2el_ms": e2el,
            "p99_ttft_ms": 100.0,
            "p99_tpot_ms": 20.0,
            "limited_by": "compute",
            "stable": share > 0.5,
        }
        for policy, points in curves.items()
        for rate, share, e2el in points
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture
def sample() -> SimpleNamespace:
    """Makers of the tables above."""
    return SimpleNamespace(requests=requests, timeline=timeline, summary=summary, sweep=sweep)


@pytest.fixture
def leankv_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder for the app and its jobs."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("LEANKV_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def made() -> Any:
    """The module of hand-made results."""
    import importlib.util

    path = Path(__file__).with_name("made.py")
    found = importlib.util.spec_from_file_location("leankv_tests_made", path)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
