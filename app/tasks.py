"""The kinds of background job, by name. A task reads its parameters, writes into its folder, and reports progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.app.jobs import Progress, Task
from leankv.app.rates import Outcome, next_scale
from leankv.app.scenario import Scenario, traffic

if TYPE_CHECKING:
    import pyarrow as pa


SWEEP_FILE = "rates.parquet"
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


TASKS: Mapping[str, Task] = {"rate-sweep": rate_sweep}
