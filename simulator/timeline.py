"""The state of each replica at sampled instants, worked out after the run from its segments and stays."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from leankv.simulator.clock import PS_PER_S, TICK_BITS
from leankv.simulator.recorder import ReplicaLog
from leankv.simulator.shared_pages import shared_pages
from leankv.traces.trace import PrefixBlocks

if TYPE_CHECKING:
    import pyarrow as pa

Ints = npt.NDArray[np.int64]
SAMPLES = 1000
PAIRS_AT_ONCE = 2_000_000


class TierPages(Protocol):
    """Pages by tier of many requests at once: int64[n, tiers]; `leankv.serving.memory.MemoryModel` is one."""

    def tier_pages_array(self, prompts: Ints, contexts: Ints) -> Ints: ...

    def pages(self, prompt: int, context: int) -> int: ...

    def incomplete_pages_array(self, done: Ints) -> Ints:
        """Pages of prompts of which `done` tokens are computed, and not the last."""


def timeline(
    logs: list[ReplicaLog],
    arrivals: list[Ints],
    prompts: Ints,
    memory: TierPages,
    capacity: int,
    prefixes: PrefixBlocks | None = None,
    samples: int = SAMPLES,
) -> pa.Table:
    """A row per instant and replica, at `samples` equal distances over the run.

    Args:
        logs: one a replica.
        arrivals: per replica, when its requests arrived (ps, sorted).
        prompts: prompt tokens by request id.
        memory: for the pages by tier; tier 2 and more are added to tier 1.
        capacity: pages of one replica's pool.
        prefixes: the blocks that requests shared, if they did; their pages count in tier 0.
    """
    import pyarrow as pa

    times = instants(logs, samples)
    tables = [
        replica_states(index, log, arrived, prompts, memory, capacity, prefixes, times)
        for index, (log, arrived) in enumerate(zip(logs, arrivals, strict=True))
    ]
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return pa.table(columns)


def instants(logs: list[ReplicaLog], samples: int = SAMPLES) -> Ints:
    """`samples` equal distances over the run, in ps."""
    end = max(int(log.stays.column("end_ps")[-1]) if len(log.stays) else 0 for log in logs)
    return np.linspace(0, end, samples).astype(np.int64)


def replica_states(
    index: int,
    log: ReplicaLog,
    arrived: Ints,
    prompts: Ints,
    memory: TierPages,
    capacity: int,
    prefixes: PrefixBlocks | None,
    times: Ints,
) -> dict[str, np.ndarray]:
    """The columns of `timeline` for one replica, at the given instants (ps, sorted)."""
    admitted, ended = log.stays.column("admitted_ps"), log.stays.column("end_ps")
    preempted = np.sort(ended[log.stays.column("preempted") > 0])
    admissions = np.searchsorted(np.sort(admitted), times, side="right")
    endings = np.searchsorted(np.sort(ended), times, side="right")
    preemptions = np.searchsorted(preempted, times, side="right")
    staged, tiers = _pages(log, prompts, memory, times)
    if prefixes is not None:
        block_pages = memory.pages(prefixes.block_tokens, prefixes.block_tokens)
        tiers[:, 0] += shared_pages(log, prefixes, block_pages, times)
    return {
        "time_s": times / PS_PER_S,
        "replica": np.full(len(times), index, dtype=np.int32),
        "running": admissions - endings,
        "waiting": np.searchsorted(arrived, times, side="right") - admissions + preemptions,
        "kv_pages_used": staged + tiers.sum(axis=1),
        "kv_pages_staging": staged,
        "kv_pages_tier0": tiers[:, 0],
        "kv_pages_tier1": tiers[:, 1:].sum(axis=1),
        "kv_pages_capacity": np.full(len(times), capacity),
        "batch_tokens": _batch_tokens(log, times),
        "preemptions": preemptions,
    }


def _segment_at(log: ReplicaLog, times: Ints) -> Ints:
    return np.searchsorted(log.segments.column("start_ps"), times, side="right") - 1


def _batch_tokens(log: ReplicaLog, times: Ints) -> Ints:
    """Tokens computed by the step in progress; 0 where the replica is idle."""
    if not len(log.segments):
        return np.zeros(len(times), dtype=np.int64)
    segment = _segment_at(log, times)
    tokens = log.segments.column("sequences")[segment] + log.segments.column("prompt_tokens")[segment]
    return np.where((segment >= 0) & (times < _ends(log)[segment]), tokens, 0)


def _ends(log: ReplicaLog) -> Ints:
    steps, first, slope = log.segments.column("steps"), log.segments.column("first_gap"), log.segments.column("slope")
    ticks = steps * first.astype(np.float64) + slope.astype(np.float64) * steps * (steps - 1) / 2
    return log.segments.column("start_ps") + (ticks / (1 << TICK_BITS)).astype(np.int64)


def _steps_done(log: ReplicaLog, times: Ints) -> Ints:
    """Decode steps finished by each instant (float solution of the quadratic: exact but at a boundary itself)."""
    segment = np.maximum(_segment_at(log, times), 0)
    first = log.segments.column("first_gap")[segment] / (1 << TICK_BITS)
    slope = log.segments.column("slope")[segment] / (1 << TICK_BITS)
    distance = np.maximum(times - log.segments.column("start_ps")[segment], 0).astype(np.float64)
    half = first - slope / 2
    done = 2 * distance / (half + np.sqrt(np.maximum(half * half + 2 * slope * distance, 0)))
    return log.segments.column("steps_before")[segment] + np.minimum(
        done.astype(np.int64), log.segments.column("steps")[segment]
    )


def _pages(log: ReplicaLog, prompts: Ints, memory: TierPages, times: Ints) -> tuple[Ints, Ints]:
    """Staged pages int64[samples] and pages by tier int64[samples, 2 or more]."""
    admitted, decoded, ended = (
        log.stays.column("admitted_ps"),
        log.stays.column("decode_ps"),
        log.stays.column("end_ps"),
    )
    decodes = decoded >= 0
    staged_until = np.where(decodes, decoded, ended)
    staged = _sum_between(admitted, staged_until, log.stays.column("pages"), times)
    low = np.searchsorted(times, decoded[decodes])
    high = np.searchsorted(times, ended[decodes])
    steps = _steps_done(log, times) if len(log.segments) else np.zeros(len(times), dtype=np.int64)
    shared = log.stays.column("shared_tokens")[decodes]
    own_prompts = prompts[log.stays.column("request")[decodes]] - shared
    offsets = log.stays.column("decode_context")[decodes] - log.stays.column("decode_step")[decodes] + 1 - shared
    total: Ints = np.zeros((len(times), 2), dtype=np.int64)
    if len(log.chunks):
        staged, total = _prompt_pages(log, prompts, memory, times)
    for rows in _batches(high - low):
        samples = _ranges(low[rows], high[rows])
        counts = high[rows] - low[rows]
        contexts = steps[samples] + np.repeat(offsets[rows], counts)
        tiers = memory.tier_pages_array(np.repeat(own_prompts[rows], counts), contexts)
        for tier in range(tiers.shape[1]):
            total[:, min(tier, 1)] += np.bincount(samples, tiers[:, tier], len(times)).astype(np.int64)
    return staged, total


def _prompt_pages(log: ReplicaLog, prompts: Ints, memory: TierPages, times: Ints) -> tuple[Ints, Ints]:
    """As `_pages`, of prompts during the steps that compute them, as each step leaves them: the last one complete."""
    names = ("request", "start_ps", "end_ps", "tokens", "last")
    request, start, end, tokens, last = (log.chunks.column(name) for name in names)
    done = last > 0
    part, whole = ~done, tokens[done]
    staged = _sum_between(start[part], end[part], memory.incomplete_pages_array(tokens[part]), times)
    tiers = memory.tier_pages_array(np.minimum(prompts[request[done]], whole), whole)
    total = np.zeros((len(times), 2), dtype=np.int64)
    for tier in range(tiers.shape[1]):
        total[:, min(tier, 1)] += _sum_between(start[done], end[done], tiers[:, tier], times)
    return staged, total


def _sum_between(start: Ints, end: Ints, weight: Ints, times: Ints) -> Ints:
    """Sum of the weights of the intervals [start, end) that hold each instant."""
    change = np.zeros(len(times) + 1, dtype=np.int64)
    np.add.at(change, np.searchsorted(times, start), weight)
    np.add.at(change, np.searchsorted(times, end), -weight)
    return np.cumsum(change)[:-1]


def _batches(counts: Ints) -> list[slice]:
    """Slices of the rows such that none holds many more than PAIRS_AT_ONCE (sample, request) pairs."""
    if not len(counts):
        return []
    group = np.cumsum(counts) // PAIRS_AT_ONCE
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(counts)]
    return [slice(a, b) for a, b in pairwise(cuts)]


def _ranges(low: Ints, high: Ints) -> Ints:
    """`concatenate([arange(a, b) for a, b in zip(low, high)])`."""
    counts = high - low
    return np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
