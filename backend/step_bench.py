"""How long one decode step lasts under a policy, beside the same step under another, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.engine import Engine
from leankv.backend.key_means import rope_frequencies
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.weights import Loaded
from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy
from leankv.serving.pool_plan import page_bytes_of
from leankv.serving.scheduler import SchedulerLimits

SLACK = 1.5


def decode_steps_s(
    loaded: Loaded, policies: Sequence[Policy], prompts: Sequence[Sequence[int]], rounds: int
) -> list[list[float]]:
    """Seconds of `rounds` decode steps by policy, all prompts in one batch.

    The policies take turns, step by step, so that what else the machine does falls on all alike.
    """
    engines = [_filled(loaded, policy, prompts, rounds) for policy in policies]
    lasting: list[list[float]] = [[] for _ in policies]
    for _ in range(rounds):
        for engine, seconds in zip(engines, lasting, strict=True):
            began = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - began)
    return lasting


def room_for(loaded: Loaded, policy: Policy, requests: int, longest: int) -> int:
    """Bytes of a pool in which so many requests of up to `longest` tokens run at once, with room to spare."""
    rows = loaded.layers * loaded.kv_heads
    a_page = page_bytes_of([policy], loaded.head_dim)
    formats = (FP16, *(tier.format for tier in policy.tiers))
    token = max(format.payload_bytes(loaded.head_dim) for format in formats)
    return int(SLACK * requests * longest * rows * token) + 4 * requests * rows * a_page + (1 << 24)


def _no_means(loaded: Loaded) -> KeyMeans:
    """Zeros: what keys are centred on changes no time."""
    zeros = torch.zeros(loaded.layers, loaded.kv_heads, loaded.head_dim)
    return KeyMeans(zeros, zeros, rope_frequencies(loaded))


def _filled(loaded: Loaded, policy: Policy, prompts: Sequence[Sequence[int]], rounds: int) -> Engine:
    """An engine in which every prompt is complete, with room for `rounds` decode steps."""
    longest = max(map(len, prompts)) + rounds + 2
    engine = Engine(
        loaded,
        policy,
        SchedulerLimits(len(prompts), sum(map(len, prompts)), chunked_prefill=False),
        memory_bytes=room_for(loaded, policy, len(prompts), longest),
        max_tokens=longest,
        key_means=_no_means(loaded),
    )
    for row, prompt in enumerate(prompts):
        engine.add(LiveRequest(row, prompt, rounds + 2, Sampling(ignore_eos=True)))
    engine.step()
    assert len(engine.scheduler.decoding) == len(prompts), "the pool was meant to hold all"
    return engine
