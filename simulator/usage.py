"""What a run used: pages, batch sizes, money, and which resource held it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leankv.traces.trace import Trace

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.scheduler import SchedulerLimits
    from leankv.simulator.recorder import ReplicaLog
    from leankv.simulator.run import Deployment

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WAITING_MATTERS = 0.05


def usage_summary(
    deployment: Deployment, trace: Trace, requests: pa.Table, segments: pa.Table, states: pa.Table, duration_s: float
) -> dict[str, Any]:
    """Summary keys beyond the latencies; pages are counted at the timeline's instants, per replica.

    `duration_s`: from the first arrival to the last token, the time that is paid for.
    """
    config, memory = deployment.config, deployment.memory
    used = states["kv_pages_used"].to_numpy()
    outputs = int(requests.filter(requests["status"].to_numpy() == "finished")["output_tokens"].to_numpy().sum())
    dollars = config.device.price_usd_h * config.gpus * duration_s / 3600
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
        "limited_by": limiting_resource(deployment.limits, segments),
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


def limiting_resource(limits: SchedulerLimits, segments: pa.Table) -> str:
    """What a faster deployment would need more of: the cause of most of the time that requests spend in the queue.

    "arrivals" where under 5 % of the time anything waits: the traffic itself bounds throughput. Whoever still waits
    when a step is put together finds its batch full ("batch slots"), its token budget spent, or no pages ("KV
    capacity"). A spent budget is "compute" where prompts take most of such a step, and "memory bandwidth" where most of
    it would go into reading weights and caches without them, too.
    """
    columns = {name: segments[name].to_numpy() for name in ("steps", "sequences", "prompt_tokens", "waiting")}
    steps, sequences, prompts, waiting = columns.values()
    lasting_ps = steps * (segments["first_gap_ps"].to_numpy() + segments["slope_ps"].to_numpy() * (steps - 1) / 2)
    if lasting_ps[waiting > 0].sum() < WAITING_MATTERS * _replica_time_ps(segments, lasting_ps):
        return "arrivals"
    full = sequences + (prompts > 0) >= limits.max_num_seqs
    spent = (prompts > 0) & ((sequences + prompts >= limits.max_num_batched_tokens) | (not limits.chunked_prefill))
    delay = lasting_ps * waiting
    delays = {
        "batch slots": delay[full].sum(),
        "budget": delay[spent & ~full].sum(),
        "KV capacity": delay[~spent & ~full].sum(),
    }
    cause = max(delays, key=delays.__getitem__)
    if cause != "budget":
        return cause
    late = spent & ~full & (waiting > 0)
    reading_ps = decode_step_ps(segments, lasting_ps, sequences[late]).sum()
    return "compute" if reading_ps < lasting_ps[late].sum() / 2 else "memory bandwidth"


def _replica_time_ps(segments: pa.Table, lasting_ps: Floats) -> float:
    """From the first step to the end of the last, times the replicas that computed any."""
    start_ps = segments["start_ps"].to_numpy()
    span_ps = float((start_ps + lasting_ps).max() - start_ps.min())
    return span_ps * len(np.unique(segments["replica"].to_numpy()))


def decode_step_ps(segments: pa.Table, lasting_ps: Floats, sequences: Ints) -> Floats:
    """What steps without prompts lasted in this run at so many sequences, linear between those seen; 0 without any."""
    pure = segments["prompt_tokens"].to_numpy() == 0
    if not pure.any():
        return np.zeros(len(sequences))
    decoding = segments["sequences"].to_numpy()[pure]
    steps = np.bincount(decoding, segments["steps"].to_numpy()[pure])
    seen = np.flatnonzero(steps)
    return np.interp(sequences, seen, np.bincount(decoding, lasting_ps[pure])[seen] / steps[seen])
