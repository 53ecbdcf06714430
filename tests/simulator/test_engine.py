"""The jumping engine against the per-step oracle: same requests in, the same integers out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.simulator.small_world import SmallCosts, SmallMemory, SmallWorld

from leankv.serving.scheduler import SchedulerLimits
from leankv.simulator.clock import TICK_BITS
from leankv.simulator.cluster import ClosedLoop, Replica, run_open_loop
from leankv.simulator.engine import JumpEngine, elapsed, steps_to_reach
from leankv.simulator.forecast import Accuracy, Forecast, predictions
from leankv.simulator.ledger import LazyLedger
from leankv.simulator.prefixes import PrefixCache, shareable_blocks
from leankv.simulator.recorder import RequestRecords
from leankv.simulator.resident import Resident
from leankv.simulator.routing import ROUTERS, router_named
from leankv.simulator.stepwise import CountingLedger, StepwiseEngine
from leankv.traces.trace import PrefixBlocks

MAX_PROMPT, MAX_OUTPUT = 60, 80


@dataclass
class Requests:
    """A workload of (gap in ps, prompt, output, family); nothing is rejected.

    With `block` tokens to a prefix block, requests of one family share their prompts as far as both reach.
    """

    rows: list[tuple[int, int, int, int]]
    memory: SmallMemory
    block: int | None = None

    @property
    def arrivals_ps(self) -> list[int]:
        return list(accumulate(gap for gap, *_ in self.rows))

    def take(self, row: int, arrival_ps: int) -> Resident:
        _, prompt, output, _ = self.rows[row]
        shared = self.block * ((prompt - 1) // self.block) if self.block else 0
        own = prompt - shared
        need, first_held = self.memory.prefill_pages(own, own), self.memory.pages(own, own + 1)
        return Resident(row, arrival_ps, prompt, output, need, first_held, shared)

    def prefix_cache(self) -> PrefixCache | None:
        if self.block is None:
            return None
        counts = np.array([prompt // self.block for _, prompt, _, _ in self.rows])
        hashes = [1000 * family + i for (*_, family), n in zip(self.rows, counts, strict=True) for i in range(n)]
        blocks = PrefixBlocks(np.concatenate(([0], np.cumsum(counts))), np.array(hashes, dtype=np.int64), self.block)
        prompts = np.array([prompt for _, prompt, _, _ in self.rows])
        return PrefixCache(blocks, shareable_blocks(prompts, blocks), self.memory.pages(self.block, self.block))


@st.composite
def worlds(draw: st.DrawFn) -> SmallWorld:
    memory = SmallMemory(
        per_page=draw(st.integers(1, 9)),
        knee=draw(st.integers(1, 90)),
        thin=draw(st.integers(1, 4)),
        staged=draw(st.booleans()),
    )
    largest = max(memory.prefill_pages(MAX_PROMPT, MAX_PROMPT), memory.pages(MAX_PROMPT, MAX_PROMPT + MAX_OUTPUT))
    largest += MAX_PROMPT  # prefix blocks that end in the middle of a page
    seqs = draw(st.integers(1, 12))
    limits = SchedulerLimits(seqs, draw(st.integers(seqs, 70)), draw(st.booleans()))
    costs = SmallCosts(
        fixed=draw(st.integers(1, 5000)) << TICK_BITS,
        per_token=draw(st.integers(0, 1 << 20)),
        per_byte=draw(st.integers(0, 1 << 14)),
        bend=draw(st.integers(1, 6000)),
    )
    spare = draw(st.one_of(st.integers(0, 12), st.integers(0, 300)))
    return SmallWorld(memory, costs, limits, largest + spare, draw(st.integers(0, 2)))


gaps = st.one_of(st.just(0), st.integers(0, 3000), st.integers(0, 300_000))
requests = st.tuples(gaps, st.integers(1, MAX_PROMPT), st.integers(1, MAX_OUTPUT), st.integers(0, 3))
workloads = st.lists(requests, min_size=1, max_size=25)
blocks = st.one_of(st.none(), st.integers(1, 20))


def run(
    world: SmallWorld,
    rows: list,
    per_step: bool,
    router: str,
    replicas: int,
    concurrency: int | None,
    block: int | None = None,
):
    records = RequestRecords()
    workload = Requests(rows, world.memory, block)

    def make(on_finish):
        kinds = (StepwiseEngine, CountingLedger) if per_step else (JumpEngine, LazyLedger)
        ledger = kinds[1](world.memory, world.capacity, world.watermark, workload.prefix_cache())
        return kinds[0](world.limits, ledger, world.costs, world.curves(), on_finish)

    def forecast(index: int) -> Forecast:
        predicted = predictions(np.array([output for _, _, output, _ in rows]), Accuracy(), (0, index))
        return Forecast(world.costs, world.curves(), world.memory, world.capacity, world.limits.max_num_seqs, predicted)

    made = [Replica(index, records, make, forecast(index)) for index in range(replicas)]
    if concurrency is None:
        run_open_loop(made, router_named(router, 0), workload, lambda share: None)
    else:
        ClosedLoop(made, router_named(router, 0), workload, concurrency, lambda share: None).run()
    return records, made


def timestamps(records: RequestRecords) -> list[tuple[int, ...]]:
    """(request, replica, arrival, admitted, first token, finish, preemptions) by request."""
    rows = [records.finished.column(name).tolist() for name in records.finished.names]
    return sorted(zip(*rows, strict=True))


def steps_of(replica: Replica) -> list[tuple[int, ...]]:
    """(cost in ticks, sequences, prompt tokens, requests waiting) of every step, jumps taken apart."""
    segments = replica.engine.log.segments
    names = ("first_gap", "slope", "steps", "sequences", "prompt_tokens", "waiting")
    columns = zip(*(segments.column(name).tolist() for name in names), strict=True)
    return [(first + i * slope, *rest) for first, slope, steps, *rest in columns for i in range(steps)]


loops = st.one_of(st.none(), st.integers(1, 9))


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), workloads, st.sampled_from(sorted(ROUTERS)), st.integers(1, 3), loops, blocks)
def test_jumps_equal_steps(world, rows, router, replicas, concurrency, block) -> None:
    jumped, jump_replicas = run(world, rows, False, router, replicas, concurrency, block)
    stepped, step_replicas = run(world, rows, True, router, replicas, concurrency, block)
    assert timestamps(jumped) == timestamps(stepped)
    for jump, step in zip(jump_replicas, step_replicas, strict=True):
        assert steps_of(jump) == steps_of(step)
        assert jump.engine.log.preemption_gaps_ps == step.engine.log.preemption_gaps_ps
        for name in jump.engine.log.stays.names:
            assert jump.engine.log.stays.column(name).tolist() == step.engine.log.stays.column(name).tolist(), name


@settings(max_examples=200, deadline=None)
@given(worlds(), workloads, loops, blocks)
def test_conservation(world, rows, concurrency, block) -> None:
    """Everything finishes, tokens out are tokens asked, causes come before effects, pages return to zero."""
    records, (replica,) = run(world, rows, False, "round-robin", 1, concurrency, block)
    assert [row[0] for row in timestamps(records)] == list(range(len(rows)))
    log = replica.engine.log
    stays = log.stays
    first_tokens = int((stays.column("decode_ps") >= 0).sum())
    decoded = int((log.segments.column("steps") * log.segments.column("sequences")).sum())
    assert decoded + first_tokens == sum(output for _, _, output, _ in rows)
    for _, _, arrival, admitted, first, finish, _ in timestamps(records):
        assert arrival <= admitted < first <= finish
    ledger = replica.engine.ledger
    assert ledger.used() == 0 and ledger.reserved == 0
    assert replica.given_tokens == 0


@settings(max_examples=150, deadline=None)
@given(worlds(), workloads, blocks)
def test_pages_never_exceed_the_pool(world, rows, block) -> None:
    """The oracle counts every page at every step, so its count is the one to hold against the capacity."""
    records = RequestRecords()
    used: list[int] = []

    class Watched(StepwiseEngine):
        def _cost(self, batch, chunks):
            used.append(self.ledger.used())
            return super()._cost(batch, chunks)

    workload = Requests(rows, world.memory, block)
    ledger = CountingLedger(world.memory, world.capacity, world.watermark, workload.prefix_cache())
    replica = Replica(0, records, lambda hook: Watched(world.limits, ledger, world.costs, world.curves(), hook))
    run_open_loop([replica], router_named("round-robin", 0), workload, lambda share: None)
    assert max(used) <= world.capacity
    assert ledger.used() == 0


@given(st.integers(1, 10**7), st.integers(-50, 10**5), st.integers(1, 400), st.data())
def test_steps_to_reach_is_exact(first: int, slope: int, enough: int, data: st.DataObject) -> None:
    if first + (enough - 1) * slope <= 0:
        slope = 0
    distance = data.draw(st.integers(1, elapsed(enough, first, slope)))
    steps = steps_to_reach(distance, first, slope, enough)
    assert elapsed(steps, first, slope) >= distance
    assert steps == 1 or elapsed(steps - 1, first, slope) < distance


def test_same_seed_same_bytes() -> None:
    world = SmallWorld(
        SmallMemory(4, 30, 2, True), SmallCosts(900 << TICK_BITS, 77, 5, 800), SchedulerLimits(4, 32), 90, 1
    )
    rows = [(index * 37 % 900, 1 + index * 13 % 60, 1 + index * 29 % 80, 0) for index in range(60)]
    first, _ = run(world, rows, False, "random", 3, None)
    second, _ = run(world, rows, False, "random", 3, None)
    assert timestamps(first) == timestamps(second)


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_md1_waiting_time(utilisation: float) -> None:
    """One prompt at a time, one token each, Poisson arrivals: an M/D/1 queue, whose mean wait is rho / (2 (1 - rho)).

    In units of the service time. 40,000 arrivals; the tolerance is five standard errors of a batch-means estimate.
    """
    count, service_ps = 40_000, 1_000_000
    world = SmallWorld(
        SmallMemory(10, 100, 1, False),
        SmallCosts((service_ps << TICK_BITS) - 1 - 10 * 6, 0, 0, 10**6),
        SchedulerLimits(1, 10),
        1000,
        0,
    )
    service = world.costs.tokens_and_logits(10, 1) + world.costs.prefill(10, 0, True)
    gaps_ps = np.random.default_rng(5).exponential(service / (1 << TICK_BITS) / utilisation, count).astype(int)
    records, _ = run(world, [(int(gap), 10, 1, 0) for gap in gaps_ps], False, "round-robin", 1, None)
    _, _, arrived, admitted, *_ = np.array(timestamps(records)).T
    waits = (admitted - arrived) / (service / (1 << TICK_BITS))
    batches = waits.reshape(40, -1).mean(axis=1)
    error = batches.std(ddof=1) / np.sqrt(len(batches))
    assert abs(waits.mean() - utilisation / (2 * (1 - utilisation))) < 5 * error


def test_a_shared_prefix_is_computed_and_held_once() -> None:
    """Two equal prompts of five blocks: the second computes only what follows the four shareable ones."""
    world = SmallWorld(
        SmallMemory(4, 1000, 1, False), SmallCosts(900 << TICK_BITS, 77, 5, 800), SchedulerLimits(4, 100), 90, 0
    )
    rows = [(0, 40, 50, 7), (1, 40, 50, 7)]
    _, (replica,) = run(world, rows, False, "round-robin", 1, None, block=8)
    stays = replica.engine.log.stays
    assert stays.column("hit_tokens").tolist() == [0, 32]
    assert int(replica.engine.log.segments.column("prompt_tokens").sum()) == 40 + 8
