"""`simulate`: one policy, one trace, one deployment in; one run out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.serving.errors import InputError
from leankv.serving.memory import MemoryModel
from leankv.serving.metrics import summarise
from leankv.serving.pool_plan import live_pool_pages
from leankv.serving.runs import Run
from leankv.serving.scheduler import WATERMARK, SchedulerLimits
from leankv.simulator.cluster import ClosedLoop, FinishHook, Replica, Workload, run_open_loop
from leankv.simulator.config import SimulationConfig
from leankv.simulator.costs import StepCosts
from leankv.simulator.curves import ReadCurves
from leankv.simulator.engine import JumpEngine
from leankv.simulator.forecast import Forecast, predictions
from leankv.simulator.late_ledger import LateCountingLedger, LateLedger
from leankv.simulator.late_pages import LatePages
from leankv.simulator.ledger import LazyLedger
from leankv.simulator.prefixes import PrefixCache, shareable_blocks
from leankv.simulator.recorder import RequestRecords
from leankv.simulator.routing import PREDICTIVE, Router, router_named
from leankv.simulator.step_time.overhead import DEFAULT_OVERHEAD, Overhead
from leankv.simulator.step_time.profile import measured, with_measured_retention
from leankv.simulator.step_time.sources import step_time_named
from leankv.simulator.stepwise import CountingLedger, StepwiseEngine
from leankv.simulator.tables import request_table, segment_table
from leankv.simulator.timeline import timeline
from leankv.simulator.usage import prefix_summary, usage_summary
from leankv.simulator.workload import TraceWorkload
from leankv.traces.trace import Trace

if TYPE_CHECKING:
    from leankv.simulator.step_time.base import StepTimeModel

Progress = Callable[[float], None]


def no_progress(share: float) -> None:
    return None


@dataclass
class Deployment:
    """Everything that is fixed before the first request arrives. late: pages as they are known, where that is late."""

    config: SimulationConfig
    memory: MemoryModel
    late: LatePages | None
    step_time: StepTimeModel
    costs: StepCosts
    curves: ReadCurves
    kv_bytes: int
    capacity: int
    limits: SchedulerLimits

    def shares_prefixes(self) -> bool:
        """Whether prefix caching was asked for and the policy's pages can be shared."""
        return self.config.prefix_caching and self.config.policy.shares_prefix

    def engine(self, on_finish: FinishHook, prefixes: PrefixCache | None) -> JumpEngine | StepwiseEngine:
        pool = self.capacity, int(self.capacity * WATERMARK), prefixes
        if self.config.per_step:
            counting = LateCountingLedger(self.late, *pool) if self.late else CountingLedger(self.memory, *pool)
            return StepwiseEngine(self.limits, counting, self.costs, self.curves, on_finish)
        ledger = LateLedger(self.late, *pool) if self.late else LazyLedger(self.memory, *pool)
        return JumpEngine(self.limits, ledger, self.costs, self.curves, on_finish)


def deploy(config: SimulationConfig, longest: int | None = None) -> Deployment:
    """Build the models of one deployment; `longest`: tokens of the longest request, where known.

    Raises:
        InputError: the model does not fit, or the step-time source has no figures for the device.
    """
    config = as_measured(config)
    memory = MemoryModel(config.policy, config.model, config.tp, chunked_prefill=config.chunked_prefill)
    kv_bytes = config.kv_bytes()
    step_time = step_time_of(config)
    costs = StepCosts(step_time, config.policy, config.max_num_batched_tokens, config.max_num_seqs)
    limits = SchedulerLimits(config.max_num_seqs, config.max_num_batched_tokens, config.chunked_prefill)
    late = LatePages(memory) if config.late_counts else None
    capacity = _capacity(config, memory, kv_bytes, longest)
    curves = ReadCurves(memory, step_time.read_factors(memory))
    return Deployment(config, memory, late, step_time, costs, curves, kv_bytes, capacity, limits)


