"""The timeline, worked out after a run, against what the oracle counts during it."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from tests.simulator.small_world import SmallWorld
from tests.simulator.test_engine import Requests, blocks, workloads, worlds

from leankv.simulator.clock import TICK_BITS
from leankv.simulator.cluster import Replica, run_open_loop
from leankv.simulator.recorder import RequestRecords
from leankv.simulator.routing import router_named
from leankv.simulator.shared_pages import shared_pages
from leankv.simulator.stepwise import CountingLedger, StepwiseEngine
from leankv.simulator.timeline import replica_states


@settings(max_examples=150, deadline=None)
@given(worlds(), workloads, blocks)
def test_states_equal_the_counts_made_during_the_run(world: SmallWorld, rows: list, block: int | None) -> None:
    # Instants are whole picoseconds: a step must last a few, for its middle to lie inside it.
    assume(world.costs.fixed >= 4 << TICK_BITS)
    seen: list[tuple[int, int, int, int]] = []

    class Watched(StepwiseEngine):
        def _step(self, chunks):
            before, used, running = self.clock, self.ledger.used(), self.scheduler.running
            in_step = running + sum(chunk.last for chunk in chunks)
            waiting = len(self.scheduler.waiting)
            finished = super()._step(chunks)
            seen.append(((before + self.clock) // 2 >> TICK_BITS, used, in_step, waiting))
            return finished

    workload = Requests(rows, world.memory, block)
    cache = workload.prefix_cache()
    ledger = CountingLedger(world.memory, world.capacity, world.watermark, cache)
    replica = Replica(
        0, RequestRecords(), lambda hook: Watched(world.limits, ledger, world.costs, world.curves(), hook)
    )
    run_open_loop([replica], router_named("round-robin", 0), workload, lambda share: None)

    times = np.array([middle for middle, *_ in seen])
    prompts = np.array([prompt for _, prompt, _, _ in rows])
    arrived = np.array(workload.arrivals_ps)
    log = replica.engine.log
    prefixes = cache.blocks if cache is not None else None
    states = replica_states(0, log, arrived, prompts, world.memory, world.capacity, prefixes, times)
    assert states["kv_pages_used"].tolist() == [used for _, used, _, _ in seen]
    assert states["running"].tolist() == [running for _, _, running, _ in seen]
    late = [np.searchsorted(arrived, middle, side="right") for middle in times]
    early = [np.searchsorted(arrived, start, side="right") for start in log.segments.column("start_ps")]
    arrived_meanwhile = np.array(late) - np.array(early)
    assert (states["waiting"] - arrived_meanwhile).tolist() == [waiting for *_, waiting in seen]


def test_a_block_of_two_requests_counts_once() -> None:
    from leankv.simulator.recorder import ReplicaLog
    from leankv.simulator.resident import Resident
    from leankv.traces.trace import PrefixBlocks

    log = ReplicaLog()
    for row, (start, end) in enumerate([(0, 50), (10, 30), (40, 80)]):
        request = Resident(row, start, 17, 5, 1, 1, shared_tokens=16)
        request.stay_ps = start
        log.stay(request, end, 0, False)
    hashes = PrefixBlocks(np.array([0, 2, 4, 6]), np.array([1, 2, 1, 3, 1, 2]), 8)
    times = np.arange(0, 100, 5)
    users = [
        sum(s <= t < e and h in held for s, e, held in [(0, 50, (1, 2)), (10, 30, (1, 3)), (40, 80, (1, 2))])
        for t in times
        for h in (1, 2, 3)
    ]
    expected = (np.array(users).reshape(len(times), 3) > 0).sum(axis=1) * 7
    assert shared_pages(log, hashes, 7, times).tolist() == expected.tolist()
