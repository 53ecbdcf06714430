"""The cache on Triton's path over tensors without contents, kernels named and not run: what no GPU is needed to see.

A value read back, a shape that depends on contents or an index by a mask fails here, since there is nothing to read.
The names of what is launched and the sizes of what is allocated are all that a step can depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="triton is part of the extra `live`")

from triton.runtime.jit import JITFunction

from leankv.backend import cache_step
from leankv.backend.cache import KVCache
from leankv.backend.cache_buffers import largest_batch, step_buffers
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.kernels import attention_triton
from leankv.serving.policies.registry import policy_named

SHAPE = CacheShape(layers=2, heads=8, kv_heads=2, head_dim=128)
PERIODIC = ("kivi:bits=4,residual=64", "leankv-r:recompress_every=1", "leankv-r:recompress_every=1,bookkeeping=5")
POLICIES = (
    "fp16", "fp8", "int8", "int4", "kivi:bits=2,residual=32", "streaming-llm:sink=4,recent=60",
    "h2o:heavy=0.3,recent=0.2", "snapkv:budget=64", "leankv", *PERIODIC,
)  # fmt: skip
META = torch.device("meta")


class _Sizes(TorchDispatchMode):
    """Operations and the sizes of their results, in order; a constant of the host fails."""

    def __init__(self, constants: bool) -> None:
        super().__init__()
        self.constants = constants
        self.seen: list[tuple[str, Any]] = []

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        assert self.constants or not name.startswith("aten.lift_fresh"), "a constant is copied from the host"
        found = function(*args, **(kwargs or {}))
        self.seen.append((name, tuple(found.shape) if isinstance(found, torch.Tensor) else None))
        return found


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    calls: list[tuple[str, Any]] = []

    def run(self: Any, *_: Any, grid: Any, warmup: bool, **__: Any) -> None:
        calls.append((self.fn.__name__, grid))

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(attention_triton, "multiprocessors", lambda _: 132)
    yield calls


def _new(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    queries = torch.empty(tokens, SHAPE.heads, SHAPE.head_dim, device=META, dtype=torch.float16)
    keys, values = torch.empty(2, tokens, SHAPE.kv_heads, SHAPE.head_dim, device=META, dtype=torch.float16)
    return queries, keys, values


def _prefilled(name: str, prompt: int, chunk: int) -> KVCache:
    means = KeyMeans(*torch.zeros(2, SHAPE.layers, SHAPE.kv_heads, SHAPE.head_dim), torch.ones(32))
    cache = KVCache(
        SHAPE, [policy_named(name)], slots=4, memory_bytes=1 << 27, max_tokens=512, device=META, key_means=means,
        path="triton",
    )  # fmt: skip
    for slot in range(2):
        cache.admit(slot, prompt)
        for start in range(0, prompt, chunk):
            tokens = min(chunk, prompt - start)
            cache.begin_chunk(slot, tokens)
            for layer in range(SHAPE.layers):
                cache.prefix(slot, layer)
                cache.store_chunk(slot, layer, *_new(tokens), 0.1)
            cache.end_chunk(slot, tokens)
    return cache


def _step(cache: KVCache, bucket: int) -> list[Any]:
    """What the capturable part of one step of two requests does."""
    cache.prepare_step([0, 1])
    slots = torch.empty(bucket, dtype=torch.int32, device=META)
    new = [_new(bucket) for _ in range(SHAPE.layers)]
    with _Sizes(constants=False) as sizes:
        cache.begin_step(slots)
        for layer in range(SHAPE.layers):
            cache.decode(layer, *new[layer], 0.1)
    cache.end_step([0, 1])
    assert cache.faults().shape == (3,)
    return sizes.seen


@pytest.mark.parametrize("chunk", [128, 40])
@pytest.mark.parametrize("name", POLICIES)
def test_prompts_steps_flushes_and_recompression_read_nothing_back(
    name: str, chunk: int, launched: list[tuple[str, Any]]
) -> None:
    cache = _prefilled(name, 128, chunk)
    launched.clear()
    first = _step(cache, 4)
    kernels = {kernel for kernel, _ in launched}
    assert "split_kernel" in kernels
    assert ("requantize_kernel" in kernels) == name.startswith("leankv-r"), "recompression was due"
    assert ("store_key_groups_kernel" in kernels) == name.startswith("kivi"), "the window was full"
    assert first == _step(cache, 4), "a step differs from the one before, one token longer"


def test_nothing_new_is_launched_after_a_rehearsal(launched: list[tuple[str, Any]]) -> None:
    for name in PERIODIC:
        cache = _prefilled(name, 128, 128)
        launched.clear()
        cache.rehearse()
        rehearsed = {kernel for kernel, _ in launched}
        launched.clear()
        cache.prepare_step([0, 1])
        cache.requests[0].done += 1
        cache.requests[1].done += 1
        cache_step.recompress_due(cache, [0, 1])
        assert launched and {kernel for kernel, _ in launched} <= rehearsed


def test_a_long_context_launches_what_a_short_one_does(launched: list[tuple[str, Any]]) -> None:
    seen = []
    for prompt in (64, 448):
        cache = _prefilled("leankv-r:recompress_every=1", prompt, 448)
        launched.clear()
        seen.append((_step(cache, 4), [(kernel, grid) for kernel, grid in launched]))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("bucket", [1, 2, 4])
def test_every_bucket_shares_one_set_of_buffers(bucket: int, launched: list[tuple[str, Any]]) -> None:
    cache = _prefilled("leankv", 128, 128)
    buffers = cache.buffers.attention
    workspace = buffers.for_batch(bucket)
    for name, whole in vars(buffers).items():
        if isinstance(whole, torch.Tensor):
            assert getattr(workspace, name).untyped_storage()._cdata == whole.untyped_storage()._cdata, name
    expected = attention_triton.splits_for(bucket, SHAPE.heads, SHAPE.kv_heads, 512, 132)
    assert workspace.partial.shape == (bucket, SHAPE.heads, expected, SHAPE.head_dim)
    made = []
    for name, shape in _step(cache, bucket):
        if name.startswith(("aten.empty", "aten.new_empty", "aten.full", "aten.zeros")) and shape:
            made.append(torch.Size(shape).numel())
    assert max(made) <= bucket * SHAPE.heads * SHAPE.head_dim, "a step allocates more than its output"


def test_buffers_come_out_of_the_given_memory(launched: list[tuple[str, Any]]) -> None:
    cache = _prefilled("leankv-r", 128, 128)
    used = cache.pool.nbytes + cache.tables.nbytes + cache.buffers.nbytes
    assert (1 << 27) - cache.page_bytes - 8 < used <= 1 << 27
    assert largest_batch(4) == 4 and largest_batch(5) == 8 and largest_batch(1) == 1
    plain = step_buffers(SHAPE, [policy_named("fp16")], 4, 512, META)
    assert plain.contributions is None and plain.recompression is None
    assert plain.nbytes < cache.buffers.nbytes


def test_more_heads_than_the_workspace_holds_take_turns(
    launched: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leankv.backend.cache_buffers.MOST_RECOMPRESSION_BYTES", 3 * 16 * 512 + 3 * 8 * 16 * 128)
    cache = _prefilled("leankv-r:recompress_every=1", 128, 128)
    workspace = cache.buffers.recompression
    assert workspace is not None and workspace.rows == 3
    launched.clear()
    _step(cache, 4)
    grids = [grid[0] for kernel, grid in launched if kernel == "list_kernel"]
    assert grids == [3, 3, 2], "two requests of two layers and two heads"
