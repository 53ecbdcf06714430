"""The kinds of background job, by name. A task reads its parameters, writes into its folder, and reports progress."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.app.cli import INTERRUPTED
from leankv.app.jobkinds import RESULTS, Kind, kinds
from leankv.app.jobs import Cancelled, Progress, Task
from leankv.app.rates import Outcome, next_scale
from leankv.app.scenario import Scenario, traffic
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


SWEEP = "rate-sweep"
SWEEP_FILE = "rates.parquet"
FOLLOW_EVERY_S = 0.5
EXPECTED_RATES = 12  # most sweeps need about so many; progress is told against it


def rate_sweep(params: Mapping[str, Any], folder: Path, progress: Progress) -> None:
    """Simulate every policy at rates around their knees; `rates.parquet` grows rate by rate, for all to see.

    `params` are a scenario's (`Scenario.to_params`); its own rate scale does not matter.
    """
    from leankv.simulator.run import simulate
    from leankv.simulator.sweep import offered_rps, sweep_row
    from leankv.traces.open import open_trace

    scenario = Scenario.from_params(params)
    opened = open_trace(scenario.trace, seed=scenario.seed)
    rows: list[dict[str, Any]] = []
    tried: dict[float, list[Outcome]] = {}
    expected = EXPECTED_RATES * len(scenario.policies)
    while (scale := next_scale(tried)) is not None:
        trace = traffic(opened, scale, scenario.limit)
        offered = offered_rps(trace)
        for policy in scenario.policies:
            before = len(rows)

            def report(fraction: float, before: int = before, policy: str = policy, offered: float = offered) -> None:
                progress(min(0.99, (before + fraction) / expected), f"{policy} at {offered:.2f} requests/s")

            report(0.0)
            run = simulate(scenario.config(policy), trace, report)
            rows.append(sweep_row(policy, scale, offered, run.summary))
        tried[scale] = [Outcome(row["attainment"], row["stable"]) for row in rows[-len(scenario.policies) :]]
        _write(rows, folder)


def read_sweep(folder: Path) -> pa.Table | None:
    """The sweep as far as it has come; None before its first row."""
    import pyarrow.parquet as pq

    path = folder / SWEEP_FILE
    return pq.read_table(path) if path.exists() else None


def _write(rows: list[dict[str, Any]], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from leankv.serving.files import atomic_write

    with atomic_write(folder / SWEEP_FILE) as path:
        pq.write_table(pa.Table.from_pylist(rows), path)


def run_command(kind: Kind, params: Mapping[str, Any], folder: Path, progress: Progress) -> None:
    """Run the kind's `leankv` command in this process; its progress is told on, its results lie in `results`.

    Raises InputError as the command does, Cancelled where it says that it was stopped.
    """
    from leankv.app.cli import dispatch
    from leankv.app.commands._progress import PROGRESS_FILE

    told = folder / "progress.json"
    # in the environment, so that what the command starts in turn is followed, too
    os.environ[PROGRESS_FILE] = str(told)
    print(f"$ {kind.line(params, folder / RESULTS)}", flush=True)
    with _followed(told, progress):
        status = dispatch(kind.argv(params, folder / RESULTS))
    if status == INTERRUPTED:
        raise Cancelled
    if status:
        raise InputError(f"leankv {kind.command} ended with status {status}: see the log")


@contextmanager
def _followed(told: Path, progress: Progress) -> Iterator[None]:
    """Pass on what the command writes about its progress, as long as it is at work."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(FOLLOW_EVERY_S):
            if told.exists():
                found = json.loads(told.read_text(encoding="utf-8"))
                progress(min(0.99, found["share"]), found["label"])

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def tasks() -> dict[str, Task]:
    """Every kind of job, by name."""
    return {SWEEP: rate_sweep, **{name: partial(run_command, kind) for name, kind in kinds().items()}}
