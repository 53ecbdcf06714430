"""Pages: equal blocks of bytes that can hold tokens of one KV head in any format.

A page holds one segment a field, in the order keys, key scales and zeros, values, value scales and zeros, scores,
positions; each starts on a multiple of 32 bytes, the values on one of 128 (LeanKV, arXiv 2412.03131, section 5, and its
released code). All pages of a pool have one size, so a freed page serves any request, layer, head or tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from leankv.serving.formats import FP16, K4V1, K4V2, K4V4, K8V2, K8V4, K8V8, SCALE_AND_ZERO_BYTES, KVFormat

ALIGNMENT = 32
VALUES_ALIGNMENT = 128
PAGE_ALIGNMENT = 128
PAGE_BYTES_128 = 6784
UNIFORM_PAGE_TOKENS = 16
PUBLISHED_TOKENS_128: Mapping[KVFormat, int] = MappingProxyType(
    {K8V8: 24, K8V4: 32, K8V2: 37, K4V4: 46, K4V2: 60, K4V1: 69, FP16: 13}
)
"""Tokens a page at head_dim 128 in pages of 6,784 bytes with 8 bytes of bookkeeping, as published."""

BOOKKEEPING_FIELDS: Mapping[int, tuple[int, int]] = MappingProxyType({0: (0, 0), 5: (2, 3), 8: (4, 4)})
"""Bytes of (score, position) a token: none; float16 and 24 bits; float32 and int32 as published."""


@dataclass(frozen=True)
class PageLayout:
    """Where the fields of up to `tokens` tokens lie in a page. `segments`: name -> (offset, bytes)."""

    format: KVFormat
    head_dim: int
    page_bytes: int
    tokens: int
    bookkeeping: int
    segments: Mapping[str, tuple[int, int]] = field(hash=False)

    def offset(self, name: str) -> int:
        """First byte of the segment `name`."""
        return self.segments[name][0]

    @property
    def used_bytes(self) -> int:
        """Bytes up to the end of the last segment."""
        return max(offset + size for offset, size in self.segments.values())

    @property
    def physical_ratio(self) -> float:
        """Uncompressed float16 bytes of a full page's tokens over the page's bytes."""
        return self.tokens * FP16.bytes_per_token(self.head_dim) / self.page_bytes


def layout_of(format: KVFormat, head_dim: int, page_bytes: int | None = None, bookkeeping: int = 8) -> PageLayout:
    """The layout of `format` in pages of `page_bytes` (default: the pool of LeanKV's published formats).

    `bookkeeping`: bytes of score and position a token (0, 5 or 8). At head_dim 128 in pages of 6,784 bytes the
    published counts hold; anywhere else a page holds as many tokens as fit.
    Raises ValueError where not one token (one group, for keys per channel) fits.
    """
    _check(format, head_dim, bookkeeping)
    size = page_bytes or page_bytes_for(head_dim, bookkeeping=bookkeeping)
    tokens = _published_tokens(format, head_dim, size, bookkeeping) or _tokens_that_fit(
        format, head_dim, size, bookkeeping
    )
    if tokens == 0:
        raise ValueError(f"a page of {size} bytes holds no token of {format.name} at head_dim {head_dim}")
    layout = PageLayout(format, head_dim, size, tokens, bookkeeping, _segments(format, head_dim, tokens, bookkeeping))
    assert layout.used_bytes <= size, f"{format.name} overruns a page of {size} bytes"
    return layout


def uniform_page_bytes(format: KVFormat, head_dim: int, bookkeeping: int = 0) -> int:
    """Page size of a pool that holds one format only: 16 tokens (one group of 32 for KIVI), rounded up to 128 bytes."""
    _check(format, head_dim, bookkeeping)
    tokens = format.group_tokens if format.key_axis == "channel" else UNIFORM_PAGE_TOKENS
    return _round_up(_used_bytes(format, head_dim, tokens, bookkeeping), PAGE_ALIGNMENT)


def page_bytes_for(
    head_dim: int, formats: Iterable[KVFormat] = tuple(PUBLISHED_TOKENS_128), bookkeeping: int = 8
) -> int:
    """The page size for a pool that holds `formats`.

    LeanKV's published formats at head_dim 128 get the published 6,784 bytes. Otherwise: the multiple of 128 bytes from
    32 to 64 bytes a channel (4 to 8 KiB at head_dim 128: large enough for a token's fields to be a small part, small
    enough that a head's half-empty last page is cheap) which minimises the largest share of a page, over the formats,
    that holds neither payload nor metadata nor bookkeeping when full; the smaller size on a tie. Sizes in which a
    format does not fit at all are out; the window doubles until one fits.
    """
    wanted = tuple(formats)
    if head_dim == 128 and bookkeeping == 8 and set(wanted) <= set(PUBLISHED_TOKENS_128) and len(wanted) > 1:
        return PAGE_BYTES_128
    return _search(head_dim, wanted, bookkeeping)


@lru_cache(maxsize=256)
def _search(head_dim: int, formats: tuple[KVFormat, ...], bookkeeping: int) -> int:
    for format in formats:
        _check(format, head_dim, bookkeeping)
    low, high = 32 * head_dim, 64 * head_dim
    while True:
        sizes = range(_round_up(low, PAGE_ALIGNMENT), high + 1, PAGE_ALIGNMENT)
        worst = {s: max(_leftover_share(f, head_dim, s, bookkeeping) for f in formats) for s in sizes}
        best = min(worst, key=lambda s: (worst[s], s))
        if worst[best] < 1:
            return best
        low, high = high, 2 * high


def _leftover_share(format: KVFormat, head_dim: int, page_bytes: int, bookkeeping: int) -> float:
    tokens = _tokens_that_fit(format, head_dim, page_bytes, bookkeeping)
    return 1 - tokens * (format.bytes_per_token(head_dim) + bookkeeping) / page_bytes


def _published_tokens(format: KVFormat, head_dim: int, page_bytes: int, bookkeeping: int) -> int | None:
    if (head_dim, page_bytes, bookkeeping) != (128, PAGE_BYTES_128, 8):
        return None
    return PUBLISHED_TOKENS_128.get(format)


def _tokens_that_fit(format: KVFormat, head_dim: int, page_bytes: int, bookkeeping: int) -> int:
    step = format.group_tokens if format.key_axis == "channel" else 1
    tokens = int(page_bytes // (format.bytes_per_token(head_dim) + bookkeeping)) // step * step
    while tokens > 0 and _used_bytes(format, head_dim, tokens, bookkeeping) > page_bytes:
        tokens -= step
    return tokens


def _used_bytes(format: KVFormat, head_dim: int, tokens: int, bookkeeping: int) -> int:
    return max(offset + size for offset, size in _segments(format, head_dim, tokens, bookkeeping).values())


def _segments(format: KVFormat, head_dim: int, tokens: int, bookkeeping: int) -> Mapping[str, tuple[int, int]]:
    score, position = BOOKKEEPING_FIELDS[bookkeeping]
    key_meta = tokens * SCALE_AND_ZERO_BYTES * format.key_groups(head_dim)
    if format.key_axis == "channel":
        key_meta = tokens // format.group_tokens * head_dim * SCALE_AND_ZERO_BYTES
    sizes = {
        "keys": tokens * format.key_bytes(head_dim),
        "key_meta": key_meta,
        "values": tokens * format.value_bytes(head_dim),
        "value_meta": tokens * SCALE_AND_ZERO_BYTES * format.value_groups(head_dim),
        "scores": tokens * score,
        "positions": tokens * position,
    }
    segments, end = {}, 0
    for name, size in sizes.items():
        start = _round_up(end, VALUES_ALIGNMENT if name == "values" else ALIGNMENT) if size else end
        segments[name] = (start, size)
        end = start + size
    return segments


def _check(format: KVFormat, head_dim: int, bookkeeping: int) -> None:
    if head_dim <= 0 or head_dim % 32:
        raise ValueError(f"head_dim must be a multiple of 32, not {head_dim}")
    if bookkeeping not in BOOKKEEPING_FIELDS:
        raise ValueError(
            f"bookkeeping takes {', '.join(map(str, BOOKKEEPING_FIELDS))} bytes a token, not {bookkeeping}"
        )
    if format.kind == "int" and (head_dim % format.k_groups or head_dim % format.v_groups):
        raise ValueError(f"{format.name}: head_dim {head_dim} does not split into its groups")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
