"""Counts that come late and tokens that are fed again: the jumping engine against an oracle that is told each step."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.simulator.small_world import SmallMemory, SmallWorld
from tests.simulator.test_engine import (
    MAX_OUTPUT,
    MAX_PROMPT,
    Requests,
    blocks,
    steps_of,
    timestamps,
    workloads,
    worlds,
)

from leankv.simulator.cluster import ClosedLoop, Replica, run_open_loop
from leankv.simulator.engine import JumpEngine
from leankv.simulator.late_ledger import LateCountingLedger, LateLedger
from leankv.simulator.late_pages import LatePages
from leankv.simulator.recorder import RequestRecords
from leankv.simulator.routing import router_named
from leankv.simulator.stepwise import StepwiseEngine


class SmallLate(LatePages):
    """Bounds `slack` pages above what is held; with `tooth` above 1 what is held shrinks every `tooth` tokens."""

    def __init__(self, memory: SmallMemory, slack: int, growth: int, tooth: int, replays: bool) -> None:
        self.small = memory
        self.slack = slack
        self.growth = growth
        self.tooth = tooth
        self.shrinks = tooth > 1
        self.replays = replays

    def __repr__(self) -> str:
        return f"SmallLate({self.slack=}, {self.growth=}, {self.tooth=}, {self.replays=})"

    def pages(self, prompt: int, context: int) -> int:
        return self.small.pages(prompt, context) + self.slack

    def prefill_pages(self, prompt: int, done: int) -> int:
        return self.small.prefill_pages(prompt, prompt) + self.slack

    def held(self, prompt: int, context: int) -> int:
        return max(0, self.small.pages(prompt, context) - context % self.tooth)

    def growth_bound(self, tokens: int) -> int:
        return self.small.growth_bound(tokens) + self.tooth - 1


@st.composite
def late_worlds(draw: st.DrawFn) -> tuple[SmallWorld, SmallLate]:
    world = draw(worlds())
    tooth = draw(st.sampled_from((1, 1, 3, 8)))
    late = SmallLate(world.memory, draw(st.integers(0, 9)), draw(st.integers(0, 3)), tooth, draw(st.booleans()))
    most = max(late.prefill_pages(MAX_PROMPT, 0), late.pages(MAX_PROMPT, MAX_PROMPT + MAX_OUTPUT))
    spare = draw(st.one_of(st.integers(0, 12), st.integers(0, 300)))
    return SmallWorld(world.memory, world.costs, world.limits, most + spare, world.watermark), late


def run(
    world: SmallWorld, late: SmallLate, rows: list, per_step: bool, concurrency: int | None, block: int | None = None
):
    """`block`: tokens of a shared prefix block; policies that share prefixes keep everything, so none are replayed."""
    records = RequestRecords()
    block = None if late.replays else block
    workload = Requests(rows, late, block)
    capacity = world.capacity + (MAX_PROMPT // block * late.pages(block, block) if block else 0)

    def make(on_finish):
        engine, ledger = (StepwiseEngine, LateCountingLedger) if per_step else (JumpEngine, LateLedger)
        account = ledger(late, capacity, world.watermark, workload.prefix_cache())
        return engine(world.limits, account, world.costs, world.curves(), on_finish)

    replica = Replica(0, records, make)
    router = router_named("round-robin", 0)
    if concurrency is None:
        run_open_loop([replica], router, workload, lambda share: None)
    else:
        ClosedLoop([replica], router, workload, concurrency, lambda share: None).run()
    return records, replica.engine


loops = st.one_of(st.none(), st.integers(1, 9))


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(late_worlds(), workloads, loops, blocks)
def test_jumps_equal_steps(worlds, rows, concurrency, block) -> None:
    jumped, jump = run(*worlds, rows, False, concurrency, block)
    stepped, step = run(*worlds, rows, True, concurrency, block)
    assert timestamps(jumped) == timestamps(stepped)
    assert steps_of(as_replica(jump)) == steps_of(as_replica(step))
    assert jump.log.preemption_gaps_ps == step.log.preemption_gaps_ps
    for rows_of in ("stays", "chunks"):
        ours, theirs = getattr(jump.log, rows_of), getattr(step.log, rows_of)
        for name in ours.names:
            assert ours.column(name).tolist() == theirs.column(name).tolist(), (rows_of, name)


class as_replica:
    def __init__(self, engine) -> None:
        self.engine = engine


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(late_worlds(), workloads, loops)
def test_every_token_is_given_once_and_pages_return_to_zero(worlds, rows, concurrency) -> None:
    """A token is a request's first, the first after a preemption (a gap of its own), or one step after another."""
    records, engine = run(*worlds, rows, False, concurrency)
    assert [row[0] for row in timestamps(records)] == list(range(len(rows)))
    segments = engine.log.segments
    decoded = int((segments.column("steps") * segments.column("sequences")).sum())
    assert decoded + len(engine.log.preemption_gaps_ps) + len(rows) == sum(output for _, _, output, _ in rows)
    lasting = sum(cost * given for cost, given, *_ in steps_of(as_replica(engine))) / 2**16
    gaps = sum(finish - first for _, _, _, _, first, finish, _ in timestamps(records))
    assert abs(lasting + sum(engine.log.preemption_gaps_ps) - gaps) <= decoded + 2 * len(rows) + 2
    assert engine.ledger.used() == 0 and engine.ledger.reserved == 0 and engine._replaying == 0


def test_generated_tokens_are_fed_again_one_a_step() -> None:
    """Two requests in a pool for one and a half: the later one loses its cache, and computes its prompt alone again."""
    from tests.simulator.small_world import SmallCosts

    from leankv.serving.scheduler import SchedulerLimits

    memory = SmallMemory(1, 1000, 1, False)
    world = SmallWorld(memory, SmallCosts(1 << 20, 0, 0, 10), SchedulerLimits(4, 100), 90, 0)
    rows = [(0, 30, 30, 0), (0, 30, 30, 0)]
    records, engine = run(world, SmallLate(memory, 0, 1, 1, True), rows, True, None)
    (_, *_, one), (_, *_, other) = timestamps(records)
    assert (one, other) == (0, 1)
    sequences, prompts = np.array(steps_of(as_replica(engine))).T[1:3]
    # Both decode until 90 pages are short, the first goes on alone, then the second replays what it had.
    together = int((sequences == 2).sum())
    generated = 1 + together
    replays = np.flatnonzero((prompts == 1) & (sequences == 0))
    assert len(replays) == generated and prompts[replays[0] - 1] == 30
    assert int(prompts.sum()) == 30 + 30 + 30 + generated
    assert len(engine.log.preemption_gaps_ps) == 1
