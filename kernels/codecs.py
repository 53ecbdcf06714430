"""How the Triton kernels take a page apart: each format as integers known when a kernel is compiled.

A row of packed codes is read as 16-bit words. A *part* is a run of words read at once, a *plane* the codes that stand
at one shift of all words of a part. The products of attention run over planes, so no byte is ever gathered; queries and
outputs, which are small, are permuted instead.
A part of fewer than 16 words is read twice side by side, the second copy for the words' high bytes, to fill the 16
columns that the tensor cores want.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from leankv.kernels.layout import key_high_plane, value_high_plane
from leankv.serving.pages import PageLayout

LEAST_COLUMNS = 16
E4M3_AS_HALF = 256.0
"""An e4m3 number over its bits read as float16 (sign, then four exponent and three fraction bits in their places)."""


@dataclass(frozen=True)
class Plane:
    """Codes at `shift` bits of a part's words.

    Column j stands for channel `channel` + 2 * (j % padded) (+ 1 in the second copy; j alone for 16 bits), in group
    `group`. `weight` is what the plane's products are multiplied by: codes are masked but not shifted within their
    byte, so they come 2^(shift % 8) times too large; third bits count four; e4m3 read as float16 is 256 times small.
    """

    shift: int
    channel: int
    group: int
    weight: float


@dataclass(frozen=True)
class Part:
    """`words` 16-bit words of a row of `row_words`, from word `first` of the page on.

    Read as `copies` runs of `padded` columns, `columns` in all.
    """

    bits: int
    first: int
    row_words: int
    words: int
    padded: int
    copies: int
    columns: int
    planes: tuple[Plane, ...]


@dataclass(frozen=True)
class Codec:
    """One format in one page layout. Offsets of parts are in 16-bit words, of scales and zeros in 32-bit words.

    bookkeeping: bytes a token for score and position; positions: their offset in bytes.
    """

    tokens: int
    is_float: bool
    per_channel: bool
    key_parts: tuple[Part, ...]
    key_groups: int
    key_meta: int
    value_parts: tuple[Part, ...]
    value_groups: int
    value_meta: int
    token_bytes: int
    bookkeeping: int
    positions: int


@lru_cache(maxsize=256)
def codec_of(layout: PageLayout) -> Codec:
    """The codec of `layout`. Raises ValueError for 3-bit values and float32, which the kernels do not read."""
    format, head_dim = layout.format, layout.head_dim
    if format.k_bits == 32:
        raise ValueError(f"{format.name}: float32 caches are for CPUs")
    if format.v_bits == 3:
        raise ValueError(f"{format.name}: the Triton kernels store 3-bit keys, not 3-bit values")
    key_groups, value_groups = format.key_groups(head_dim), format.value_groups(head_dim)
    is_float = format.kind == "float"
    unit = E4M3_AS_HALF if is_float and format.k_bits == 8 else 1.0
    return Codec(
        tokens=layout.tokens,
        is_float=is_float,
        per_channel=format.key_axis == "channel",
        key_parts=_parts(head_dim, format.k_bits, key_groups, layout.offset("keys"), key_high_plane(layout), unit),
        key_groups=key_groups,
        key_meta=layout.offset("key_meta") // 4,
        value_parts=_parts(
            head_dim, format.v_bits, value_groups, layout.offset("values"), value_high_plane(layout), unit
        ),
        value_groups=value_groups,
        value_meta=layout.offset("value_meta") // 4,
        token_bytes=round(format.bytes_per_token(head_dim)),
        bookkeeping=layout.bookkeeping,
        positions=layout.offset("positions"),
    )


def _parts(head_dim: int, bits: int, groups: int, offset: int, high: int, unit: float) -> tuple[Part, ...]:
    if bits == 3:
        return _runs(head_dim, 2, groups, offset, unit) + _runs(head_dim, 1, groups, high, 4 * unit)
    return _runs(head_dim, bits, groups, offset, unit)


def _runs(head_dim: int, bits: int, groups: int, offset: int, unit: float) -> tuple[Part, ...]:
    """One part, or several where a run of channels would straddle two groups."""
    row_bytes = head_dim * bits // 8
    run = row_bytes if groups <= 1 or bits == 16 else gcd(row_bytes, head_dim // groups)
    parts = []
    for start in range(0, row_bytes, run):
        words = run // 2
        padded = 1 << (words - 1).bit_length()
        copies = 2 if padded < LEAST_COLUMNS and bits <= 8 else 1
        shifts = range(0, 16 // copies, bits)
        planes = tuple(_plane(head_dim, bits, groups, start, shift, unit) for shift in shifts)
        columns = max(LEAST_COLUMNS, padded * copies)
        parts.append(Part(bits, (offset + start) // 2, row_bytes // 2, words, padded, copies, columns, planes))
    return tuple(parts)


def _plane(head_dim: int, bits: int, groups: int, start: int, shift: int, unit: float) -> Plane:
    if bits == 16:
        return Plane(0, 0, 0, unit)
    first = start + shift % 8 // bits * (head_dim * bits // 8)
    group = first // (head_dim // groups) if groups else 0
    return Plane(shift, first + shift // 8, group, unit / (1 << (shift % 8)))
