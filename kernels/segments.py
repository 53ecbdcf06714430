"""The fields of pages as tensors: typed views into pages of bytes, no copy."""

from __future__ import annotations

import torch
from torch import Tensor

from leankv.kernels.layout import key_high_plane, value_high_plane
from leankv.serving.pages import PageLayout


def places(pages: Tensor, offset: int, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """View [pages, count, width] of `dtype` on pages uint8 [pages, page_bytes], from byte `offset` on.

    `pages` must be contiguous; the offset and the page's size must be multiples of the dtype's size.
    """
    typed = pages.view(dtype)
    return typed.as_strided((len(pages), count, width), (typed.stride(0), width, 1), offset // dtype.itemsize)


def key_codes(pages: Tensor, layout: PageLayout) -> tuple[Tensor, ...]:
    """Packed keys: one view [pages, tokens, bytes] a plane (two planes for three bits)."""
    return _planes(pages, layout, layout.offset("keys"), key_high_plane(layout), layout.format.k_bits)


def value_codes(pages: Tensor, layout: PageLayout) -> tuple[Tensor, ...]:
    """Packed values, as `key_codes`."""
    return _planes(pages, layout, layout.offset("values"), value_high_plane(layout), layout.format.v_bits)


def _planes(pages: Tensor, layout: PageLayout, start: int, high: int, bits: int) -> tuple[Tensor, ...]:
    if bits == 3:
        quarter = layout.head_dim // 4
        return (
            places(pages, start, layout.tokens, quarter, torch.uint8),
            places(pages, high, layout.tokens, quarter // 2, torch.uint8),
        )
    return (places(pages, start, layout.tokens, layout.head_dim * bits // 8, torch.uint8),)


def key_meta(pages: Tensor, layout: PageLayout) -> Tensor:
    """float16 [pages, tokens, 2 * groups] of (scale, zero) pairs; per channel [pages, tokens/32, 2 * head_dim]."""
    format, offset = layout.format, layout.offset("key_meta")
    if format.key_axis == "channel":
        return places(pages, offset, layout.tokens // format.group_tokens, 2 * layout.head_dim, torch.float16)
    return places(pages, offset, layout.tokens, 2 * format.key_groups(layout.head_dim), torch.float16)


def value_meta(pages: Tensor, layout: PageLayout) -> Tensor:
    """float16 [pages, tokens, 2 * groups] of (scale, zero) pairs."""
    groups = layout.format.value_groups(layout.head_dim)
    return places(pages, layout.offset("value_meta"), layout.tokens, 2 * groups, torch.float16)


def scores(pages: Tensor, layout: PageLayout) -> Tensor:
    """[pages, tokens, 1]: float32, or float16 where the bookkeeping is 5 bytes a token."""
    dtype = torch.float32 if layout.bookkeeping == 8 else torch.float16
    return places(pages, layout.offset("scores"), layout.tokens, 1, dtype)


def positions(pages: Tensor, layout: PageLayout) -> Tensor:
    """[pages, tokens, 1] int32, or [pages, tokens, 3] uint8 little-endian where the bookkeeping is 5 bytes a token."""
    offset = layout.offset("positions")
    if layout.bookkeeping == 8:
        return places(pages, offset, layout.tokens, 1, torch.int32)
    return places(pages, offset, layout.tokens, 3, torch.uint8)
