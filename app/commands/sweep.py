"""Sweep policies over rates, KV memory and GPUs, on all cores, and find where each gives way."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated

import tyro

from leankv.app.commands._deployment import Deployment, Serving
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import Count, File, Requests, chosen_requests

if TYPE_CHECKING:
    from leankv.simulator.config import SimulationConfig
    from leankv.simulator.sweep_points import Outcome, PointStore, SweepPoint
    from leankv.traces.trace import Trace

ABOUT = """\
Simulate every policy at every rate, KV memory and tensor parallelism, and find where each gives way.

  leankv sweep --policy fp16 --policy leankv --device l40s
  leankv sweep --trace trace.csv.gz --rate-scale 0.5 1 2 4 --kv-memory-gib 8 16 --output-dir sweeps/first --csv out.csv

With --output-dir every finished point is kept: the same command, run again, simulates only what is missing.
"""

Floats = Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Ints = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT", help_behavior_hint="")]


@dataclass(frozen=True)
class Swept(Serving):
    """How the trace is served; memory and GPUs take several values."""

    tp: Ints = (1,)
    """GPUs that hold one replica (tensor parallel); several to sweep. Default: 1."""
    kv_memory_gib: Floats = ()
    """KV pool of one GPU in GiB; several to sweep. Default: what the GPU has left beside weights and activations."""

    def configs(self, seed: int) -> list[SimulationConfig]:
        """One configuration for each tensor parallelism, memory and policy. Raises InputError as Deployment does."""
        serving = {each.name: getattr(self, each.name) for each in fields(Serving)}
        places = [(tp, gib) for tp in dict.fromkeys(self.tp) for gib in dict.fromkeys(self.kv_memory_gib or (None,))]
        return [
            config for tp, gib in places for config in Deployment(**serving, tp=tp, kv_memory_gib=gib).configs(seed)
        ]


@dataclass(frozen=True)
class Sweep:
    trace: Annotated[Requests, tyro.conf.arg(name="")] = field(default_factory=Requests)
    rate_scale: Floats = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
    """Arrivals this many times as fast; default 0.5 0.71 1 1.41 2 2.83 4."""
    deployment: Annotated[Swept, tyro.conf.arg(name="")] = field(default_factory=Swept)
    attainment: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.9
    """Share of the requests that must meet every SLO, up to a policy's knee."""
    workers: Count = None
    """Processes; default: one a core."""
    output_dir: File = None
    """Folder that keeps each finished point; run again with it to simulate only what is missing."""
    json: File = None
    """Write every point's summary and the knees to this file."""
    csv: File = None
    """Write the table of points to this file."""


def main(argv: list[str]) -> int:
    """Run `leankv sweep`; 1 if a point failed by a defect of the program. Raises InputError for bad input."""
    from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
    from leankv.simulator.sweep_points import SweepPoint

    command = parsed(Sweep, "leankv sweep", ABOUT, argv)
    _check_numbers(command)
    configs = command.deployment.configs(command.trace.seed)
    require_place_for_file(command.json)
    require_place_for_file(command.csv)
    require_place_for_folder(command.output_dir)
    trace = chosen_requests(command.trace)
    rates = _offered_rates(trace, command.rate_scale)
    _say(*(f"warning: {warning}" for warning in trace.warnings))
    return _run(command, [SweepPoint(config, scale) for config in configs for scale in rates], trace, rates)


def _run(command: Sweep, points: list[SweepPoint], trace: Trace, rates: Mapping[float, float]) -> int:
    """Simulate what is missing and report, in the points' order; after Ctrl-C, what is finished."""
    from leankv.app.commands._sweep_tables import report
    from leankv.serving.errors import InputError
    from leankv.simulator.sweep_points import PointStore

    store = PointStore(command.output_dir, trace) if command.output_dir else None
    outcomes = _kept(points, store)
    if outcomes:
        _say(f"{len(outcomes)} of {len(points)} points are in {command.output_dir} already")
    try:
        missing = [point for point in points if point not in outcomes]
        for outcome in _simulated(missing, trace, command.workers):
            outcomes[outcome.point] = outcome
            if store is not None and outcome.summary is not None:
                store.write(outcome.point, outcome.summary)
    finally:
        finished = [outcomes[point] for point in points if point in outcomes]
        if any(outcome.summary for outcome in finished):
            report(finished, rates, command.attainment, command)
    if not any(outcome.summary for outcome in finished):
        raise InputError(f"every point failed, the first: {finished[0].error}")
    return 1 if any(outcome.defect for outcome in finished) else 0


def _check_numbers(command: Sweep) -> None:
    from leankv.serving.errors import InputError

    if not 0 < command.attainment <= 1:
        raise InputError(f"--attainment {command.attainment:g} is no share; write one above 0, at most 1, as in 0.9")
    if command.workers is not None and command.workers < 1:
        raise InputError(f"--workers {command.workers}: give at least 1")
    if not command.rate_scale or not command.deployment.tp:
        raise InputError("--rate-scale and --tp need at least one value each")


def _offered_rates(trace: Trace, scales: tuple[float, ...]) -> dict[float, float]:
    """Requests a second at each rate scale, rising. Raises InputError for a scale that is no positive number."""
    from leankv.simulator.sweep import offered_rps
    from leankv.traces.transforms import rate_scale

    return {scale: offered_rps(rate_scale(trace, scale)) for scale in sorted(set(scales))}


def _kept(points: list[SweepPoint], store: PointStore | None) -> dict[SweepPoint, Outcome]:
    from leankv.simulator.sweep_points import Outcome

    if store is None:
        return {}
    found = {point: store.read(point) for point in points}
    return {point: Outcome(point, summary) for point, summary in found.items() if summary is not None}


def _simulated(points: list[SweepPoint], trace: Trace, workers: int | None) -> Generator[Outcome]:
    from leankv.simulator.sweep_points import simulate_points

    if not points:
        return
    processes = min(workers or os.cpu_count() or 1, len(points))
    label = f"{len(points)} points of {len(trace):,} requests, {processes} processes"
    with progress_bar(label) as progress, closing(simulate_points(points, trace, processes, progress)) as outcomes:
        yield from outcomes


def _say(*lines: str) -> None:
    for line in lines:
        print(f"leankv: {line}", file=sys.stderr)
