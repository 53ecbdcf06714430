"""Which replica takes the next request.

The three routers by prediction are those of Rethinking KV Cache Compression (MLSys 2025, arXiv 2503.24000),
for replicas that serve different policies: by throughput (where tokens are predicted to come fastest), by length (where
the fewest tokens are predicted outstanding, the request's own answer under that policy included) and by both (where the
request is predicted to finish first). `forecast.py` says what is predicted, and where that departs from the paper.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from leankv.serving.errors import unknown_name
from leankv.simulator.forecast import Forecast
from leankv.simulator.resident import Resident


class Load(Protocol):
    """What a router may look at in a replica."""

    def outstanding_tokens(self) -> int:
        """Prompt and output tokens of the requests that it was given and has not finished."""

    def kv_use(self) -> float:
        """Pages in use over capacity."""

    @property
    def forecast(self) -> Forecast:
        """What is predicted of requests there; only asked for by routers in PREDICTIVE."""


@dataclass(frozen=True)
class Router:
    """`choose(replicas, request)` gives an index. `looks`: whether it needs the replicas' state at that instant."""

    choose: Callable[[Sequence[Load], Resident], int]
    looks: bool


def _round_robin(seed: int) -> Router:
    turn = iter(range(1 << 62))
    return Router(lambda replicas, _: next(turn) % len(replicas), looks=False)


def _random(seed: int) -> Router:
    draw = random.Random(seed)
    return Router(lambda replicas, _: draw.randrange(len(replicas)), looks=False)


def _least_outstanding_tokens(seed: int) -> Router:
    return Router(lambda replicas, _: _least([replica.outstanding_tokens() for replica in replicas]), looks=True)


def _least_kv_use(seed: int) -> Router:
    return Router(lambda replicas, _: _least([replica.kv_use() for replica in replicas]), looks=True)


def _predicted_throughput(seed: int) -> Router:
    return Router(lambda replicas, new: _least([each.forecast.ticks_a_token(new) for each in replicas]), looks=True)


def _predicted_length(seed: int) -> Router:
    return Router(
        lambda replicas, new: _least([each.forecast.outstanding_tokens(new) for each in replicas]), looks=True
    )


def _predicted_both(seed: int) -> Router:
    return Router(lambda replicas, new: _least([each.forecast.ticks_to_finish(new) for each in replicas]), looks=True)


def _least(loads: Sequence[float]) -> int:
    return min(range(len(loads)), key=loads.__getitem__)


PREDICTIVE: dict[str, Callable[[int], Router]] = {
    "predicted-throughput": _predicted_throughput,
    "predicted-length": _predicted_length,
    "predicted-both": _predicted_both,
}
ROUTERS: dict[str, Callable[[int], Router]] = {
    "round-robin": _round_robin,
    "random": _random,
    "least-outstanding-tokens": _least_outstanding_tokens,
    "least-kv-use": _least_kv_use,
    **PREDICTIVE,
}


def router_named(name: str, seed: int) -> Router:
    """A fresh router; ties go to the replica of lowest index. Raises InputError with the nearest name."""
    if name not in ROUTERS:
        raise unknown_name("router", name, ROUTERS)
    return ROUTERS[name](seed)
