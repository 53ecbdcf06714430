"""Project a trace on a model, a device and some policies: latency, throughput, memory, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from leankv.app.commands._deployment import Deployment
from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import Chosen, File, opened

if TYPE_CHECKING:
    from leankv.serving.runs import Run
    from leankv.simulator.config import SimulationConfig
    from leankv.simulator.length_shift import LengthShift
    from leankv.traces.trace import Trace

ABOUT = """\
Simulate a trace under several KV-cache policies and compare them.

  leankv simulate --policy fp16 --policy leankv
  leankv simulate --trace trace.csv.gz --model qwen3-32b --device h100 --tp 2 --policy fp16 --policy kivi:bits=2
  leankv simulate --trace gamma:rate=8,cv=3,n=5000 --seeds 5 --slo ttft:500 tpot:50 --json out.json
  leankv simulate --model smollm2-135m --policy fp16 --policy leankv --length-shift quality

Latencies have the definitions of `vllm bench serve`. Every figure says where its step times come from.
"""


@dataclass(frozen=True)
class Simulate:
    trace: Annotated[Chosen, tyro.conf.arg(name="")] = field(default_factory=Chosen)
    seeds: int = 1
    """Draw a generated trace so often, from --seed onwards, the same for each policy; figures are means over seeds."""
    deployment: Annotated[Deployment, tyro.conf.arg(name="")] = field(default_factory=Deployment)
    output_dir: File = None
    """Folder for one run folder a policy (config, summary, requests, timeline, segments); must be new or empty."""
    json: File = None
    """Write every summary to this file."""
    length_shift: File = None
    """An evaluation of this model: simulate each policy once more with outputs as much longer as measured there.
    Routers that predict lengths do so as well as could be learned from its prompts, where those are at least 20."""


@dataclass(frozen=True)
class Result:
    """One policy: a run a seed, and what is told of them."""

    runs: Mapping[int, Run]
    summary: Mapping[str, Any]

    @property
    def policy(self) -> str:
        return str(self.summary["policy"])


def main(argv: list[str]) -> int:
    """Run `leankv simulate`; raises InputError for bad input, and then has written nothing."""
    command = parsed(Simulate, "leankv simulate", ABOUT, argv)
    _check_outputs(command)
    configs = {seed: command.deployment.configs(seed) for seed in _seeds(command)}
    traces = _traces(command)
    _require_fit(configs[command.trace.seed])
    ratios = _ratios(command, configs[command.trace.seed])
    configs = _as_predicted(command, configs)
    results: list[Result] = []
    try:
        for index in range(len(configs[command.trace.seed])):
            chosen = {seed: configs[seed][index] for seed in configs}
            results.append(_result(chosen, traces, ratios))
    except KeyboardInterrupt:
        if results:
            _finish(command, results)
        raise
    _finish(command, results)
    return 0


def _ratios(command: Simulate, configs: Sequence[SimulationConfig]) -> Mapping[str, LengthShift] | None:
    """By policy, or None where no shift was asked for."""
    if command.length_shift is None:
        return None
    from leankv.app.commands._length_shift import measured_ratios

    return measured_ratios(command.length_shift, configs)


def _as_predicted(command: Simulate, configs: dict[int, list[SimulationConfig]]) -> dict[int, list[SimulationConfig]]:
    """By seed; routers predict lengths as well as it was measured where a shift was."""
    if command.length_shift is None:
        return configs
    from leankv.app.commands._length_accuracy import length_accuracy

    length = length_accuracy(command.length_shift, command.deployment.router, command.deployment.length_accuracy)
    if length is None:
        return configs
    return {
        seed: [replace(config, accuracy=replace(config.accuracy, length=length)) for config in each]
        for seed, each in configs.items()
    }


def _check_outputs(command: Simulate) -> None:
    """Refuse an unusable place before any work."""
    from leankv.serving.files import require_new_folder

    require_place_for_file(command.json)
    if command.output_dir is not None:
        require_new_folder(command.output_dir)
        require_place_for_folder(command.output_dir)


def _seeds(command: Simulate) -> range:
    from leankv.serving.errors import InputError

    if command.seeds < 1 or command.trace.seed < 0:
        raise InputError(f"--seeds {command.seeds} from --seed {command.trace.seed}: give at least 1, from 0 or more")
    return range(command.trace.seed, command.trace.seed + command.seeds)


def _traces(command: Simulate) -> dict[int, Trace]:
    """The trace of each seed. Raises InputError where seeds are asked for of a trace that has none."""
    import sys

    from leankv.serving.errors import InputError

    traces: dict[int, Trace] = {}
    for seed in _seeds(command):
        trace = opened(replace(command.trace, seed=seed))
        if seed == command.trace.seed + 1 and _same_requests(trace, traces[command.trace.seed]):
            raise InputError(
                f"--seeds {command.seeds}: {trace.name} is the same for every seed; leave --seeds out (a replayed "
                "trace's intervals come from blocks of its own time), or name a generated trace without a seed"
            )
        traces[seed] = trace
    for warning in dict.fromkeys(warning for trace in traces.values() for warning in trace.warnings):
        print(f"leankv: warning: {warning}", file=sys.stderr)
    return traces


def _same_requests(one: Trace, other: Trace) -> bool:
    columns = ("arrival_ps", "prompt_tokens", "output_tokens")
    return all(getattr(one, column).tobytes() == getattr(other, column).tobytes() for column in columns)


def _require_fit(configs: Sequence[SimulationConfig]) -> None:
    from leankv.simulator.mixed import deploy_mixed
    from leankv.simulator.run import deploy

    for config in configs:
        deploy_mixed(config) if config.policies else deploy(config)


def _result(
    configs: Mapping[int, SimulationConfig], traces: Mapping[int, Trace], ratios: Mapping[str, LengthShift] | None
) -> Result:
    from leankv.serving.seeds import over_seeds

    runs = {seed: _simulated(config, traces[seed]) for seed, config in configs.items()}
    summaries = {seed: run.summary for seed, run in runs.items()}
    summary = over_seeds(summaries) if len(runs) > 1 else next(iter(summaries.values()))
    if ratios is not None:
        from leankv.app.commands._length_shift import shifted_figures

        summary = {**summary, "with_length_shift": shifted_figures(configs, traces, ratios)}
    return Result(runs, summary)


def _simulated(config: SimulationConfig, trace: Trace) -> Run:
    from leankv.simulator.run import simulate

    with progress_bar(f"{config.policy_name}: {len(trace):,} requests") as report:
        return simulate(config, trace, report)


def _finish(command: Simulate, results: list[Result]) -> None:
    """Compare what has run, write it where asked, and print it."""
    from leankv.app.commands._run_tables import print_comparison
    from leankv.serving.files import atomic_write

    compared = _paired(results)
    if command.output_dir is not None:
        _save(compared, command.output_dir)
    if command.json is not None:
        described = [{"policy": each.policy, "source": "simulated", "summary": each.summary} for each in compared]
        with atomic_write(command.json) as beside:
            beside.write_text(json.dumps({"runs": described}, indent=1) + "\n", encoding="utf-8")
    first_run = next(iter(compared[0].runs.values()))
    print_comparison(first_run.config, [each.summary for each in compared])


def _paired(results: list[Result]) -> list[Result]:
    """Each summary with its difference to the baseline's: fp16 where it ran, else the first policy."""
    from leankv.serving.paired import BASELINE, paired_difference

    baseline = next((result for result in results if result.policy == BASELINE), results[0])
    compared = []
    for result in results:
        if result is not baseline:
            tables = [(baseline.runs[seed].requests, run.requests) for seed, run in result.runs.items()]
            difference = paired_difference(tables)
            paired = None if difference is None else {"against": baseline.policy, **difference}
            result = replace(result, summary={**result.summary, "paired": paired})
        compared.append(result)
    return compared


def _save(results: list[Result], folder: Path) -> None:
    """A run folder a policy, and in it one a seed where there are several; all of them or none."""
    from leankv.serving.files import atomic_folder
    from leankv.serving.runs import save_run

    with atomic_folder(folder) as beside:
        for result in results:
            place = beside / result.policy.replace(":", "-").replace(",", "-").replace("=", "")
            for seed, run in result.runs.items():
                if len(result.runs) > 1:
                    save_run(run, place / f"seed-{seed}")
                else:
                    save_run(replace(run, summary=result.summary), place)