def _capacity(config: SimulationConfig, memory: MemoryModel, kv_bytes: int, longest: int | None) -> int:
    """Pages of the pool. The live engine's tables are as wide as its longest request, and come out of its memory."""
    if config.kv_pages is not None:
        return config.kv_pages
    if not (config.late_counts and config.policy.live):
        return memory.capacity(kv_bytes, config.max_num_seqs)
    widest = min(config.model.max_context, longest or config.model.max_context)
    return live_pool_pages(config.policy, config.model.head_dim, memory.heads, kv_bytes, config.max_num_seqs, widest)


def longest_request(trace: Trace) -> int:
    """Tokens of prompt and output together."""
    return int((trace.prompt_tokens.astype(np.int64) + trace.output_tokens).max())


def as_measured(config: SimulationConfig) -> SimulationConfig:
    """With a profile: the retention measured, and pages known as late as in the engine that was measured.

    Raises:
        InputError: the policy was not measured.
    """
    if config.profile is None:
        return config
    return replace(config, policy=with_measured_retention(config.profile, config.policy), late_counts=True)


def step_time_of(config: SimulationConfig) -> StepTimeModel:
    """The step-time model of one policy. Raises InputError where the source has no figures for it or the device."""
    if config.profile is not None:
        return measured(config.profile, config.policy, config.tp)
    return step_time_named(config.step_time, config.model, config.device, config.tp, _overhead(config))


def _overhead(config: SimulationConfig) -> Overhead:
    if config.step_overhead_ms is None:
        return DEFAULT_OVERHEAD
    return replace(DEFAULT_OVERHEAD, step_s=config.step_overhead_ms / 1e3)


@dataclass
class Outcome:
    """What the event loop leaves, before it is turned into tables."""

    records: RequestRecords
    replicas: list[Replica]


