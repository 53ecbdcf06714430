"""Replicas that serve different policies behind one router.

Each policy is deployed as if it were alone: its own pages, costs and, where outputs grow under it, its own output
lengths. A request takes on those of the replica that it is sent to. One that some policy could never hold is rejected
whatever the router, so that all routers serve the same requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.serving.metrics import summarise
from leankv.serving.runs import Run
from leankv.simulator.cluster import FinishHook, Replica
from leankv.simulator.config import SimulationConfig
from leankv.simulator.recorder import ReplicaLog, RequestRecords
from leankv.simulator.resident import Resident
from leankv.simulator.run import (
    Deployment,
    EventLoop,
    Outcome,
    Progress,
    arrivals_by_replica,
    config_dict,
    deploy,
    longest_request,
    no_progress,
    replica_forecasts,
    require_finished,
)
from leankv.simulator.tables import request_table, segment_table
from leankv.simulator.timeline import instants, replica_states
from leankv.simulator.usage import usage_summary
from leankv.simulator.workload import TraceWorkload
from leankv.traces.trace import Trace

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.simulator.cluster import Engine


@dataclass(frozen=True)
class Kind:
    """The replicas of one policy: how they are deployed, and the trace with the lengths that outputs have there."""

    deployment: Deployment
    trace: Trace


class MixedWorkload:
    """A `Workload` over those of several policies."""

    def __init__(self, kinds: Sequence[TraceWorkload]) -> None:
        self._kinds = kinds
        self.arrivals_ps: Sequence[int] = kinds[0].arrivals_ps

    def take(self, row: int, arrival_ps: int) -> Resident | None:
        """The request as the first policy has it, or None if any refuses it."""
        taker = next((kind for kind in self._kinds if kind.refuses(row)), self._kinds[0])
        return taker.take(row, arrival_ps)


def deploy_mixed(config: SimulationConfig, longest: int | None = None) -> tuple[Deployment, ...]:
    """One deployment for each of `config.policies`; see `deploy`, which may raise InputError."""
    return tuple(deploy(replace(config, policy=policy, policies=()), longest) for policy in config.policies)


def simulate_mixed(config: SimulationConfig, traces: Sequence[Trace], progress: Progress = no_progress) -> Run:
    """Simulate replicas of `config.policies`, which they take in turn.

    traces: one a policy, of the same requests; only output lengths may differ. Raises InputError as `simulate` does.
    """
    deployments = deploy_mixed(config, max(map(longest_request, traces)))
    kinds = [Kind(*each) for each in zip(deployments, traces, strict=True)]
    return assemble_mixed(config, kinds, mixed_loop(config, kinds).run(progress))


def mixed_loop(config: SimulationConfig, kinds: Sequence[Kind]) -> EventLoop:
    """Replicas at time 0 and the requests that they will be given."""
    records = RequestRecords()
    workloads = [_workload(config, kind, records) for kind in kinds]
    count = -(-config.replicas // len(kinds))
    forecasts = [replica_forecasts(kind.deployment, kind.trace, count, row) for row, kind in enumerate(kinds)]
    replicas = []
    for index in range(config.replicas):
        turn, row = divmod(index, len(kinds))
        make = partial(_engine, kinds[row].deployment)
        replicas.append(Replica(index, records, make, forecasts[row][turn], workloads[row].dress))
    return EventLoop(config, records, replicas, MixedWorkload(workloads))


def _engine(deployment: Deployment, on_finish: FinishHook) -> Engine:
    return deployment.engine(on_finish, None)


def _workload(config: SimulationConfig, kind: Kind, records: RequestRecords) -> TraceWorkload:
    deployment = kind.deployment
    memory = deployment.late or deployment.memory
    return TraceWorkload(kind.trace, config.model.max_context, memory, deployment.capacity, records)


def assemble_mixed(config: SimulationConfig, kinds: Sequence[Kind], outcome: Outcome) -> Run:
    """Tables and summary of a finished event loop; figures of memory are those of the fullest replica."""
    logs = [replica.engine.log for replica in outcome.replicas]
    trace = _as_served(kinds, outcome.records)
    requests = request_table(trace, outcome.records)
    require_finished(trace, requests, outcome.records)
    segments, states = segment_table(logs), _states(kinds, logs, trace, requests)
    gaps = [gap for log in logs for gap in log.preemption_gaps_ps]
    summary = summarise(requests, segments, config.slo, gaps)
    first = replace(kinds[0].deployment, config=config)
    summary |= usage_summary(first, logs, requests, segments, states, summary["duration_s"])
    summary |= _usage(kinds, requests, states) | {"prefix_caching": "off"}
    return Run("simulated", config_dict(config, trace), summary, requests, states, segments)


def _as_served(kinds: Sequence[Kind], records: RequestRecords) -> Trace:
    """The trace with the output lengths of the replicas that the requests were sent to."""
    outputs = kinds[0].trace.output_tokens.copy()
    rows, served_by = records.finished.column("request"), records.finished.column("replica") % len(kinds)
    for index, kind in enumerate(kinds):
        mine = rows[served_by == index]
        outputs[mine] = kind.trace.output_tokens[mine]
    return replace(kinds[0].trace, output_tokens=outputs)


def _states(kinds: Sequence[Kind], logs: list[ReplicaLog], trace: Trace, requests: pa.Table) -> pa.Table:
    import pyarrow as pa

    times, arrivals = instants(logs), arrivals_by_replica(requests, len(logs))
    prompts = trace.prompt_tokens.astype(np.int64)
    tables = []
    for index, (log, arrived) in enumerate(zip(logs, arrivals, strict=True)):
        deployment = kinds[index % len(kinds)].deployment
        memory, capacity = deployment.late or deployment.memory, deployment.capacity
        tables.append(replica_states(index, log, arrived, prompts, memory, capacity, None, times))
    return pa.table({name: np.concatenate([table[name] for table in tables]) for name in tables[0]})


def _usage(kinds: Sequence[Kind], requests: pa.Table, states: pa.Table) -> dict[str, Any]:
    """What differs by policy: compression over all requests, the fullest pool, and who served what."""
    kind_of = requests["replica"].to_numpy() % len(kinds)
    done = requests["status"].to_numpy() == "finished"
    prompts = requests["prompt_tokens"].to_numpy().astype(np.int64)
    contexts = prompts + requests["output_tokens"].to_numpy()
    latency, pages, holder = (
        requests["e2el_ms"].to_numpy(),
        states["kv_pages_used"].to_numpy(),
        states["replica"].to_numpy() % len(kinds),
    )
    uncompressed, held, peak, by_policy = 0.0, np.zeros(2), 0.0, {}
    for index, kind in enumerate(kinds):
        mine, memory = done & (kind_of == index), kind.deployment.memory
        peak = max(peak, float(pages[holder == index].max()) * memory.page_bytes / 2**30)
        served = int(mine.sum())
        mean = float(latency[mine].mean()) if served else None
        by_policy[memory.policy.name] = {"completed": served, "mean_e2el_ms": mean}
        if served:
            uncompressed += float(contexts[mine].sum())
            held += contexts[mine].sum() / np.array(memory.ratios(prompts[mine], contexts[mine]))
    retentions = [kind.deployment.memory.policy.retention for kind in kinds]
    return {
        "nominal_ratio": float(uncompressed / held[0]),
        "physical_ratio": float(uncompressed / held[1]),
        "peak_kv_gib": peak,
        "retention_source": " + ".join(each.source if each else "exact" for each in retentions),
        "by_policy": by_policy,
    }
