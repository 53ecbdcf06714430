"""Which replica takes the next request."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from leankv.serving.errors import unknown_name


class Load(Protocol):
    """What a router may look at in a replica."""

    def outstanding_tokens(self) -> int:
        """Prompt and output tokens of the requests that it was given and has not finished."""

    def kv_use(self) -> float:
        """Pages in use over capacity."""


@dataclass(frozen=True)
class Router:
    """`choose(replicas)` gives an index. `looks` says whether it needs the replicas' state at that instant."""

    choose: Callable[[Sequence[Load]], int]
    looks: bool


def _round_robin(seed: int) -> Router:
    turn = iter(range(1 << 62))
    return Router(lambda replicas: next(turn) % len(replicas), looks=False)


def _random(seed: int) -> Router:
    draw = random.Random(seed)
    return Router(lambda replicas: draw.randrange(len(replicas)), looks=False)


def _least_outstanding_tokens(seed: int) -> Router:
    return Router(lambda replicas: _least([replica.outstanding_tokens() for replica in replicas]), looks=True)


def _least_kv_use(seed: int) -> Router:
    return Router(lambda replicas: _least([replica.kv_use() for replica in replicas]), looks=True)


def _least(loads: Sequence[float]) -> int:
    return min(range(len(loads)), key=loads.__getitem__)


ROUTERS: dict[str, Callable[[int], Router]] = {
    "round-robin": _round_robin,
    "random": _random,
    "least-outstanding-tokens": _least_outstanding_tokens,
    "least-kv-use": _least_kv_use,
}


def router_named(name: str, seed: int) -> Router:
    """A fresh router; ties go to the replica of lowest index. Raises InputError with the nearest name."""
    if name not in ROUTERS:
        raise unknown_name("router", name, ROUTERS)
    return ROUTERS[name](seed)
