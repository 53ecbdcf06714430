"""Replicas behind a router, driven by SimPy.

SimPy carries what happens between replicas: arrivals, routing and, in a closed loop, the arrivals that a finished
request causes. What happens inside a replica between two such instants is the engine's, which runs up to the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import simpy
from simpy.events import URGENT

from leankv.simulator.clock import PS_PER_S, TICK_BITS
from leankv.simulator.forecast import Forecast
from leankv.simulator.recorder import ReplicaLog, RequestRecords
from leankv.simulator.resident import Resident
from leankv.simulator.routing import Router

PROGRESS_EVERY = 64
NEVER = PS_PER_S * 10**9 << TICK_BITS
FinishHook = Callable[[Resident, int], None]


class Engine(Protocol):
    """`JumpEngine` or its oracle `StepwiseEngine`."""

    clock: int
    log: ReplicaLog

    @property
    def idle(self) -> bool: ...

    def add(self, request: Resident) -> None: ...

    def run_until(self, limit: int, stop_at_finish: bool = False) -> None: ...

    def kv_use(self) -> float: ...


class Replica:
    """An engine and the count of what it was given.

    forecast: for routers that predict. dress: fits a request to this replica's policy, where replicas differ.
    """

    def __init__(
        self,
        index: int,
        records: RequestRecords,
        make_engine: Callable[[FinishHook], Engine],
        forecast: Forecast | None = None,
        dress: Callable[[Resident], None] | None = None,
    ) -> None:
        self.index = index
        self.records = records
        self._forecast = forecast
        self._dress = dress
        self.given_tokens = 0
        self.newly_finished = 0
        self.engine = make_engine(self._finish)

    def outstanding_tokens(self) -> int:
        return self.given_tokens

    def kv_use(self) -> float:
        return self.engine.kv_use()

    @property
    def forecast(self) -> Forecast:
        assert self._forecast is not None, "this router predicts, and the replica was made without a forecast"
        return self._forecast

    def give(self, request: Resident) -> None:
        """The request reaches the replica's queue at its arrival; a clock behind that belongs to an idle replica."""
        engine = self.engine
        arrival = request.arrival_ps << TICK_BITS
        if engine.clock < arrival:
            engine.clock = arrival
        if self._dress is not None:
            self._dress(request)
        if self._forecast is not None:
            self._forecast.given(request)
        self.given_tokens += request.prompt_tokens + request.output_tokens
        engine.add(request)

    def _finish(self, request: Resident, finish_ps: int) -> None:
        self.given_tokens -= request.prompt_tokens + request.output_tokens
        if self._forecast is not None:
            self._forecast.finished(request)
        self.records.finish(request, self.index, finish_ps)
        self.newly_finished += 1


class Workload(Protocol):
    """Requests in order of arrival; `take(row, arrival_ps)` makes one, or None after recording why it is rejected."""

    @property
    def arrivals_ps(self) -> Sequence[int]: ...

    def take(self, row: int, arrival_ps: int) -> Resident | None: ...


def run_open_loop(
    replicas: Sequence[Replica], router: Router, workload: Workload, progress: Callable[[float], None]
) -> None:
    """Requests arrive when the trace says. A replica is advanced only when an arrival or its router looks at it."""
    environment = simpy.Environment(initial_time=0)
    environment.process(_arrivals(environment, replicas, router, workload, progress))
    environment.run()
    for replica in replicas:
        replica.engine.run_until(NEVER)


def _arrivals(
    environment: simpy.Environment,
    replicas: Sequence[Replica],
    router: Router,
    workload: Workload,
    progress: Callable[[float], None],
) -> Generator[simpy.Event, Any, None]:
    arrivals = workload.arrivals_ps
    every = max(len(arrivals) // 200, PROGRESS_EVERY)
    only = replicas[0] if len(replicas) == 1 else None
    now = 0
    for row, arrival_ps in enumerate(arrivals):
        if arrival_ps > now:
            yield environment.timeout(arrival_ps - now)
            now = arrival_ps
        if row % every == 0:
            progress(row / len(arrivals))
            _pack(replicas)
        request = workload.take(row, now)
        if request is None:
            continue
        if only is not None:
            replica = only
        else:
            for replica in replicas if router.looks else ():
                replica.engine.run_until(now << TICK_BITS)
            replica = replicas[router.choose(replicas, request)]
        replica.engine.run_until(now << TICK_BITS)
        replica.give(request)


def _pack(replicas: Sequence[Replica]) -> None:
    replicas[0].records.finished.pack_if_many()
    for replica in replicas:
        replica.engine.log.pack_if_many()


class ClosedLoop:
    """At most `concurrency` requests in flight: one that arrives beyond that is sent when an earlier one finishes.

    The semantics of `vllm bench serve --max-concurrency`; latencies count from the sending. A replica may run ahead to
    the next event of the whole cluster, since nothing can reach it before.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        router: Router,
        workload: Workload,
        concurrency: int,
        progress: Callable[[float], None],
    ) -> None:
        self.replicas = replicas
        self.router = router
        self.workload = workload
        self.free = concurrency
        self.progress = progress
        self.held: deque[int] = deque()
        self.sent = 0
        self.environment = simpy.Environment(initial_time=0)
        self.wake = [self.environment.event() for _ in replicas]

    def run(self) -> None:
        self.environment.process(self._arrive())
        for replica in self.replicas:
            self.environment.process(self._serve(replica))
        self.environment.run()

    def _arrive(self) -> Generator[simpy.Event, Any, None]:
        for row, arrival_ps in enumerate(self.workload.arrivals_ps):
            if arrival_ps > self.environment.now:
                yield _urgent_timeout(self.environment, arrival_ps - int(self.environment.now))
            self.held.append(row)
            self._send()

    def _send(self) -> None:
        while self.held and self.free:
            request = self.workload.take(self.held.popleft(), int(self.environment.now))
            self.sent += 1
            if request is None:
                continue
            self.free -= 1
            replica = self.replicas[self.router.choose(self.replicas, request)]
            replica.give(request)
            if not self.wake[replica.index].triggered:
                self.wake[replica.index].succeed()
        if self.sent % PROGRESS_EVERY == 0:
            self.progress(self.sent / len(self.workload.arrivals_ps))
            _pack(self.replicas)

    def _serve(self, replica: Replica) -> Generator[simpy.Event, Any, None]:
        engine, environment = replica.engine, self.environment
        while True:
            if engine.idle:
                self.wake[replica.index] = environment.event()
                yield self.wake[replica.index]
            # Whoever else has a boundary at this very instant shows its finished requests before anyone goes on.
            yield environment.timeout(0)
            next_event = environment.peek()
            limit = NEVER if next_event == float("inf") else int(next_event) << TICK_BITS
            engine.run_until(max(limit, engine.clock + 1), stop_at_finish=True)
            yield environment.timeout((engine.clock >> TICK_BITS) - environment.now)
            self.free += replica.newly_finished
            replica.newly_finished = 0
            self._send()


def _urgent_timeout(environment: simpy.Environment, delay: int) -> simpy.Event:
    """A timeout that comes before every other event of its instant, so that an arrival is seen at that instant."""
    event = simpy.Event(environment)
    event._ok = True
    event._value = None
    environment.schedule(event, priority=URGENT, delay=delay)
    return event
