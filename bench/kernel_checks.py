"""Correctness on a device before anything is timed: every live policy's whole cache, held to the torch path on a CPU.

A prompt in two chunks and some decode steps go through every kernel of the cache: scores, tiers, pages, store, gather,
the step's decision, attention, score update and recompression.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape
from leankv.bench.kernel_attention import WrongResult
from leankv.kernels.paths import Path
from leankv.serving.policies.registry import policy_named

POLICIES = (
    "fp16", "fp8", "int8", "int4", "kivi:bits=4,residual=32", "kivi:bits=2,residual=32",
    "streaming-llm:sink=4,recent=60", "h2o:heavy=0.3,recent=0.2", "snapkv:budget=64",
    "leankv:alpha_high=1,alpha_low=0.3", "leankv-r:recompress_every=8", "leankv-r:recompress_every=8,bookkeeping=5",
)  # fmt: skip
SHAPE = CacheShape(layers=2, heads=8, kv_heads=2, head_dim=128)
PROMPT, STEPS, CHUNK = 180, 20, 100
LIMIT, PRUNING_LIMIT = 4e-3, 5e-2
"""Relative deviation allowed. Where a token's fate hangs on scores in two roundings, now and then one token differs."""


def checks(
    device: torch.device, path: Path | None = None, policies: tuple[str, ...] = POLICIES, steps: int = STEPS
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Share done and the result, policy by policy; on a CPU the reference is held to the torch path.

    Raises WrongResult for the first that is off.
    """
    chosen = path or ("triton" if device.type == "cuda" else "reference")
    for number, name in enumerate(policies):
        expected, got = _outputs(name, torch.device("cpu"), "torch", steps), _outputs(name, device, chosen, steps)
        # NaN compares as false, so a poisoned value never passes.
        error = float((got - expected).norm() / expected.norm())
        limit = PRUNING_LIMIT if policy_named(name).bookkeeping else LIMIT
        if not error <= limit:
            raise WrongResult(
                f"{name}: decode on {device} is off by {error:.1e} of the torch path, {limit:g} is allowed"
            )
        yield (number + 1) / len(policies), {"policy": name, "error": error, "allowed": limit}


def _outputs(name: str, device: torch.device, path: Path | None, steps: int) -> Tensor:
    """float64 [steps, layers, heads, head_dim] on the CPU, of one request; the cache must be whole after each step."""
    generator = torch.Generator().manual_seed(1)
    tokens, scale = PROMPT + steps, SHAPE.head_dim**-0.5
    queries = 2 * torch.randn(2, tokens, SHAPE.heads, SHAPE.head_dim, generator=generator)
    keys, values = torch.randn(2, 2, tokens, SHAPE.kv_heads, SHAPE.head_dim, generator=generator)
    queries, keys, values = (
        x.half().to(device) if device.type == "cuda" else x.half().float() for x in (queries, keys, values)
    )
    means = torch.randn(2, SHAPE.kv_heads, SHAPE.head_dim, generator=generator)
    cache = KVCache(
        SHAPE,
        [policy_named(name)],
        slots=2,
        memory_bytes=1 << 24,
        max_tokens=256,
        device=device,
        key_means=means,
        path=path,
    )
    cache.admit(0, PROMPT)
    for start in range(0, PROMPT, CHUNK):
        part = slice(start, min(start + CHUNK, PROMPT))
        cache.begin_chunk(0, part.stop - start)
        for layer in range(SHAPE.layers):
            cache.store_chunk(0, layer, queries[layer, part], keys[layer, part], values[layer, part], scale)
        cache.end_chunk(0, part.stop - start)
    outputs = [_step(cache, queries, keys, values, PROMPT + step, scale) for step in range(steps)]
    if int(cache.errors):
        raise WrongResult(f"{name}: {int(cache.errors)} finite tokens were taken for non-finite ones on {device}")
    return torch.stack(outputs)


def _step(cache: KVCache, queries: Tensor, keys: Tensor, values: Tensor, position: int, scale: float) -> Tensor:
    cache.prepare_step([0])
    cache.begin_step(torch.tensor([0, -1], dtype=torch.int32, device=queries.device))
    outputs = []
    for layer in range(SHAPE.layers):
        q, k, v = (torch.stack([x[layer, position], x[layer, 0]]) for x in (queries, keys, values))
        outputs.append(cache.decode(layer, q, k, v, scale)[0].double().cpu())
    cache.end_step([0])
    cache.check_integrity()
    return torch.stack(outputs)
