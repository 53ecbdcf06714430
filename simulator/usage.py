"""What a run used: pages, batch sizes, money, and which resource held it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.traces.trace import Trace

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.simulator.recorder import ReplicaLog
    from leankv.simulator.run import Deployment

WAITING_MATTERS = 0.05
MIXED_DOMINATES = 0.5
PS_PER_S = 1e12


def usage_summary(
    deployment: Deployment, trace: Trace, requests: pa.Table, segments: pa.Table, states: pa.Table
) -> dict[str, Any]:
    """Summary keys beyond the latencies; pages are counted at the timeline's instants, per replica."""
    config, memory = deployment.config, deployment.memory
    used = states["kv_pages_used"].to_numpy()
    outputs = int(requests.filter(requests["status"].to_numpy() == "finished")["output_tokens"].to_numpy().sum())
    hours = float(requests["finish_ps"].to_numpy().max()) / PS_PER_S / 3600
    dollars = config.device.price_usd_h * config.gpus * hours
    prompt, context = int(trace.prompt_tokens.mean()), int((trace.prompt_tokens + trace.output_tokens).mean())
    return {
        "policy": config.policy.name,
        "step_time_source": deployment.step_time.source,
        "retention_source": config.policy.retention.source if config.policy.retention else "exact",
        "peak_kv_pages": int(used.max()),
        "mean_kv_pages": float(used.mean()),
        "kv_pages_capacity": deployment.capacity,
        "page_bytes": memory.page_bytes,
        "peak_kv_gib": float(used.max()) * memory.page_bytes / 2**30,
        "kv_pool_gib": deployment.kv_bytes / 2**30,
        "max_running": int(states["running"].to_numpy().max()),
        "mean_running": float(states["running"].to_numpy().mean()),
        "nominal_ratio": memory.nominal_ratio(prompt, context),
        "physical_ratio": memory.physical_ratio(prompt, context),
        "usd_per_million_output_tokens": dollars / outputs * 1e6,
        "limited_by": limiting_resource(config.max_num_seqs, segments, states),
        "rejections": _rejections(requests),
        "window": "all requests from the first arrival to the last token; no warm-up and no tail is cut off",
    }


def prefix_summary(deployment: Deployment, logs: list[ReplicaLog], prompt_tokens: int) -> dict[str, Any]:
    """Whether prefixes were shared, and the share of all prompt tokens that was found computed."""
    if not deployment.config.prefix_caching:
        return {"prefix_caching": "off"}
    if not deployment.shares_prefixes():
        return {"prefix_caching": "not possible with this policy"}
    hits = sum(int(log.stays.column("hit_tokens").sum()) for log in logs)
    return {"prefix_caching": "on", "prefix_hit_rate": hits / prompt_tokens}


def _rejections(requests: pa.Table) -> list[tuple[int, str]]:
    """The first hundred rejected requests with their reasons; all of them are in the table."""
    rejected = requests.filter(requests["status"].to_numpy() == "rejected").slice(0, 100)
    return list(zip(rejected["request_id"].to_pylist(), rejected["reason"].to_pylist(), strict=True))


def limiting_resource(max_num_seqs: int, segments: pa.Table, states: pa.Table) -> str:
    """What a faster deployment would need more of, by where requests wait and what the busy time is spent on.

    "arrivals" where under 5 % of the time anything waits: the traffic itself bounds throughput. Else "batch slots" or
    "KV capacity" where most waiting is at a full batch or for pages; else "compute" where steps with prompt tokens take
    most of the busy time, "memory bandwidth" where pure decode steps do.
    """
    waiting = states["waiting"].to_numpy() > 0
    if waiting.mean() < WAITING_MATTERS:
        return "arrivals"
    running = states["running"].to_numpy()[waiting]
    if (running >= max_num_seqs).mean() > MIXED_DOMINATES:
        return "batch slots"
    used, capacity = states["kv_pages_used"].to_numpy()[waiting], states["kv_pages_capacity"].to_numpy()[waiting]
    if (used >= 0.9 * capacity).mean() > MIXED_DOMINATES:
        return "KV capacity"
    steps = segments["steps"].to_numpy().astype(np.float64)
    ticks = steps * (segments["first_gap_ps"].to_numpy() + segments["slope_ps"].to_numpy() * (steps - 1) / 2)
    mixed = ticks[segments["prompt_tokens"].to_numpy() > 0].sum()
    return "compute" if mixed > MIXED_DOMINATES * ticks.sum() else "memory bandwidth"
