"""Decode attention in vectorised torch, for CPUs: every page that a batch holds is one entry of a batched product.

Pages, not requests, are the batch axis, so ragged batches pay no padding. Codes are widened to float32 once; scales and
zeros are applied to the products, as in the Triton kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.kernels import quantization_torch as qt
from leankv.kernels import segments
from leankv.kernels.bookkeeping import positions_in
from leankv.kernels.transforms import rotate
from leankv.serving.pages import PageLayout

if TYPE_CHECKING:
    from leankv.kernels.attention import LayerCache


@dataclass(frozen=True, eq=False)
class _Pages:
    """Pages of one format and tier: `row` (batch * kv_heads + head), first token's entry, tokens held, and bytes."""

    layout: PageLayout
    row: Tensor
    first: Tensor
    held: Tensor
    contents: Tensor


def decode_attention(
    query: Tensor, cache: LayerCache, slots: Tensor, scale: float, output: Tensor, contributions: Tensor | None
) -> None:
    """See `kernels/attention.py`."""
    batch, heads, head_dim = query.shape
    rows, group = batch * cache.kv_heads, heads // cache.kv_heads
    queries = _rotated(query.float(), cache, slots).mul_(scale).view(rows, group, head_dim)
    shifts = (
        None if cache.centres is None else cache.centres.products(query.float() * scale, slots).view(rows, group, -1)
    )
    runs = list(_runs(cache, slots))
    logits = [_logits(run, queries[run.row], shifts) for run in runs]

    highest = queries.new_full((rows, group), -torch.inf)
    for run, run_logits in zip(runs, logits, strict=True):
        highest.scatter_reduce_(0, run.row[:, None].expand(-1, group), run_logits.amax(-1), "amax")
    total = queries.new_zeros(rows, group)
    weighted = queries.new_zeros(rows, group, head_dim)
    for run, run_logits in zip(runs, logits, strict=True):
        weights = run_logits.sub_(highest[run.row][..., None]).exp_()
        total.index_add_(0, run.row, weights.sum(-1))
        weighted.index_add_(0, run.row, _weighted_values(run, weights))
    total.clamp_(min=torch.finfo(torch.float32).tiny)
    output.copy_(weighted.div_(total[..., None]).view(batch, heads, head_dim))
    if contributions is not None:
        flat = contributions.view(rows, -1)
        for run, weights in zip(runs, logits, strict=True):
            _write_contributions(run, weights.div_(total[run.row][..., None]).amax(1), flat)


def _rotated(queries: Tensor, cache: LayerCache, slots: Tensor) -> Tensor:
    if cache.rotated is None:
        return queries.clone()
    chosen = (cache.rotated[slots.clamp(min=0).long()] != 0)[:, None, None]
    return torch.where(chosen, rotate(queries), queries)


def _runs(cache: LayerCache, slots: Tensor) -> Iterator[_Pages]:
    active = slots >= 0
    slot = slots.clamp(min=0).long()
    counts = cache.token_counts[slot].long() * active[:, None, None]
    formats = cache.tier_formats[slot]
    tables = cache.page_table[slot].flatten(0, 1)
    for tier in (0, 1):
        for index, layout in enumerate(cache.layouts):
            tokens = (counts[..., tier] * (formats[:, tier] == index)[:, None]).flatten()
            if bool(tokens.any()):
                yield _run(cache, layout, tier, tokens, counts[..., 0].flatten() * tier, tables)


