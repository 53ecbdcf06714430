"""Storing and reading a token at a time, byte by byte as `kernels/layout.py` says. The oracle of the other forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.kernels import quantization as qz
from leankv.kernels.layout import key_high_plane, value_high_plane
from leankv.serving.pages import PageLayout

if TYPE_CHECKING:
    from leankv.kernels.store import Tokens


def store(pool: Tensor, layout: PageLayout, pages: Tensor, places: Tensor, tokens: Tokens) -> None:
    """See `kernels/store.py`; keys come transformed."""
    n, heads = pages.shape
    for i in range(n):
        for h in range(heads):
            page, place = int(pages[i, h]), int(places[i, h])
            if page < 0:
                continue
            if layout.format.key_axis == "token":
                _store_key(pool[page], layout, place, tokens.keys[i, h])
            elif i % layout.format.group_tokens == 0:
                _store_key_group(pool[page], layout, place, tokens.keys[i : i + layout.format.group_tokens, h])
            _store_value(pool[page], layout, place, tokens.values[i, h])
            _store_bookkeeping(pool[page], layout, place, tokens.scores[i, h], tokens.positions[i, h])


def gather(pool: Tensor, layout: PageLayout, pages: Tensor, places: Tensor) -> Tokens:
    """See `kernels/store.py`; keys are returned as stored."""
    from leankv.kernels.store import Tokens

    keys = torch.zeros(*pages.shape, layout.head_dim)
    values = torch.zeros(*pages.shape, layout.head_dim)
    scores = torch.zeros(pages.shape)
    positions = torch.full(pages.shape, -1, dtype=torch.int32)
    for i, h in (pages >= 0).nonzero().tolist():
        page, place = pool[int(pages[i, h])], int(places[i, h])
        keys[i, h] = _load_key(page, layout, place)
        values[i, h] = _load_value(page, layout, place)
        scores[i, h], positions[i, h] = _load_bookkeeping(page, layout, place)
    return Tokens(keys, values, scores, positions)


def _write(page: Tensor, offset: int, data: Tensor) -> None:
    as_bytes = data.contiguous().view(torch.uint8).flatten()
    page[offset : offset + len(as_bytes)] = as_bytes


def _read(page: Tensor, offset: int, count: int, dtype: torch.dtype) -> Tensor:
    return page[offset : offset + count * dtype.itemsize].clone().view(dtype)


def _write_codes(page: Tensor, start: int, high: int, place: int, codes: Tensor, bits: int) -> None:
    packed = qz.pack(codes, bits, "reference")
    if bits == 3:
        low = len(codes) // 4
        _write(page, start + place * low, packed[:low])
        _write(page, high + place * low // 2, packed[low:])
    else:
        _write(page, start + place * len(packed), packed)


def _read_codes(page: Tensor, start: int, high: int, place: int, head_dim: int, bits: int) -> Tensor:
    if bits == 3:
        low = head_dim // 4
        parts = (
            _read(page, start + place * low, low, torch.uint8),
            _read(page, high + place * low // 2, low // 2, torch.uint8),
        )
        return qz.unpack(torch.cat(parts), 3, "reference")
    row = head_dim * bits // 8
    return qz.unpack(_read(page, start + place * row, row, torch.uint8), bits, "reference")


def _write_floats(page: Tensor, start: int, place: int, x: Tensor, bits: int) -> None:
    if bits == 32:
        data = x.float()
    elif bits == 16:
        data = x.clamp(-qz.HALF_MAX, qz.HALF_MAX).half()
    else:
        data = qz.encode_e4m3(x, "reference")
    _write(page, start + place * len(x) * bits // 8, data)


def _read_floats(page: Tensor, start: int, place: int, head_dim: int, bits: int) -> Tensor:
    offset = start + place * head_dim * bits // 8
    if bits == 32:
        return _read(page, offset, head_dim, torch.float32)
    if bits == 16:
        return _read(page, offset, head_dim, torch.float16).float()
    return qz.decode_e4m3(_read(page, offset, head_dim, torch.uint8), "reference")


def _store_key(page: Tensor, layout: PageLayout, place: int, key: Tensor) -> None:
    format, start = layout.format, layout.offset("keys")
    if format.kind == "float":
        _write_floats(page, start, place, key, format.k_bits)
        return
    quantized = qz.quantize(key, format.k_bits, format.k_groups, "reference")
    _write_codes(page, start, key_high_plane(layout), place, quantized.codes, format.k_bits)
    pairs = torch.stack((quantized.scale, quantized.zero), -1)
    _write(page, layout.offset("key_meta") + place * 4 * format.k_groups, pairs)


def _store_key_group(page: Tensor, layout: PageLayout, first: int, keys: Tensor) -> None:
    format, head_dim = layout.format, layout.head_dim
    quantized = qz.quantize(keys.T, format.k_bits, 1, "reference")
    for token in range(format.group_tokens):
        codes = quantized.codes[:, token]
        _write_codes(page, layout.offset("keys"), key_high_plane(layout), first + token, codes, format.k_bits)
    pairs = torch.cat((quantized.scale, quantized.zero), -1)
    _write(page, layout.offset("key_meta") + first // format.group_tokens * head_dim * 4, pairs)


def _store_value(page: Tensor, layout: PageLayout, place: int, value: Tensor) -> None:
    format, start = layout.format, layout.offset("values")
    if format.kind == "float":
        _write_floats(page, start, place, value, format.v_bits)
        return
    groups = format.value_groups(layout.head_dim)
    quantized = qz.quantize(value, format.v_bits, groups, "reference")
    _write_codes(page, start, value_high_plane(layout), place, quantized.codes, format.v_bits)
    pairs = torch.stack((quantized.scale, quantized.zero), -1)
    _write(page, layout.offset("value_meta") + place * 4 * groups, pairs)


def _store_bookkeeping(page: Tensor, layout: PageLayout, place: int, score: Tensor, position: Tensor) -> None:
    scores, positions = layout.offset("scores"), layout.offset("positions")
    if layout.bookkeeping == 8:
        _write(page, scores + 4 * place, score.float().view(1))
        _write(page, positions + 4 * place, position.int().view(1))
    elif layout.bookkeeping == 5:
        _write(page, scores + 2 * place, score.half().view(1))
        _write(page, positions + 3 * place, position.int().view(1).view(torch.uint8)[:3])


def _load_key(page: Tensor, layout: PageLayout, place: int) -> Tensor:
    format, head_dim, start = layout.format, layout.head_dim, layout.offset("keys")
    if format.kind == "float":
        return _read_floats(page, start, place, head_dim, format.k_bits)
    codes = _read_codes(page, start, key_high_plane(layout), place, head_dim, format.k_bits)
    if format.key_axis == "channel":
        offset = layout.offset("key_meta") + place // format.group_tokens * head_dim * 4
        scale, zero = _read(page, offset, 2 * head_dim, torch.float16).float().view(head_dim, 2).T
        return codes.float() * scale + zero
    offset = layout.offset("key_meta") + place * 4 * format.k_groups
    pairs = _read(page, offset, 2 * format.k_groups, torch.float16).view(-1, 2)
    return qz.dequantize(qz.Quantized(codes, pairs[:, 0], pairs[:, 1], format.k_bits))


def _load_value(page: Tensor, layout: PageLayout, place: int) -> Tensor:
    format, head_dim, start = layout.format, layout.head_dim, layout.offset("values")
    if format.kind == "float":
        return _read_floats(page, start, place, head_dim, format.v_bits)
    groups = format.value_groups(head_dim)
    codes = _read_codes(page, start, value_high_plane(layout), place, head_dim, format.v_bits)
    offset = layout.offset("value_meta") + place * 4 * groups
    pairs = _read(page, offset, 2 * groups, torch.float16).view(-1, 2)
    return qz.dequantize(qz.Quantized(codes, pairs[:, 0], pairs[:, 1], format.v_bits))


def _load_bookkeeping(page: Tensor, layout: PageLayout, place: int) -> tuple[float, int]:
    scores, positions = layout.offset("scores"), layout.offset("positions")
    if layout.bookkeeping == 8:
        score = _read(page, scores + 4 * place, 1, torch.float32)
        return float(score), int(_read(page, positions + 4 * place, 1, torch.int32))
    if layout.bookkeeping == 5:
        low, middle, high = _read(page, positions + 3 * place, 3, torch.uint8).tolist()
        return float(_read(page, scores + 2 * place, 1, torch.float16)), low | middle << 8 | high << 16
    return 0.0, -1
