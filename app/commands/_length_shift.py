"""Each policy simulated once more, with outputs as much longer as an evaluation measured them to get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.app.commands._progress import progress_bar

if TYPE_CHECKING:
    from leankv.simulator.config import SimulationConfig
    from leankv.simulator.length_shift import LengthShift
    from leankv.traces.trace import Trace

FIGURES = ("mean_e2el_ms", "output_throughput", "request_throughput", "request_goodput", "rejected", "stable")


def measured_ratios(folder: Path, configs: Sequence[SimulationConfig]) -> dict[str, LengthShift]:
    """Ratios of output lengths by policy; fp16's are 1. Raises InputError for a policy that was not evaluated."""
    from leankv.serving.length_shift import paired_lengths
    from leankv.serving.paired import BASELINE
    from leankv.serving.quality import load_quality
    from leankv.simulator.length_shift import LengthShift, length_ratios

    samples = load_quality(folder).samples
    found = {BASELINE: LengthShift((1.0,), "the baseline")}
    for config in configs:
        for policy in config.policies or (config.policy,):
            if policy.name not in found:
                lengths = paired_lengths(samples, policy.name)
                source = f"{folder}: {policy.name}"
                found[policy.name] = length_ratios(lengths.policy.tolist(), lengths.baseline.tolist(), source)
    return found


def shifted_figures(
    configs: Mapping[int, SimulationConfig], traces: Mapping[int, Trace], ratios: Mapping[str, LengthShift]
) -> dict[str, Any]:
    """One policy's figures with longer outputs: means over the seeds; `mean_ratio` is that of the ratios drawn from."""
    summaries = []
    for seed, config in configs.items():
        with progress_bar(f"{config.policy_name}, outputs as measured") as report:
            summaries.append(_summary(config, traces[seed], ratios, report))
    first = next(iter(configs.values()))
    members = first.policies or (first.policy,)
    figures = {
        name: all(each[name] for each in summaries)
        if name == "stable"
        else float(np.mean([each[name] for each in summaries]))
        for name in FIGURES
    }
    drawn = [ratios[policy.name] for policy in members]
    return {
        "mean_ratio": float(np.mean([each.mean for each in drawn])),
        "samples": [len(each.ratios) for each in drawn],
        "source": [each.source for each in drawn],
        **figures,
    }


def _summary(
    config: SimulationConfig, trace: Trace, ratios: Mapping[str, LengthShift], report: Any
) -> Mapping[str, Any]:
    from leankv.simulator.length_shift import shifted
    from leankv.simulator.mixed import simulate_mixed
    from leankv.simulator.run import simulate

    longer = [
        shifted(trace, ratios[policy.name].ratios, config.seed, config.model.max_context)
        for policy in config.policies or (config.policy,)
    ]
    run = simulate_mixed(config, longer, report) if config.policies else simulate(config, longer[0], report)
    return run.summary
