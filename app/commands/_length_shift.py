"""Each policy simulated once more, with outputs as much longer as an evaluation measured them to get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.app.answers import knobs
from leankv.app.commands._progress import progress_bar
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from leankv.serving.policies.base import Policy
    from leankv.serving.quality import Quality
    from leankv.serving.runs import Run
    from leankv.simulator.config import SimulationConfig
    from leankv.simulator.length_shift import LengthShift
    from leankv.traces.trace import Trace

FIGURES = (
    "output_ratio",
    "mean_e2el_ms",
    "output_throughput",
    "request_throughput",
    "request_goodput",
    "rejected",
    "stable",
)


def measured_ratios(folder: Path, configs: Sequence[SimulationConfig]) -> dict[str, LengthShift]:
    """Ratios of output lengths by policy; fp16's are 1.

    Raises InputError for a policy that was not evaluated, or with other knobs, and for another model than the evaluated
    one: its answers would be as long as nobody measured.
    """
    from leankv.serving.length_shift import paired_lengths
    from leankv.serving.paired import BASELINE
    from leankv.serving.quality import load_quality
    from leankv.simulator.length_shift import LengthShift

    quality = load_quality(folder)
    found = {BASELINE: LengthShift((1,), (1,), "the baseline")}
    for config in configs:
        _require_model(folder, quality, config)
        for policy in config.policies or (config.policy,):
            if policy.name not in found:
                evaluated = _evaluated(folder, quality, policy)
                lengths = paired_lengths(quality.samples, evaluated)
                source = f"{folder}: {evaluated}"
                pairs = tuple(lengths.policy.tolist()), tuple(lengths.baseline.tolist())
                found[policy.name] = LengthShift(*pairs, source)
    return found


def _require_model(folder: Path, quality: Quality, config: SimulationConfig) -> None:
    """By the last part of the name: an evaluation may name the folder of the model, a preset never does."""
    measured, asked = quality.model.name, config.model.name
    if Path(measured).name != Path(asked).name:
        raise InputError(
            f"--length-shift {folder}: output lengths were measured on {measured}, not on {asked}; give "
            f"--model {measured} or evaluate {asked}"
        )


def _evaluated(folder: Path, quality: Quality, policy: Policy) -> str:
    """The name under which a policy with the same knobs was evaluated; its own where it was not evaluated at all."""
    asked = knobs(repr(policy))
    names = [name for name, specification in quality.specifications.items() if knobs(specification) == asked]
    if not names and policy.name in quality.specifications:
        raise InputError(
            f"--length-shift {folder}: {policy.name} had other knobs when it was evaluated; evaluate it again"
        )
    return next(iter(names), policy.name)


def shifted_figures(
    configs: Mapping[int, SimulationConfig], traces: Mapping[int, Trace], ratios: Mapping[str, LengthShift]
) -> dict[str, Any]:
    """One policy's figures with longer outputs: means over the seeds.

    output_ratio: tokens served over the trace's for the same requests, so that of several policies each counts as much
    as the router gave it. measured: by lossy policy, the prompts that its ratios come from, and the ratio over them.
    """
    summaries = []
    for seed, config in configs.items():
        with progress_bar(f"{config.policy_name}, outputs as measured") as report:
            summaries.append(_figures(config, traces[seed], ratios, report))
    figures = {
        name: all(each[name] for each in summaries)
        if name == "stable"
        else float(np.mean([each[name] for each in summaries]))
        for name in FIGURES
    }
    return {**figures, "measured": _measured(next(iter(configs.values())), ratios)}


def _measured(config: SimulationConfig, ratios: Mapping[str, LengthShift]) -> dict[str, Any]:
    from leankv.serving.paired import BASELINE

    names = [policy.name for policy in config.policies or (config.policy,) if policy.name != BASELINE]
    return {name: _told(ratios[name]) for name in names}


def _told(lengths: LengthShift) -> dict[str, Any]:
    from leankv.serving.length_shift import ratio_interval

    interval = ratio_interval(np.array(lengths.policy, dtype=float), np.array(lengths.uncompressed, dtype=float))
    figures = {"pairs": lengths.pairs, "total_ratio": lengths.total_ratio, "total_ratio_interval": interval}
    return {**figures, "source": lengths.source}


def _figures(
    config: SimulationConfig, trace: Trace, ratios: Mapping[str, LengthShift], report: Any
) -> Mapping[str, Any]:
    from leankv.simulator.length_shift import shifted
    from leankv.simulator.mixed import simulate_mixed
    from leankv.simulator.run import simulate

    longer = [
        shifted(trace, ratios[policy.name], config.seed, config.model.max_context)
        for policy in config.policies or (config.policy,)
    ]
    run = simulate_mixed(config, longer, report) if config.policies else simulate(config, longer[0], report)
    return {**run.summary, "output_ratio": _output_ratio(run, trace)}


def _output_ratio(run: Run, trace: Trace) -> float:
    """Of the requests that finished."""
    finished = run.requests["status"].to_numpy(zero_copy_only=False) == "finished"
    served = run.requests["output_tokens"].to_numpy()[finished].sum(dtype=np.int64)
    return float(served / trace.output_tokens[finished].sum(dtype=np.int64))