@dataclass
class EventLoop:
    """Replicas at time 0 and the requests that they will be given."""

    config: SimulationConfig
    records: RequestRecords
    replicas: list[Replica]
    workload: Workload

    def run(self, progress: Progress = no_progress) -> Outcome:
        """Until the last token. Garbage collection rests meanwhile: the loop makes no cycles, and many objects."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._run(router_named(self.config.router, self.config.seed), progress)
        finally:
            if collecting:
                gc.enable()
        progress(1.0)
        return Outcome(self.records, self.replicas)

    def _run(self, router: Router, progress: Progress) -> None:
        if self.config.max_concurrency is None:
            run_open_loop(self.replicas, router, self.workload, progress)
        else:
            ClosedLoop(self.replicas, router, self.workload, self.config.max_concurrency, progress).run()


def event_loop(deployment: Deployment, trace: Trace) -> EventLoop:
    """Make the replicas and, for all requests at once, the pages that each will need."""
    config = deployment.config
    records = RequestRecords()
    blocks = _shareable(deployment, trace)
    forecasts = replica_forecasts(deployment, trace, config.replicas)
    replicas = [
        Replica(index, records, lambda hook: deployment.engine(hook, _prefix_cache(deployment, trace, blocks)), each)
        for index, each in enumerate(forecasts)
    ]
    shared = None if blocks is None or trace.prefix_hashes is None else blocks * trace.prefix_hashes.block_tokens
    memory = deployment.late or deployment.memory
    workload = TraceWorkload(trace, config.model.max_context, memory, deployment.capacity, records, shared)
    return EventLoop(config, records, replicas, workload)


def replica_forecasts(deployment: Deployment, trace: Trace, replicas: int, kind: int = 0) -> list[Forecast | None]:
    """One a replica, all with the same predictions; None where the router asks for none. `kind`: of the policy."""
    config = deployment.config
    if config.router not in PREDICTIVE:
        return [None] * replicas
    predicted = predictions(trace.output_tokens, config.accuracy, (config.seed, kind))
    fixed = (deployment.costs, deployment.curves, deployment.memory, deployment.capacity, config.max_num_seqs)
    return [Forecast(*fixed, predicted) for _ in range(replicas)]


def _shareable(deployment: Deployment, trace: Trace) -> np.ndarray | None:
    """Shareable blocks by request, or None where nothing is shared."""
    if not deployment.shares_prefixes():
        return None
    if trace.prefix_hashes is None:
        raise InputError(
            f"{trace.name} has no prefix hashes, so nothing is known of shared prefixes; "
            "drop --prefix-caching or use a trace with block hashes, such as Mooncake's"
        )
    return shareable_blocks(trace.prompt_tokens.astype(np.int64), trace.prefix_hashes)


def _prefix_cache(deployment: Deployment, trace: Trace, counts: np.ndarray | None) -> PrefixCache | None:
    if counts is None or trace.prefix_hashes is None:
        return None
    block = trace.prefix_hashes.block_tokens
    return PrefixCache(trace.prefix_hashes, counts, deployment.memory.pages(block, block))


def simulate(config: SimulationConfig, trace: Trace, progress: Progress = no_progress) -> Run:
    """Simulate a trace; `progress` is called with the share of requests that have arrived.

    Raises:
        InputError: the model does not fit the device or is hopelessly slow on it, or every request is rejected.
    """
    try:
        if config.policies:
            from leankv.simulator.mixed import simulate_mixed

            return simulate_mixed(config, [trace] * len(config.policies), progress)
        deployment = deploy(config, longest_request(trace))
        return assemble(deployment, trace, event_loop(deployment, trace).run(progress))
    except OverflowError as error:
        raise InputError(
            f"{config.model.name} on {config.device.name}: a single step takes more than two minutes; "
            "choose a faster --device, more --tp, or a lower --max-num-batched-tokens"
        ) from error


def assemble(deployment: Deployment, trace: Trace, outcome: Outcome) -> Run:
    """Tables and summary of a finished event loop."""
    config, records = deployment.config, outcome.records
    logs = [replica.engine.log for replica in outcome.replicas]
    requests = request_table(trace, records)
    require_finished(trace, requests, records)
    segments = segment_table(logs)
    prefixes = trace.prefix_hashes if deployment.shares_prefixes() else None
    prompts = trace.prompt_tokens.astype(np.int64)
    arrivals = arrivals_by_replica(requests, len(logs))
    memory = deployment.late or deployment.memory
    states = timeline(logs, arrivals, prompts, memory, deployment.capacity, prefixes)
    preemption_gaps_ps = [gap for log in logs for gap in log.preemption_gaps_ps]
    summary = summarise(requests, segments, config.slo, preemption_gaps_ps)
    summary |= usage_summary(deployment, logs, requests, segments, states, summary["duration_s"])
    summary |= prefix_summary(deployment, logs, prompts)
    return Run("simulated", config_dict(config, trace), summary, requests, states, segments)


def require_finished(trace: Trace, requests: Any, records: RequestRecords) -> None:
    """Raise InputError if no request was served."""
    if not np.any(requests["status"].to_numpy() == "finished"):
        row, reason = next(iter(records.reasons.items()))
        raise InputError(
            f"{trace.name}: every request was rejected, the first: {reason} (request {row}); "
            "cut prompts with --max-prompt, raise --kv-memory-gib or choose another --model"
        )


def arrivals_by_replica(requests: Any, replicas: int) -> list[np.ndarray]:
    """When the requests of each replica arrived, in ps, sorted."""
    replica = requests["replica"].to_numpy()
    arrival = requests["arrival_ps"].to_numpy()
    return [np.sort(arrival[replica == index]) for index in range(replicas)]


def config_dict(config: SimulationConfig, trace: Trace) -> dict[str, Any]:
    """What `config.json` holds of a run."""
    return {**config.as_dict(), "trace": {"name": trace.name, "requests": len(trace), **trace.provenance}}
