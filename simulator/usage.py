"""What a simulated run used: pages, batch sizes, money."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leankv.serving.bottleneck import WAITING_MATTERS, limiting_resource
from leankv.serving.run_tables import rejections

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.simulator.config import SimulationConfig
    from leankv.simulator.recorder import ReplicaLog
    from leankv.simulator.run import Deployment

Ints = npt.NDArray[np.int64]


def usage_summary(
    deployment: Deployment,
    logs: list[ReplicaLog],
    requests: pa.Table,
    segments: pa.Table,
    states: pa.Table,
    duration_s: float,
) -> dict[str, Any]:
    """Summary keys beyond the latencies; pages are counted at the timeline's instants, per replica.

    `duration_s`: from the first arrival to the last token, the time that is paid for.
    """
    config, memory = deployment.config, deployment.memory
    used = states["kv_pages_used"].to_numpy()
    prompts, outputs = finished_lengths(requests)
    nominal, physical = memory.ratios(prompts, prompts + outputs)
    dollars = config.device.price_usd_h * config.gpus * duration_s / 3600
    return {
        "policy": config.policy_name,
        "step_time_source": deployment.step_time.source,
        "retention_source": config.policy.retention.source if config.policy.retention else "exact",
        "peak_kv_pages": int(used.max()),
        "mean_kv_pages": float(used.mean()),
        "kv_pages_capacity": deployment.capacity,
        "page_bytes": memory.page_bytes,
        "peak_kv_gib": float(used.max()) * memory.page_bytes / 2**30,
        "kv_pool_gib": deployment.kv_bytes / 2**30,
        "max_running": max(map(most_running, logs)),
        "mean_running": float(states["running"].to_numpy().mean()),
        "nominal_ratio": nominal,
        "physical_ratio": physical,
        "usd_per_million_output_tokens": dollars / int(outputs.sum()) * 1e6,
        "limited_by": limit_of_loop(config, limiting_resource(deployment.limits, segments), states),
        "rejections": rejections(requests),
        "window": "all requests from the first arrival to the last token; no warm-up and no tail is cut off",
    }


def limit_of_loop(config: SimulationConfig, resource: str, states: pa.Table) -> str:
    """`resource`, but "concurrency" in a closed loop that had as many requests in flight as it may, and yet room."""
    if resource != "arrivals" or config.max_concurrency is None:
        return resource
    in_flight = states["running"].to_numpy() + states["waiting"].to_numpy()
    full = in_flight.reshape(config.replicas, -1).sum(axis=0) >= config.max_concurrency
    return "concurrency" if full.mean() >= WAITING_MATTERS else resource


def most_running(log: ReplicaLog) -> int:
    """Requests that one replica ran at once, at most; one that leaves at an instant makes room for one that comes."""
    came, left = np.sort(log.stays.column("admitted_ps")), np.sort(log.stays.column("end_ps"))
    running = np.arange(1, len(came) + 1) - np.searchsorted(left, came, side="right")
    return int(running.max(initial=0))


def finished_lengths(requests: pa.Table) -> tuple[Ints, Ints]:
    """(prompt tokens, output tokens) of the finished requests."""
    done = requests.filter(requests["status"].to_numpy() == "finished")
    prompts, outputs = (done[name].to_numpy().astype(np.int64) for name in ("prompt_tokens", "output_tokens"))
    return prompts, outputs


def prefix_summary(deployment: Deployment, logs: list[ReplicaLog], prompts: Ints) -> dict[str, Any]:
    """Whether prefixes were shared, and the share of all admitted prompt tokens that was found computed.

    `prompts`: prompt tokens by request id. A request counts each time it is admitted, and not at all if rejected.
    """
    if not deployment.config.prefix_caching:
        return {"prefix_caching": "off"}
    if not deployment.shares_prefixes():
        return {"prefix_caching": "not possible with this policy"}
    hits = sum(int(log.stays.column("hit_tokens").sum()) for log in logs)
    asked = sum(int(prompts[log.stays.column("request")].sum()) for log in logs)
    return {"prefix_caching": "on", "prefix_hit_rate": hits / asked}
