"""Project a trace on a model, a device and some policies: latency, throughput, memory, cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from leankv.app.commands._deployment import Deployment
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import Chosen, File, opened

if TYPE_CHECKING:
    from leankv.serving.runs import Run
    from leankv.simulator.config import SimulationConfig
    from leankv.traces.trace import Trace

ABOUT = """\
Simulate a trace under several KV-cache policies and compare them.

  leankv simulate --policy fp16 --policy leankv
  leankv simulate --trace trace.csv.gz --model qwen3-32b --device h100 --tp 2 --policy fp16 --policy kivi:bits=2
  leankv simulate --trace gamma:rate=8,cv=3,n=5000 --slo ttft:500 tpot:50 --json out.json --output-dir runs/first

Latencies have the definitions of `vllm bench serve`. Every figure says where its step times come from.
"""


@dataclass(frozen=True)
class Simulate:
    trace: Annotated[Chosen, tyro.conf.arg(name="")] = field(default_factory=Chosen)
    deployment: Annotated[Deployment, tyro.conf.arg(name="")] = field(default_factory=Deployment)
    output_dir: File = None
    """Folder for one run folder a policy (config, summary, requests, timeline, segments); must be new or empty."""
    json: File = None
    """Write every summary to this file."""


def main(argv: list[str]) -> int:
    """Run `leankv simulate`; raises InputError for bad input."""
    command = tyro.cli(
        Simulate, prog="leankv simulate", description=ABOUT, args=argv, config=(tyro.conf.OmitArgPrefixes,)
    )
    configs = command.deployment.configs(command.trace.seed)
    _check_outputs(command)
    trace = opened(command.trace)
    _warn(trace)
    runs: list[Run] = []
    try:
        for config in configs:
            runs.append(_simulated(config, trace))
            if command.output_dir is not None:
                _save(runs[-1], command.output_dir)
    finally:
        if runs:
            _report(runs, command.json)
    return 0


def _simulated(config: SimulationConfig, trace: Trace) -> Run:
    from leankv.simulator.run import simulate

    with progress_bar(f"{config.policy.name}: {len(trace):,} requests") as report:
        return simulate(config, trace, report)


def _check_outputs(command: Simulate) -> None:
    """Refuse an unusable place before any work."""
    from leankv.serving.errors import InputError
    from leankv.serving.files import require_new_folder

    if command.output_dir is not None:
        require_new_folder(command.output_dir)
    if command.json is not None and not command.json.absolute().parent.is_dir():
        raise InputError(f"cannot write {command.json}: its folder does not exist; create it or name another")


def _warn(trace: Trace) -> None:
    import sys

    for warning in trace.warnings:
        print(f"leankv: warning: {warning}", file=sys.stderr)


def _save(run: Run, folder: Path) -> None:
    from leankv.serving.runs import save_run

    save_run(run, folder / run.policy.replace(":", "-").replace(",", "-").replace("=", ""))


def _report(runs: list[Run], path: Path | None) -> None:
    from leankv.app.commands._run_tables import print_comparison
    from leankv.serving.files import atomic_write

    if path is not None:
        described = [{"policy": run.policy, "source": run.source, "summary": run.summary} for run in runs]
        with atomic_write(path) as beside:
            beside.write_text(json.dumps({"runs": described}, indent=1) + "\n", encoding="utf-8")
    print_comparison(runs)
