"""Decode attention: checked against float64, then timed beside torch's SDPA in FP16 at the same shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from leankv.bench.paged import Mix, Paged, Shape, filled_paged
from leankv.bench.timing import seconds
from leankv.kernels.attention import DecodeWorkspace, LayerCache, decode_attention
from leankv.kernels.attention_reference import held_tokens

MOST_LAYERS = 32
CHECKED_SLOTS, LONG = 2, 4096
"""Slots held to float64, and the context beyond which only their first and last head are: it takes the host's time."""


class WrongResult(RuntimeError):
    """A kernel's output is not what float64 gives: timing it would mean nothing."""


def layers_beyond_cache(bytes_a_layer: float, device: torch.device) -> int:
    """Layers to rotate over so that none is still in the last-level cache when its turn comes again."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    last_level = properties.L2_cache_size if properties else 32 << 20
    if bytes_a_layer > 16 * last_level:
        return 1
    return int(min(MOST_LAYERS, max(4, -(-4 * last_level // bytes_a_layer))))


def attention_time(
    shape: Shape, mix: Mix, batch: int, context: int, device: torch.device, scored: bool
) -> dict[str, float]:
    """Seconds and bytes of one layer's decode attention; `scored`: with each token's contribution to its score.

    Raises WrongResult where the output deviates from float64 by more than the dtype allows, or holds NaN.
    """
    layers = layers_beyond_cache(batch * shape.kv_heads * mix.bytes_read(context), device)
    paged = filled_paged(shape, mix, batch, context, layers, device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    query = torch.randn(batch, shape.heads, shape.head_dim, device=device, dtype=dtype)
    output = torch.full_like(query, torch.nan)
    gains = torch.full((batch, shape.kv_heads, sum(mix.held(context))), torch.nan, device=device) if scored else None
    attend = _attend(paged, query, output, gains)
    attend(0)
    error = _check(paged, query, output, gains)
    elapsed = seconds(lambda: _each(attend, layers), device) / layers
    read = batch * shape.kv_heads * mix.bytes_read(context) + query.nbytes + output.nbytes
    return {"seconds": elapsed, "bytes": read + (gains.nbytes if gains is not None else 0), "error": error}


def sdpa_time(shape: Shape, batch: int, context: int, device: torch.device) -> float | None:
    """Seconds of SDPA on FP16 keys and values; the group is its query length, so that it too reads each key once.

    None where they do not fit the memory that is free.
    """
    a_layer = 2 * batch * shape.kv_heads * context * shape.head_dim * 2
    layers = layers_beyond_cache(a_layer, device)
    if device.type == "cuda" and layers * a_layer > 0.8 * torch.cuda.mem_get_info(device)[0]:
        return None
    size = (layers, batch, shape.kv_heads, context, shape.head_dim)
    keys, values = (torch.zeros(size, device=device, dtype=torch.float16).normal_() for _ in range(2))
    group = (batch, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
    query = torch.randn(group, device=device).half()

    def attend(layer: int) -> None:
        functional.scaled_dot_product_attention(query, keys[layer], values[layer], scale=shape.scale)

    return seconds(lambda: _each(attend, layers), device) / layers


def _each(attend: Callable[[int], None], layers: int) -> None:
    for layer in range(layers):
        attend(layer)


def _attend(paged: Paged, query: Tensor, output: Tensor, gains: Tensor | None) -> Callable[[int], None]:
    views = [paged.layer(number) for number in range(paged.tables.layers)]
    slots, workspace = paged.slots, _workspace(paged, query)

    def attend(layer: int) -> None:
        decode_attention(query, views[layer], slots, paged.shape.scale, output, gains, workspace)

    return attend


def _workspace(paged: Paged, query: Tensor) -> DecodeWorkspace | None:
    if not query.is_cuda:
        return None
    from leankv.kernels.attention_triton import decode_workspace, splits_for

    shape, batch = paged.shape, len(query)
    capacity = sum(paged.mix.held(paged.context))
    units = torch.cuda.get_device_properties(query.device).multi_processor_count
    splits = splits_for(batch, shape.heads, shape.kv_heads, capacity, units)
    return decode_workspace(batch, shape.heads, shape.kv_heads, shape.head_dim, capacity, splits, query.device)


def _check(paged: Paged, query: Tensor, output: Tensor, gains: Tensor | None) -> float:
    """Largest deviation from float64 over the largest value, on a few slots."""
    limit = 2e-3 if output.dtype == torch.float16 else 1e-5
    if not bool(torch.isfinite(output).all()) or (gains is not None and not bool(torch.isfinite(gains).all())):
        raise WrongResult(f"{paged.mix.name}: the output holds values that are not finite")
    worst = 0.0
    for slot in range(0, len(query), max(1, len(query) // CHECKED_SLOTS)):
        cache = _slot_on_cpu(paged.layer(0), slot)
        group = query[slot].double().cpu().view(paged.shape.kv_heads, -1, paged.shape.head_dim)
        for head in {0, paged.shape.kv_heads - 1} if paged.context > LONG else range(paged.shape.kv_heads):
            keys, values = (x.double() for x in held_tokens(cache, 0, head)[:2])
            weights = (group[head] @ keys.T * paged.shape.scale).softmax(-1)
            expected, got = weights @ values, output[slot].view(paged.shape.kv_heads, -1, paged.shape.head_dim)[head]
            worst = max(worst, float((got.double().cpu() - expected).abs().max() / expected.abs().max()))
            if gains is not None:
                difference = gains[slot, head].double().cpu() - weights.amax(0)
                worst = max(worst, float(difference.abs().max() / weights.max()))
    if not worst <= limit:
        raise WrongResult(f"{paged.mix.name}: off by {worst:.1e} of the largest value, {limit:g} is allowed")
    return worst


def _slot_on_cpu(cache: LayerCache, slot: int) -> LayerCache:
    """One slot's pages, renumbered."""
    table = cache.page_table[slot]
    numbers = torch.where(table >= 0, torch.arange(table.numel(), device=table.device).view_as(table), -1)
    pool = cache.pool[table.flatten().clamp(min=0).long()].cpu()
    parts = cache.token_counts[slot][None].cpu(), cache.tier_formats[slot][None].cpu()
    return LayerCache(pool, cache.layouts, numbers[None].int().cpu(), *parts)
