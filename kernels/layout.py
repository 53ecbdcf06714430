"""How the paged cache lies on the device: what every kernel reads and writes.

Tensors of one cache (all on one device, allocated once):

    pool         uint8 [num_pages, page_bytes]
    page_table   int32 [slots, layers, kv_heads, max_pages]   page numbers; -1 where no page is held
    token_counts int32 [slots, layers, kv_heads, 2]           tokens held in tier 0 (high) and tier 1 (low)
    tier_formats int32 [slots, 2]                             index of a `PageLayout` of the cache; -1: no such tier

A slot is a running request. Its page list per layer and KV head is filled from both ends: page number i of tier 0
stands in column i, page number i of tier 1 in column max_pages - 1 - i. Each tier is dense: its token t lies in page
t // tokens at place t % tokens, `tokens` being that of the tier's layout. Order within a tier carries no meaning; a
token's position is stored beside it.

Inside a page, at the offsets of `PageLayout.segments`, for a token at place p of a page of T tokens:

    keys        p * key_bytes        packed codes (below), or float16 / e4m3 elements
    key_meta    p * 4 * k_groups     k_groups pairs of float16 (scale, zero): a 4-byte word, scale in its low half
    values      p * value_bytes
    value_meta  p * 4 * v_groups     v_groups pairs (scale, zero)
    scores      p * 4 float32 (p * 2 float16 with 5 bytes of bookkeeping)
    positions   p * 4 int32 (p * 3, little-endian, with 5 bytes)

Codes of b = 1, 2, 4 or 8 bits, n = 8 / b a byte: byte j holds channels j, j + D/n, j + 2D/n, ... from the low bits
up, so the bytes of a token unpack into contiguous runs of channels. Three-bit codes are two planes in the segment:
first the low two bits of all T places (D/4 bytes each), then from T * D/4 on the third bits (D/8 bytes each).
Group g of G covers channels [g * D/G, (g+1) * D/G).

Keys per channel (KIVI) pack alike, but `key_meta` holds, for each group of 32 places, D pairs: the pair of channel d of
group p // 32 is word (p // 32) * D + d. Such a group is written whole.

Stored keys may be centred (the head's mean key subtracted) and rotated (`kernels/transforms.py`); attention then takes
the rotated query. Where the mean is one from before RoPE, turned to the token's position, attention adds its product
with the query again. All of it is exact in the softmax.
"""

from __future__ import annotations

import torch

from leankv.serving.pages import PageLayout

NO_PAGE = -1
HIGH, LOW = 0, 1


def new_pool(num_pages: int, page_bytes: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A byte pool [num_pages, page_bytes], uninitialised: nothing may depend on what a page held before."""
    return torch.empty(num_pages, page_bytes, dtype=torch.uint8, device=device)


def column_of(tokens: torch.Tensor, tier: int, layout: PageLayout, max_pages: int) -> torch.Tensor:
    """Column of the page table that holds token number `tokens` (any shape, integer) of `tier`."""
    page = tokens // layout.tokens
    return page if tier == HIGH else max_pages - 1 - page


def locate(
    page_table: torch.Tensor, tokens: torch.Tensor, tier: int, layout: PageLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Page numbers and places of token numbers `tokens` [..., n] of `tier`, from page_table [..., max_pages].

    Both results are int64 [..., n]; the page is NO_PAGE where none is held.
    """
    columns = column_of(tokens, tier, layout, page_table.shape[-1])
    return torch.gather(page_table, -1, columns.long()).long(), (tokens % layout.tokens).long()


def key_high_plane(layout: PageLayout) -> int:
    """Byte offset in the page of the third bits of 3-bit keys."""
    return layout.offset("keys") + layout.tokens * layout.head_dim // 4


def value_high_plane(layout: PageLayout) -> int:
    """Byte offset in the page of the third bits of 3-bit values."""
    return layout.offset("values") + layout.tokens * layout.head_dim // 4
