"""Predicted beside reported: what the simulator says of published losses, from costs fixed before it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leankv.serving.policies.base import Policy
from leankv.simulator.config import SimulationConfig
from leankv.simulator.loss_reports import Claim, Report, Setup, all_reports
from leankv.simulator.run import simulate
from leankv.simulator.silicon_bench import closed_loop

METRICS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "TPOT": lambda summary: float(summary["mean_tpot_ms"]),
    "throughput": lambda summary: float(summary["request_throughput"]),
    "prefill": lambda summary: float(summary["total_token_throughput"]),
    "decode": lambda summary: 1.0 / float(summary["mean_tpot_ms"]),
}


@dataclass(frozen=True)
class Outcome:
    """A claim and the ratio predicted for it."""

    report: Report
    claim: Claim
    predicted: float

    @property
    def agrees(self) -> bool:
        """Whether prediction and report lie on the same side of 1: both a loss or both a gain."""
        return (self.predicted - 1) * (self.claim.reported - 1) > 0

    def as_dict(self) -> dict[str, Any]:
        """What goes into `--json`."""
        return {
            "report": self.report.title,
            "source": self.report.source,
            "claim": self.claim.label,
            "reported_ratio": self.claim.reported,
            "predicted_ratio": self.predicted,
            "same_direction": self.agrees,
            "left_out": self.claim.why,
        }


def outcomes(progress: Callable[[float], None] = lambda share: None) -> list[Outcome]:
    """Run every report's setups, each deployment once; `progress` is called with the share of claims done."""
    summaries: dict[tuple[Setup, str, str], Mapping[str, Any]] = {}
    claims = [(report, claim) for report in all_reports() for claim in report.claims]
    found = []
    for index, (report, claim) in enumerate(claims):
        found.append(Outcome(report, claim, _ratio(claim, summaries)))
        progress((index + 1) / len(claims))
    return found


def _ratio(claim: Claim, summaries: dict[tuple[Setup, str, str], Mapping[str, Any]]) -> float:
    def of(policy: Policy) -> float:
        key = (claim.setup, policy.name, claim.kernels)
        if key not in summaries:
            summaries[key] = _summary(claim.setup, policy, claim.kernels)
        return METRICS[claim.metric](summaries[key])

    return of(claim.policy) / of(claim.baseline)


def _summary(setup: Setup, policy: Policy, kernels: str) -> Mapping[str, Any]:
    config = SimulationConfig(
        model=setup.model,
        device=setup.device,
        policy=policy,
        tp=setup.tp,
        max_num_batched_tokens=setup.step_tokens,
        memory_utilization=setup.memory_utilization,
        step_time=f"roofline:{kernels}" if kernels else "roofline",
        max_concurrency=setup.concurrency,
    )
    return simulate(config, closed_loop(setup.prompt, setup.output, setup.requests)).summary
