"""Speed of the simulator's event loop: jumping against per-step, and its growth to a million requests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from leankv.app.commands._deployment import Deployment
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import Chosen, File, opened

ABOUT = """\
Time the simulator's event loop, token latencies included, on one core.

  leankv bench sim
  leankv bench sim --trace trace.csv.gz --policy fp16 --policy leankv --json speed.json

Times are processor seconds, the least of five runs. The ratio to the per-step mode is taken in the same run; the time
of an empty Python loop beside it says how fast the machine was at that moment.
"""


@dataclass(frozen=True)
class BenchSim:
    trace: Annotated[Chosen, tyro.conf.arg(name="")] = field(default_factory=Chosen)
    deployment: Annotated[Deployment, tyro.conf.arg(name="")] = field(default_factory=Deployment)
    requests: int = 5000
    """Requests of the short runs."""
    many: int = 1_000_000
    """Requests of the long run: the trace, repeated."""
    json: File = None
    """Write the figures to this file."""


def main(argv: list[str]) -> int:
    """Run `leankv bench sim`; raises InputError for bad input."""
    command = parsed(BenchSim, "leankv bench sim", ABOUT, argv)
    from leankv.simulator.speed_bench import measure

    trace = opened(command.trace)
    with progress_bar("bench sim") as report:
        figures = measure(command.deployment.configs(command.trace.seed), trace, command.requests, command.many, report)
    if command.json is not None:
        _write(figures, command)
    _print(figures, trace.name)
    return 0


def _write(figures: dict[str, Any], command: BenchSim) -> None:
    from leankv.serving.files import atomic_write

    assert command.json is not None
    with atomic_write(command.json) as beside:
        beside.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _print(figures: dict[str, Any], name: str) -> None:
    from rich.table import Table

    from leankv.app.commands._run_tables import wide_console

    table = Table(title=f"event loop on {name}, one core")
    for heading in ("policy", "requests", "mode", "steps", "loop s", "us/request", "requests/s", "tables s"):
        table.add_column(heading, justify="left" if heading in ("policy", "mode") else "right")
    for row in figures["loops"] + figures["growth"]:
        table.add_row(
            row["policy"],
            f"{row['requests']:,}",
            row["mode"],
            f"{row['steps']:,}",
            f"{row['seconds']:.3f}",
            f"{row['us_per_request']:.1f}",
            f"{row['requests'] / row['seconds']:,.0f}",
            f"{row['tables_s']:.3f}",
        )
    console = wide_console()
    console.print(table)
    for policy, ratio in figures["jump_ratio"].items():
        console.print(f"{policy}: jumping is {ratio:.1f} times as fast as stepping")
    console.print(
        f"cost per request at {figures['growth'][1]['requests']:,} is {figures['cost_ratio_many_to_10k']:.2f} times "
        f"that at 10,000; peak memory {figures['peak_memory_mib']:,.0f} MiB; "
        f"100,000 turns of an empty Python loop took {figures['python_loop_ms']:.2f} ms"
    )
