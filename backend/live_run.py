"""A trace replayed in real time against the engine: one policy, one run of the schema that simulated runs have."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.live_tables import PS_PER_S, live_requests, live_segments, live_timeline, usage
from leankv.backend.room import GIB, memory_told, release_ended
from leankv.serving.bottleneck import limiting_resource
from leankv.serving.errors import InputError
from leankv.serving.metrics import summarise
from leankv.serving.models import ModelSpec
from leankv.serving.policies.base import Policy
from leankv.serving.run_tables import rejections
from leankv.serving.runs import Run
from leankv.serving.scheduler import SchedulerLimits

if TYPE_CHECKING:
    from leankv.backend.pace import PaceMeter
    from leankv.backend.weights import Loaded
    from leankv.traces.trace import Trace

Progress = Callable[[float], None]
WINDOW = "all requests from the first arrival to the last token; no warm-up and no tail is cut off"


@dataclass(frozen=True)
class LiveConfig:
    """What one live run was asked. device: where it runs, in words (name, backend, threads, dtype)."""

    model: ModelSpec
    device: Mapping[str, Any]
    policy: Policy
    limits: SchedulerLimits
    kv_memory_bytes: int
    sampling: Sampling = field(default_factory=lambda: Sampling(ignore_eos=True))
    slo: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self, trace: Trace) -> dict[str, Any]:
        """What `config.json` holds; the same for the same settings."""
        return {
            "model": asdict(self.model),
            "device": dict(self.device),
            "policy": self.policy.name,
            "specification": repr(self.policy),
            **asdict(self.limits),
            "kv_memory_bytes": self.kv_memory_bytes,
            "sampling": {**asdict(self.sampling), "stop_tokens": sorted(self.sampling.stop_tokens)},
            "slo": dict(self.slo),
            "tp": 1,
            "replicas": 1,
            "gpus": 1,
            "trace": {"name": trace.name, "requests": len(trace), **trace.provenance},
        }


def run_live(
    loaded: Loaded,
    config: LiveConfig,
    trace: Trace,
    prompts: Sequence[Sequence[int]],
    progress: Progress,
    key_means: KeyMeans | None = None,
    meter: PaceMeter | None = None,
) -> Run:
    """Serve the trace under one policy; `progress` is called with the share of tokens computed, and `meter`, if
    there is one, takes the steps.

    Raises InputError where the pool is too small or not to be had, or every request is rejected, CacheFault where the
    cache fails.
    """
    with memory_told(
        f"--policy {config.policy.name}: steps of {config.limits.max_num_batched_tokens} tokens do not fit in memory "
        f"beside {loaded.name} and a KV pool of {config.kv_memory_bytes / GIB:.3g} GiB; lower --kv-memory-gib, "
        "--max-num-seqs or --max-num-batched-tokens"
    ):
        return _served(loaded, config, trace, prompts, progress, key_means, meter)


def _served(
    loaded: Loaded,
    config: LiveConfig,
    trace: Trace,
    prompts: Sequence[Sequence[int]],
    progress: Progress,
    key_means: KeyMeans | None,
    meter: PaceMeter | None,
) -> Run:
    longest = min(loaded.max_context, int((trace.prompt_tokens + trace.output_tokens).max()))
    release_ended(loaded.model.device.type)
    engine = Engine(
        loaded,
        config.policy,
        config.limits,
        memory_bytes=config.kv_memory_bytes,
        max_tokens=longest,
        key_means=key_means,
    )
    # First, since it also finds what only the model's own layers tell, a sliding window.
    engine.warm_up(record_all=True)
    requests = _requests(trace, prompts, config.sampling)
    refused = {r.request_id: reason for r in requests if (reason := _refusal(engine, loaded, r)) is not None}
    if len(refused) == len(requests):
        raise InputError(f"{trace.name}: every request was rejected, the first: {refused[0]}")
    serve(engine, [request for request in requests if request.request_id not in refused], progress, meter)
    return _assembled(engine, config, trace, requests, refused)


def serve(engine: Engine, requests: Sequence[LiveRequest], progress: Progress, meter: PaceMeter | None = None) -> None:
    """Send every request when it arrives, by the engine's clock, and run until all are finished."""
    coming = deque(sorted(requests, key=lambda request: request.arrival_ps))
    total = sum(request.output_tokens for request in requests)
    ended = 0
    engine.clock.start()
    while coming or not engine.idle:
        while coming and coming[0].arrival_ps <= engine.clock.now():
            engine.add(coming.popleft())
        if engine.idle:
            time.sleep(max(0, coming[0].arrival_ps - engine.clock.now()) / PS_PER_S)
            continue
        ended += sum(request.output_tokens for request in (engine.step() if meter is None else meter.step(engine)))
        running = sum(request.generated for request in engine.scheduler.decoding.values())
        progress(min(1.0, (ended + running) / total))


def _requests(trace: Trace, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[LiveRequest]:
    """Each draws with a seed of its own."""
    rows = zip(prompts, trace.output_tokens.tolist(), trace.arrival_ps.tolist(), strict=True)
    return [
        LiveRequest(row, prompt, output, replace(sampling, seed=sampling.seed + row), arrival)
        for row, (prompt, output, arrival) in enumerate(rows)
    ]


def _refusal(engine: Engine, loaded: Loaded, request: LiveRequest) -> str | None:
    total = request.prompt_tokens + request.output_tokens
    if total > loaded.max_context:
        return (
            f"{request.prompt_tokens} + {request.output_tokens} tokens exceed the model's context of "
            f"{loaded.max_context}"
        )
    return engine.refusal(request.prompt_tokens, request.output_tokens)


def _assembled(
    engine: Engine, config: LiveConfig, trace: Trace, requests: Sequence[LiveRequest], refused: Mapping[int, str]
) -> Run:
    table, segments, states = live_requests(requests, refused), live_segments(engine.log), live_timeline(engine)
    summary: dict[str, Any] = {
        **summarise(table, segments, config.slo, engine.log.preemption_gaps_ps),
        **usage(engine, config.kv_memory_bytes, states),
        "limited_by": limiting_resource(config.limits, segments),
        "rejections": rejections(table),
        "window": WINDOW,
    }
    return Run("live", config.as_dict(trace), summary, table, states, segments)