def _run(cache: LayerCache, layout: PageLayout, tier: int, tokens: Tensor, before: Tensor, tables: Tensor) -> _Pages:
    pages = -(-tokens // layout.tokens)
    row = torch.repeat_interleave(torch.arange(len(tokens)), pages)
    number = torch.arange(len(row)) - (pages.cumsum(0) - pages)[row]
    column = number if tier == 0 else tables.shape[1] - 1 - number
    first = number * layout.tokens
    held = (tokens[row] - first).clamp(max=layout.tokens)
    contents = cache.pool.view(torch.int64).index_select(0, tables[row, column].long()).view(torch.uint8)
    return _Pages(layout, row, before[row] + first, held, contents)


def _logits(run: _Pages, queries: Tensor, shifts: Tensor | None) -> Tensor:
    """[pages, group, tokens]; -inf beyond the tokens held. shifts: [rows, group, positions] to add, if any."""
    format, layout = run.layout.format, run.layout
    codes = _widened(segments.key_codes(run.contents, layout), format.k_bits, format.kind)
    if format.key_axis == "channel":
        scale, zero = segments.key_meta(run.contents, layout).float().unflatten(-1, (-1, 2)).unbind(-1)
        grouped = codes.unflatten(1, (-1, format.group_tokens))
        codes = (grouped * scale[:, :, None] + zero[:, :, None]).flatten(1, 2)
    if format.kind == "float" or format.key_axis == "channel":
        logits = torch.bmm(queries, codes.transpose(1, 2))
    else:
        logits = _scaled_products(queries, codes, segments.key_meta(run.contents, layout), format.k_groups)
    if shifts is not None and layout.bookkeeping:
        logits += _shifts(run, shifts)
    beyond = torch.arange(layout.tokens) >= run.held[:, None]
    return logits.masked_fill_(beyond[:, None], -torch.inf)


def _shifts(run: _Pages, shifts: Tensor) -> Tensor:
    """[pages, group, tokens]; anything beyond the tokens held, where positions are whatever the page held before."""
    stored = segments.positions(run.contents, run.layout)
    place = positions_in(stored, run.layout).long().clamp(0, shifts.shape[-1] - 1)
    # One gather over all pages: a row's shifts are never copied.
    row = (run.row[:, None] * shifts.shape[1] + torch.arange(shifts.shape[1])) * shifts.shape[-1]
    return shifts.flatten()[row[..., None] + place[:, None]]


def _scaled_products(queries: Tensor, codes: Tensor, meta: Tensor, groups: int) -> Tensor:
    pairs = meta.float().unflatten(-1, (groups, 2))
    parts = []
    for g, (q, c) in enumerate(zip(queries.chunk(groups, -1), codes.chunk(groups, -1), strict=True)):
        scale, zero = pairs[:, None, :, g, 0], pairs[:, None, :, g, 1]
        parts.append(torch.bmm(q, c.transpose(1, 2)).mul_(scale).addcmul_(q.sum(-1, keepdim=True), zero))
    return sum(parts[1:], parts[0])


def _weighted_values(run: _Pages, weights: Tensor) -> Tensor:
    """[pages, group, head_dim]: the sum over a page's tokens of weight times value."""
    format, layout = run.layout.format, run.layout
    codes = _widened(segments.value_codes(run.contents, layout), format.v_bits, format.kind)
    beyond = torch.arange(layout.tokens) >= run.held[:, None]
    if format.kind == "float":
        return torch.bmm(weights, codes.masked_fill_(beyond[..., None], 0))
    groups = format.value_groups(layout.head_dim)
    # What lies beyond the tokens held is whatever the page held before: as bytes harmless, as float16 maybe NaN.
    meta = segments.value_meta(run.contents, layout).float().masked_fill_(beyond[..., None], 0)
    pairs = meta.unflatten(-1, (groups, 2))
    parts = []
    for g, c in enumerate(codes.chunk(groups, -1)):
        scaled = weights * pairs[:, None, :, g, 0]
        zeros = torch.bmm(weights, pairs[:, :, g, 1:])
        parts.append(torch.bmm(scaled, c).add_(zeros))
    return parts[0] if groups == 1 else torch.cat(parts, -1)


def _widened(planes: tuple[Tensor, ...], bits: int, kind: str) -> Tensor:
    """float32 [pages, tokens, head_dim] codes, or elements of a float format."""
    if kind == "float":
        packed = planes[0].contiguous()
        return _e4m3(packed) if bits == 8 else qt.decode_floats(packed, bits)
    if bits == 8:
        return planes[0].float()
    if bits == 3:
        return qt.unpack(torch.cat(planes, -1), 3).float()
    return qt.unpack(planes[0], bits).float()


def _e4m3(packed: Tensor) -> Tensor:
    """As `decode_e4m3` for the finite bytes that are stored, by way of float16, which CPUs widen faster."""
    # Sign-extended, a negative byte fills bits 7 to 15: what it shifts to bit 15 is its sign, bit 14 is masked off.
    bits = packed.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(-0x4080)
    return bits.view(torch.float16).float().mul_(256)


def _write_contributions(run: _Pages, probabilities: Tensor, flat: Tensor) -> None:
    place = torch.arange(run.layout.tokens)
    kept = place < run.held[:, None]
    rows = run.row[:, None].expand_as(kept)[kept]
    flat[rows, (run.first[:, None] + place)[kept]] = probabilities[kept]
