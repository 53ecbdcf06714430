"""Correctness on a device before anything is timed: every live policy's whole cache, held to the torch path on a CPU.

A prompt in two chunks and some decode steps go through every kernel of the cache: scores, tiers, pages, store, gather,
the step's decision, attention, score update, flushes and recompression. On CUDA the steps run twice, launched one by
one and replayed from a graph; each policy in a process of its own, so that a kernel that breaks one context breaks no
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
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


WORKERS = 6
"""Processes at once on a GPU: what takes time is compiling, on the host."""


def checks(
    device: torch.device, path: Path | None = None, policies: tuple[str, ...] = POLICIES, steps: int = STEPS
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Share done and the result, policy by policy; on a CPU the reference is held to the torch path.

    A result has `error` beside `allowed` (and `graph_error` on CUDA), or `failed`: in words, what was wrong.
    """
    chosen = path or ("triton" if device.type == "cuda" else "reference")
    one = partial(check, device=str(device), path=chosen, steps=steps)
    if device.type != "cuda":
        for number, name in enumerate(policies):
            yield (number + 1) / len(policies), one(name)
        return
    pool = ProcessPoolExecutor(WORKERS, get_context("spawn"), max_tasks_per_child=1)
    with pool:
        begun = {pool.submit(one, name): name for name in policies}
        for number, done in enumerate(as_completed(begun)):
            try:
                result = done.result()
            except Exception as error:  # a process that died takes its result with it
                result = {"policy": begun[done], "failed": in_words(error)}
            yield (number + 1) / len(policies), result


def check(name: str, device: str, path: Path, steps: int) -> dict[str, Any]:
    """One policy's result, see `checks`; never raises for what goes wrong in it."""
    limit = PRUNING_LIMIT if policy_named(name).bookkeeping else LIMIT
    try:
        expected = _outputs(name, torch.device("cpu"), "torch", steps)
        got = _outputs(name, torch.device(device), path, steps)
        found: dict[str, Any] = {"policy": name, "error": _apart(got, expected), "allowed": limit}
        if device.startswith("cuda"):
            found["graph_error"] = _apart(_outputs(name, torch.device(device), path, steps, _recorded), got)
    except Exception as error:
        return {"policy": name, "failed": in_words(error)}
    # NaN compares as false, so a poisoned value never passes.
    for key, what in (("error", "of the torch path"), ("graph_error", "of the same steps launched one by one")):
        if key in found and not found[key] <= limit:
            found["failed"] = f"decode on {device} is off by {found[key]:.1e} {what}, {limit:g} is allowed"
    return found


def in_words(error: BaseException) -> str:
    """An exception in one line of moderate length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _apart(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def _launched(step: Callable[[], None]) -> Callable[[], None]:
    return step


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; what it computes on meanwhile must be padding."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _outputs(
    name: str,
    device: torch.device,
    path: Path | None,
    steps: int,
    made: Callable[[Callable[[], None]], Callable[[], None]] = _launched,
) -> Tensor:
    """float64 [steps, layers, heads, head_dim] on the CPU, of one request; the cache must be whole after each step."""
    generator = torch.Generator().manual_seed(1)
    tokens, scale = PROMPT + steps, SHAPE.head_dim**-0.5
    queries = 2 * torch.randn(2, tokens, SHAPE.heads, SHAPE.head_dim, generator=generator)
    keys, values = torch.randn(2, 2, tokens, SHAPE.kv_heads, SHAPE.head_dim, generator=generator)
    queries, keys, values = (
        x.half().to(device) if device.type == "cuda" else x.half().float() for x in (queries, keys, values)
    )
    plain, before = torch.randn(2, 2, SHAPE.kv_heads, SHAPE.head_dim, generator=generator)
    means = KeyMeans(plain, before, 1e4 ** -torch.linspace(0, 1, SHAPE.head_dim // 2))
    memory = {"slots": 2, "memory_bytes": 1 << 25, "max_tokens": 256}
    cache = KVCache(SHAPE, [policy_named(name)], **memory, device=device, key_means=means, path=path)
    cache.admit(0, PROMPT)
    for start in range(0, PROMPT, CHUNK):
        part = slice(start, min(start + CHUNK, PROMPT))
        cache.begin_chunk(0, part.stop - start)
        for layer in range(SHAPE.layers):
            cache.store_chunk(0, layer, queries[layer, part], keys[layer, part], values[layer, part], scale)
        cache.end_chunk(0, part.stop - start)
    outputs = _decoded(cache, (queries, keys, values), steps, scale, made)
    if any(faults := cache.faults().tolist()):
        raise WrongResult(f"{name}: faults {faults} (pages short, a table too small, bad keys) in a sound run")
    return outputs


def _decoded(
    cache: KVCache,
    given: tuple[Tensor, Tensor, Tensor],
    steps: int,
    scale: float,
    made: Callable[[Callable[[], None]], Callable[[], None]],
) -> Tensor:
    """Outputs of the steps after the prompt, which read the same buffers each time, as a graph has to."""
    device = given[0].device
    slots = torch.full((2,), -1, dtype=torch.int32, device=device)
    new = [torch.zeros(SHAPE.layers, 2, *x.shape[2:], dtype=x.dtype, device=device) for x in given]
    output = torch.zeros_like(new[0])

    def compute() -> None:
        cache.begin_step(slots)
        for layer in range(SHAPE.layers):
            output[layer] = cache.decode(layer, new[0][layer], new[1][layer], new[2][layer], scale)

    step = made(compute)
    slots[0] = 0
    outputs = []
    for position in range(PROMPT, PROMPT + steps):
        for buffer, x in zip(new, given, strict=True):
            buffer[:, 0] = x[:, position]
        cache.prepare_step([0])
        step()
        cache.end_step([0])
        outputs.append(output[:, 0].double().cpu())
        cache.check_integrity()
    return torch.stack(outputs)
