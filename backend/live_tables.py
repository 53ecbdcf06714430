"""What the live engine wrote down, as the tables of a run folder and the summary's figures of what was used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest
from leankv.backend.step_log import StepLog
from leankv.serving.formats import FP16
from leankv.serving.run_tables import FINISHED, REJECTED, UNFINISHED, request_table

if TYPE_CHECKING:
    import pyarrow as pa

Ints = npt.NDArray[np.int64]
PS_PER_S = 10**12
SAMPLES = 1000


def live_requests(requests: Sequence[LiveRequest], refused: Mapping[int, str]) -> pa.Table:
    """The table `requests`; `refused`: reasons by request id. Outputs are what was generated, for finished requests."""

    def status(request: LiveRequest) -> int:
        if request.request_id in refused:
            return REJECTED
        return FINISHED if request.finish_ps >= 0 else UNFINISHED

    columns = {
        name: np.array([getattr(request, name) for request in requests], dtype=np.int64)
        for name in ("prompt_tokens", "arrival_ps", "admitted_ps", "first_token_ps", "finish_ps", "preemptions")
    }
    columns["status"] = np.array([status(request) for request in requests])
    columns["replica"] = np.where(columns["admitted_ps"] >= 0, 0, -1)
    done = columns["finish_ps"] >= 0
    outputs = [(request.generated, request.output_tokens) for request in requests]
    columns["output_tokens"] = np.where(done, [given for given, _ in outputs], [asked for _, asked in outputs])
    return request_table(columns, refused)


def live_segments(log: StepLog) -> pa.Table:
    """The table `segments`: a row a step, from the token before to its own where some sequence was given both.

    Who waits for a token waits for what the host does between two steps, too; a step that continues none has only
    itself to last.
    """
    import pyarrow as pa

    steps, ends = len(log.rows), log.column("end_ps")
    # A sequence is counted only where the step before gave it a token, so there is one before.
    start = np.where(log.column("sequences") > 0, np.roll(ends, 1), log.column("start_ps"))
    return pa.table(
        {
            "replica": np.zeros(steps, dtype=np.int32),
            "start_ps": start,
            "steps": np.ones(steps, dtype=np.int64),
            "first_gap_ps": (ends - start).astype(np.float64),
            "slope_ps": np.zeros(steps),
            "sequences": log.column("sequences"),
            "prompt_tokens": log.column("prompt_tokens"),
            "waiting": log.column("waiting"),
        }
    )


def live_timeline(engine: Engine, samples: int = SAMPLES) -> pa.Table:
    """The table `timeline`: the state at `samples` equal distances over the run; pages are measured ones.

    Within a step the state is the one that it leaves; between steps nothing runs and nothing is held.
    """
    import pyarrow as pa

    log = engine.log
    times = np.linspace(0, log.rows[-1].end_ps, samples).astype(np.int64)
    step = np.searchsorted(log.column("start_ps"), times, side="right") - 1
    busy = (step >= 0) & (times <= log.column("end_ps")[step])

    def at(name: str) -> Ints:
        return np.where(busy, log.column(name)[step], 0)

    staging, tier0, tier1 = at("staging"), at("tier0"), at("tier1")
    return pa.table(
        {
            "time_s": times / PS_PER_S,
            "replica": np.zeros(samples, dtype=np.int32),
            "running": at("running"),
            "waiting": at("waiting"),
            "kv_pages_used": staging + tier0 + tier1,
            "kv_pages_staging": staging,
            "kv_pages_tier0": tier0,
            "kv_pages_tier1": tier1,
            "kv_pages_capacity": np.full(samples, engine.cache.pages),
            "batch_tokens": at("sequences") + at("prompt_tokens"),
            "preemptions": np.where(step >= 0, log.column("preemptions")[step], 0),
        }
    )


def usage(engine: Engine, kv_bytes: int, states: pa.Table) -> dict[str, Any]:
    """Summary keys beyond the latencies; what a GPU would cost is unknown here, so it is not told."""
    used, running = states["kv_pages_used"].to_numpy(), states["running"].to_numpy()
    nominal, physical = compression(engine)
    return {
        "policy": engine.policy.name,
        "step_time_source": "measured",
        "retention_source": "measured",
        "peak_kv_pages": int(used.max()),
        "mean_kv_pages": float(used.mean()),
        "kv_pages_capacity": engine.cache.pages,
        "page_bytes": engine.cache.page_bytes,
        "peak_kv_gib": float(used.max()) * engine.cache.page_bytes / 2**30,
        "kv_pool_gib": kv_bytes / 2**30,
        "max_running": int(engine.log.column("running").max()),
        "mean_running": float(running.mean()),
        "nominal_ratio": nominal,
        "physical_ratio": physical,
        "usd_per_million_output_tokens": None,
        "prefix_caching": "off",
    }


def compression(engine: Engine) -> tuple[float, float]:
    """Nominal and physical ratio: all finished requests' positions in float16 over payload bits, and over pages."""
    shape, final = engine.cache.shape, engine.log.final
    plain = sum(each.cached for each in final) * shape.layers * shape.kv_heads * FP16.payload_bytes(shape.head_dim)
    payload = sum(
        held * layout.format.payload_bytes(shape.head_dim)
        for each in final
        for held, layout in zip(each.tokens, engine.cache.policies[0].tiers, strict=False)
    )
    return plain / payload, plain / (sum(each.pages for each in final) * engine.cache.page_bytes)
