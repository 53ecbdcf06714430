"""Storing and reading in vectorised torch: all tokens at once through typed views of the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.kernels import quantization_torch as qt
from leankv.kernels import segments
from leankv.serving.pages import PageLayout

if TYPE_CHECKING:
    from leankv.kernels.store import Tokens


def store(pool: Tensor, layout: PageLayout, pages: Tensor, places: Tensor, tokens: Tokens) -> None:
    """See `kernels/store.py`; keys come transformed."""
    written = pages >= 0
    page, place = pages[written].long(), places[written].long()
    if layout.format.key_axis == "channel":
        _store_key_groups(pool, layout, pages, places, tokens.keys)
    else:
        _store_keys(pool, layout, page, place, tokens.keys[written])
    _store_values(pool, layout, page, place, tokens.values[written])
    _store_bookkeeping(pool, layout, page, place, tokens.scores[written], tokens.positions[written])


def gather(pool: Tensor, layout: PageLayout, pages: Tensor, places: Tensor) -> Tokens:
    """See `kernels/store.py`; keys are returned as stored."""
    from leankv.kernels.store import Tokens

    held = pages >= 0
    page, place = pages[held].long(), places[held].long()
    scores, positions = _bookkeeping(pool, layout, page, place)
    return Tokens(
        _spread(held, _keys(pool, layout, page, place), 0),
        _spread(held, _values(pool, layout, page, place), 0),
        _spread(held, scores, 0),
        _spread(held, positions, -1),
    )


def _spread(held: Tensor, found: Tensor, missing: int) -> Tensor:
    everywhere = found.new_full((*held.shape, *found.shape[1:]), missing)
    everywhere[held] = found
    return everywhere


def _float_bytes(x: Tensor, bits: int) -> Tensor:
    if bits == 32:
        return x.contiguous().view(torch.uint8)
    if bits == 16:
        return x.clamp(-qt.HALF_MAX, qt.HALF_MAX).half().view(torch.uint8)
    return qt.encode_e4m3(x)


def _floats(packed: Tensor, bits: int) -> Tensor:
    return qt.decode_floats(packed, bits)


def _write_codes(planes: tuple[Tensor, ...], page: Tensor, place: Tensor, packed: Tensor) -> None:
    for plane, part in zip(planes, packed.split([p.shape[-1] for p in planes], -1), strict=True):
        plane[page, place] = part


def _packed(planes: tuple[Tensor, ...], page: Tensor, place: Tensor) -> Tensor:
    return torch.cat([plane[page, place] for plane in planes], -1)


def _store_keys(pool: Tensor, layout: PageLayout, page: Tensor, place: Tensor, keys: Tensor) -> None:
    format, planes = layout.format, segments.key_codes(pool, layout)
    if format.kind == "float":
        _write_codes(planes, page, place, _float_bytes(keys, format.k_bits))
        return
    codes, scale, zero = qt.quantize(keys, format.k_bits, format.k_groups)
    _write_codes(planes, page, place, qt.pack(codes, format.k_bits))
    segments.key_meta(pool, layout)[page, place] = torch.stack((scale, zero), -1).flatten(-2)


def _store_key_groups(pool: Tensor, layout: PageLayout, pages: Tensor, places: Tensor, keys: Tensor) -> None:
    format, size = layout.format, layout.format.group_tokens
    n, heads, head_dim = keys.shape
    by_channel = keys.view(n // size, size, heads, head_dim).permute(0, 2, 3, 1)
    first_pages, first_places = pages[::size].long(), places[::size].long()
    written = first_pages >= 0
    codes, scale, zero = qt.quantize(by_channel[written], format.k_bits, 1)
    packed = qt.pack(codes.transpose(-1, -2).contiguous(), format.k_bits)
    page, first = first_pages[written], first_places[written]
    neighbours = first[:, None] + torch.arange(size, device=keys.device)
    _write_codes(segments.key_codes(pool, layout), page[:, None].expand_as(neighbours), neighbours, packed)
    segments.key_meta(pool, layout)[page, first // size] = torch.cat((scale, zero), -1).flatten(-2)


def _store_values(pool: Tensor, layout: PageLayout, page: Tensor, place: Tensor, values: Tensor) -> None:
    format, planes = layout.format, segments.value_codes(pool, layout)
    if format.kind == "float":
        _write_codes(planes, page, place, _float_bytes(values, format.v_bits))
        return
    codes, scale, zero = qt.quantize(values, format.v_bits, format.value_groups(layout.head_dim))
    _write_codes(planes, page, place, qt.pack(codes, format.v_bits))
    segments.value_meta(pool, layout)[page, place] = torch.stack((scale, zero), -1).flatten(-2)


def _store_bookkeeping(
    pool: Tensor, layout: PageLayout, page: Tensor, place: Tensor, scores: Tensor, positions: Tensor
) -> None:
    if layout.bookkeeping == 0:
        return
    score_view, position_view = segments.scores(pool, layout), segments.positions(pool, layout)
    score_view[page, place] = scores[:, None].to(score_view.dtype)
    numbers = positions[:, None].int().contiguous()
    position_view[page, place] = numbers if layout.bookkeeping == 8 else numbers.view(torch.uint8)[:, :3]


def _keys(pool: Tensor, layout: PageLayout, page: Tensor, place: Tensor) -> Tensor:
    format = layout.format
    packed = _packed(segments.key_codes(pool, layout), page, place)
    if format.kind == "float":
        return _floats(packed, format.k_bits)
    codes = qt.unpack(packed, format.k_bits).float()
    if format.key_axis == "channel":
        meta = segments.key_meta(pool, layout)[page, place // format.group_tokens].float().unflatten(-1, (-1, 2))
        return codes * meta[..., 0] + meta[..., 1]
    return _scaled(codes, segments.key_meta(pool, layout)[page, place])


def _values(pool: Tensor, layout: PageLayout, page: Tensor, place: Tensor) -> Tensor:
    format = layout.format
    packed = _packed(segments.value_codes(pool, layout), page, place)
    if format.kind == "float":
        return _floats(packed, format.v_bits)
    return _scaled(qt.unpack(packed, format.v_bits).float(), segments.value_meta(pool, layout)[page, place])


def _scaled(codes: Tensor, meta: Tensor) -> Tensor:
    pairs = meta.float().unflatten(-1, (-1, 2))
    grouped = codes.unflatten(-1, (pairs.shape[-2], -1))
    return (grouped * pairs[..., :1] + pairs[..., 1:]).flatten(-2)


def _bookkeeping(pool: Tensor, layout: PageLayout, page: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    if layout.bookkeeping == 0:
        return page.new_zeros(page.shape, dtype=torch.float32), page.new_full(page.shape, -1, dtype=torch.int32)
    score = segments.scores(pool, layout)[page, place].float().squeeze(-1)
    position = segments.positions(pool, layout)[page, place]
    if layout.bookkeeping == 8:
        return score, position.squeeze(-1)
    low, middle, high = position.int().unbind(-1)
    return score, low | middle << 8 | high << 16
