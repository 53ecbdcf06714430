# mypy: disable-error-code="no-untyped-def,assignment"
# ruff: noqa: RUF005 (Triton adds tuples, but does not unpack them)
"""The Triton kernels of storing and gathering: 16 tokens a program, transform, quantization and packing in registers.

A row of packed codes is built from its slots: the codes at one shift of every byte are neighbouring channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from leankv.kernels.quantization_triton import (
    code_of,
    e4m3_of,
    e4m3_value,
    half_value,
    pair_of,
    scale_and_zero,
)
from leankv.kernels.rotation_triton import rotated, signs

LIMIT = tl.constexpr(65504.0)
"""float16's largest: neither scales and zeros nor the halves of a rotation hold more."""


@triton.jit
def storable(x):
    """x with zeros where it is not finite or beyond LIMIT, and whether a row [rows, channels] holds such an element."""
    good = tl.abs(x) <= LIMIT
    return tl.where(good, x, 0.0), tl.max((~good).to(tl.int32), 1)


@triton.jit
def channels(
    source, mean, live, channel, inside, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """float32 [rows, n]: the given channels of each row, centred and rotated (BLOCK > 0) if asked; and bad rows."""
    wanted = tl.arange(0, PADDED) if BLOCK > 0 else channel
    there = wanted < HEAD_DIM if BLOCK > 0 else inside
    mask = live[:, None] & there[None, :]
    x = tl.load(source[:, None] + wanted[None, :], mask=mask, other=0).to(tl.float32)
    x, bad = storable(x)
    if CENTRED:
        x, far = storable(x - tl.load(mean[:, None] + wanted[None, :], mask=mask, other=0))
        bad |= far
    if BLOCK > 0:
        x, far = storable(rotated(x, signs(wanted, channel, HEAD_DIM, BLOCK), BLOCK))
        bad |= far
    return x, bad


@triton.jit
def by_group(scales, channel, HEAD_DIM: tl.constexpr, GROUPS: tl.constexpr):
    """float32 [rows, n] out of one float16-bits [rows] a group: that of each channel's group."""
    value = half_value(scales[0])[:, None] + tl.zeros_like(channel)[None, :].to(tl.float32)
    for g in tl.static_range(1, GROUPS):
        value = tl.where((channel // (HEAD_DIM // GROUPS) == g)[None, :], half_value(scales[g])[:, None], value)
    return value


@triton.jit
def ranges(
    source, mean, live, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr,
    BITS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """float16 bits of scale and zero by group, [rows] each; and bad rows."""
    channel = tl.arange(0, PADDED)
    inside = channel < HEAD_DIM
    x, bad = channels(source, mean, live, channel, inside, HEAD_DIM, PADDED, CENTRED, BLOCK)
    scales = ()
    zeros = ()
    for g in tl.static_range(GROUPS):
        mine = (inside & (channel // (HEAD_DIM // GROUPS) == g))[None, :]
        low = tl.min(tl.where(mine, x, float("inf")), 1)
        high = tl.max(tl.where(mine, x, float("-inf")), 1)
        scale, zero = scale_and_zero(low, high, BITS)
        scales = scales + (scale,)
        zeros = zeros + (zero,)
    return scales, zeros, bad


@triton.jit
def write_plane(
    pool8, address, source, mean, live, scales, zeros, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    CENTRED: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr, FIRST_BIT: tl.constexpr,
    PLANE_BITS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Pack PLANE_BITS bits, from FIRST_BIT on, of the BITS-bit codes of each row into the bytes at `address`."""
    WIDTH: tl.constexpr = HEAD_DIM * PLANE_BITS // 8
    byte = tl.arange(0, PADDED * PLANE_BITS // 8)
    inside = byte < WIDTH
    packed = tl.zeros((source.shape[0], PADDED * PLANE_BITS // 8), tl.int32)
    for slot in tl.static_range(8 // PLANE_BITS):
        channel = byte + slot * WIDTH
        x, _bad = channels(source, mean, live, channel, inside, HEAD_DIM, PADDED, CENTRED, BLOCK)
        scale = by_group(scales, channel, HEAD_DIM, GROUPS)
        zero = by_group(zeros, channel, HEAD_DIM, GROUPS)
        code = (code_of(x, scale, zero, BITS) >> FIRST_BIT) & ((1 << PLANE_BITS) - 1)
        packed |= code << (slot * PLANE_BITS)
    tl.store(pool8 + address[:, None] + byte[None, :], packed.to(tl.uint8), mask=live[:, None] & inside[None, :])


@triton.jit
def write_side(
    pool8, pool16, pool32, page, place, source, mean, live, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    CENTRED: tl.constexpr, BLOCK: tl.constexpr, IS_FLOAT: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr,
    START: tl.constexpr, HIGH: tl.constexpr, META: tl.constexpr,
):  # fmt: skip
    """Write keys or values of the rows; `page`: byte address of each row's page. Returns bad rows."""
    if IS_FLOAT:
        channel = tl.arange(0, PADDED)
        inside = channel < HEAD_DIM
        x, bad = channels(source, mean, live, channel, inside, HEAD_DIM, PADDED, CENTRED, BLOCK)
        mask = live[:, None] & inside[None, :]
        if BITS == 16:
            half = tl.minimum(tl.maximum(x, -65504.0), 65504.0).to(tl.float16).to(tl.int16, bitcast=True)
            row = (page + START) // 2 + place * HEAD_DIM
            tl.store(pool16 + row[:, None] + channel[None, :], half, mask=mask)
        else:
            row = page + START + place * HEAD_DIM
            tl.store(pool8 + row[:, None] + channel[None, :], e4m3_of(x).to(tl.uint8), mask=mask)
    else:
        scales, zeros, bad = ranges(source, mean, live, HEAD_DIM, PADDED, CENTRED, BLOCK, BITS, GROUPS)
        for g in tl.static_range(GROUPS):
            tl.store(pool32 + (page + META) // 4 + place * GROUPS + g, pair_of(scales[g], zeros[g]), mask=live)
        if BITS == 3:
            write_plane(
                pool8, page + START + place * (HEAD_DIM // 4), source, mean, live, scales, zeros, HEAD_DIM, PADDED,
                CENTRED, BLOCK, 3, 0, 2, GROUPS,
            )  # fmt: skip
            write_plane(
                pool8, page + HIGH + place * (HEAD_DIM // 8), source, mean, live, scales, zeros, HEAD_DIM, PADDED,
                CENTRED, BLOCK, 3, 2, 1, GROUPS,
            )  # fmt: skip
        else:
            write_plane(
                pool8, page + START + place * (HEAD_DIM * BITS // 8), source, mean, live, scales, zeros, HEAD_DIM,
                PADDED, CENTRED, BLOCK, BITS, 0, BITS, GROUPS,
            )  # fmt: skip
    return bad


@triton.jit
def write_bookkeeping(
    pool8, pool16, pool32, page, place, score, position, live, BOOKKEEPING: tl.constexpr, SCORES: tl.constexpr,
    POSITIONS: tl.constexpr,
):  # fmt: skip
    if BOOKKEEPING == 8:
        tl.store(pool32 + (page + SCORES) // 4 + place, score.to(tl.int32, bitcast=True), mask=live)
        tl.store(pool32 + (page + POSITIONS) // 4 + place, position, mask=live)
    elif BOOKKEEPING == 5:
        half = score.to(tl.float16).to(tl.int16, bitcast=True)
        tl.store(pool16 + (page + SCORES) // 2 + place, half, mask=live)
        for byte in tl.static_range(3):
            part = (position >> (8 * byte)) & 255
            tl.store(pool8 + page + POSITIONS + 3 * place + byte, part.to(tl.uint8), mask=live)


@triton.jit
def read_bookkeeping(
    pool8, pool16, pool32, page, place, live, BOOKKEEPING: tl.constexpr, SCORES: tl.constexpr, POSITIONS: tl.constexpr
):
    """Score float32 and position int32 of the rows; 0 and -1 where a row is not live or nothing is kept."""
    score = tl.zeros_like(place).to(tl.float32)
    position = tl.zeros_like(place).to(tl.int32) - 1
    if BOOKKEEPING == 8:
        word = tl.load(pool32 + (page + SCORES) // 4 + place, mask=live, other=0)
        score = word.to(tl.float32, bitcast=True)
        position = tl.load(pool32 + (page + POSITIONS) // 4 + place, mask=live, other=-1)
    elif BOOKKEEPING == 5:
        score = half_value(tl.load(pool16 + (page + SCORES) // 2 + place, mask=live, other=0))
        found = tl.zeros_like(place).to(tl.int32)
        for byte in tl.static_range(3):
            part = tl.load(pool8 + page + POSITIONS + 3 * place + byte, mask=live, other=0).to(tl.int32)
            found |= part << (8 * byte)
        position = tl.where(live, found, -1)
    return score, position


@triton.jit(do_not_specialize=["rows"])
def store_kernel(
    pool8, pool16, pool32, pages, places, keys, values, scores, positions, mean, mean_token, errors, rows, heads,
    key_token, key_head, value_token, value_head, PAGE_BYTES: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr, IS_FLOAT: tl.constexpr, PER_CHANNEL: tl.constexpr,
    K_BITS: tl.constexpr, K_GROUPS: tl.constexpr, K_START: tl.constexpr, K_HIGH: tl.constexpr, K_META: tl.constexpr,
    V_BITS: tl.constexpr, V_GROUPS: tl.constexpr, V_START: tl.constexpr, V_HIGH: tl.constexpr, V_META: tl.constexpr,
    BOOKKEEPING: tl.constexpr, SCORES: tl.constexpr, POSITIONS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of ROWS rows): row r is head r % heads of token r // heads.

    mean_token: elements from one token's mean to the next one's; 0 where all tokens are centred on one.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.load(pages + row, mask=row < rows, other=-1).to(tl.int64)
    live = number >= 0
    page = tl.maximum(number, 0) * PAGE_BYTES
    place = tl.load(places + row, mask=live, other=0).to(tl.int64)
    token = (row // heads).to(tl.int64)
    head = row % heads
    value = values + token * value_token + head * value_head
    bad = write_side(
        pool8, pool16, pool32, page, place, value, value, live, HEAD_DIM, PADDED, False, 0, IS_FLOAT, V_BITS, V_GROUPS,
        V_START, V_HIGH, V_META,
    )  # fmt: skip
    if not PER_CHANNEL:
        key = keys + token * key_token + head * key_head
        bad |= write_side(
            pool8, pool16, pool32, page, place, key, mean + token * mean_token + head * HEAD_DIM, live, HEAD_DIM,
            PADDED, CENTRED, BLOCK, IS_FLOAT, K_BITS, K_GROUPS, K_START, K_HIGH, K_META,
        )  # fmt: skip
    if BOOKKEEPING > 0:
        score = tl.load(scores + row, mask=live, other=0).to(tl.float32)
        position = tl.load(positions + row, mask=live, other=0).to(tl.int32)
        write_bookkeeping(pool8, pool16, pool32, page, place, score, position, live, BOOKKEEPING, SCORES, POSITIONS)
    count = tl.sum(bad)
    if count > 0:
        tl.atomic_add(errors, count)


@triton.jit
def store_key_groups_kernel(
    pool8, pool32, pages, places, keys, mean, mean_token, errors, heads, key_token, key_head, PAGE_BYTES: tl.constexpr,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    START: tl.constexpr, META: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (groups, heads): keys per channel over GROUP neighbouring tokens."""
    head = tl.program_id(1)
    token = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    row = token * heads + head
    number = tl.load(pages + tl.program_id(0) * GROUP * heads + head).to(tl.int64)
    if number >= 0:
        page = number * PAGE_BYTES
        place = tl.load(places + row).to(tl.int64)
        first = tl.load(places + tl.program_id(0) * GROUP * heads + head).to(tl.int64)
        source = keys + token.to(tl.int64) * key_token + head * key_head
        means = mean + token.to(tl.int64) * mean_token + head * HEAD_DIM
        live = token >= 0
        WIDTH: tl.constexpr = HEAD_DIM * BITS // 8
        byte = tl.arange(0, PADDED * BITS // 8)
        inside = byte < WIDTH
        packed = tl.zeros((GROUP, PADDED * BITS // 8), tl.int32)
        bad = tl.zeros((GROUP,), tl.int32)
        for slot in tl.static_range(8 // BITS):
            channel = byte + slot * WIDTH
            x, bad_here = channels(source, means, live, channel, inside, HEAD_DIM, PADDED, CENTRED, BLOCK)
            bad |= bad_here
            scale, zero = scale_and_zero(tl.min(x, 0), tl.max(x, 0), BITS)
            meta = pool32 + (page + META) // 4 + first // GROUP * HEAD_DIM + channel
            tl.store(meta, pair_of(scale, zero), mask=inside)
            packed |= code_of(x, half_value(scale)[None, :], half_value(zero)[None, :], BITS) << (slot * BITS)
        address = page + START + place * WIDTH
        tl.store(pool8 + address[:, None] + byte[None, :], packed.to(tl.uint8), mask=inside[None, :])
        count = tl.sum(bad)
        if count > 0:
            tl.atomic_add(errors, count)


@triton.jit
def read_side(
    pool8, pool16, pool32, page, place, live, out, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
    IS_FLOAT: tl.constexpr, PER_CHANNEL: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr, START: tl.constexpr,
    HIGH: tl.constexpr, META: tl.constexpr, GROUP_TOKENS: tl.constexpr,
):  # fmt: skip
    """Dequantize keys or values of the rows into float32 at `out` [rows]; zeros where a row is not live."""
    channel = tl.arange(0, PADDED)
    inside = channel < HEAD_DIM
    mask = live[:, None] & inside[None, :]
    if IS_FLOAT:
        if BITS == 16:
            row = (page + START) // 2 + place * HEAD_DIM
            words = tl.load(pool16 + row[:, None] + channel[None, :], mask=mask, other=0)
            x = words.to(tl.float16, bitcast=True).to(tl.float32)
        else:
            row = page + START + place * HEAD_DIM
            x = e4m3_value(tl.load(pool8 + row[:, None] + channel[None, :], mask=mask, other=0).to(tl.int32))
    else:
        FIRST: tl.constexpr = 2 if BITS == 3 else BITS
        WIDTH: tl.constexpr = HEAD_DIM * FIRST // 8
        row = page + START + place * WIDTH
        packed = tl.load(pool8 + row[:, None] + (channel % WIDTH)[None, :], mask=mask, other=0).to(tl.int32)
        code = (packed >> (channel // WIDTH * FIRST)[None, :]) & ((1 << FIRST) - 1)
        if BITS == 3:
            THIRD: tl.constexpr = HEAD_DIM // 8
            row = page + HIGH + place * THIRD
            packed = tl.load(pool8 + row[:, None] + (channel % THIRD)[None, :], mask=mask, other=0).to(tl.int32)
            code |= ((packed >> (channel // THIRD)[None, :]) & 1) << 2
        if PER_CHANNEL:
            index = (place // GROUP_TOKENS * HEAD_DIM)[:, None] + channel[None, :]
        else:
            index = (place * GROUPS)[:, None] + (channel // (HEAD_DIM // GROUPS))[None, :]
        pair = tl.load(pool32 + ((page + META) // 4)[:, None] + index, mask=mask, other=0)
        x = code.to(tl.float32) * half_value(pair.to(tl.int16)) + half_value((pair >> 16).to(tl.int16))
        # The top of a range may come back beyond what can be stored again. NaN stays what it is.
        x = tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))
    tl.store(out[:, None] + channel[None, :], tl.where(live[:, None], x, 0.0), mask=inside[None, :])


@triton.jit
def gather_kernel(
    pool8, pool16, pool32, pages, places, keys, values, scores, positions, PAGE_BYTES: tl.constexpr,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, IS_FLOAT: tl.constexpr, PER_CHANNEL: tl.constexpr,
    K_BITS: tl.constexpr, K_GROUPS: tl.constexpr, K_START: tl.constexpr, K_HIGH: tl.constexpr, K_META: tl.constexpr,
    V_BITS: tl.constexpr, V_GROUPS: tl.constexpr, V_START: tl.constexpr, V_HIGH: tl.constexpr, V_META: tl.constexpr,
    BOOKKEEPING: tl.constexpr, SCORES: tl.constexpr, POSITIONS: tl.constexpr, GROUP_TOKENS: tl.constexpr,
):  # fmt: skip
    """Grid (rows): one token of one head into float32 keys and values [rows, head_dim]."""
    row = tl.program_id(0) + tl.zeros((1,), tl.int32)
    number = tl.load(pages + row).to(tl.int64)
    live = number >= 0
    page = tl.maximum(number, 0) * PAGE_BYTES
    place = tl.load(places + row, mask=live, other=0).to(tl.int64)
    out = row.to(tl.int64) * HEAD_DIM
    read_side(
        pool8, pool16, pool32, page, place, live, keys + out, HEAD_DIM, PADDED, IS_FLOAT, PER_CHANNEL, K_BITS,
        K_GROUPS, K_START, K_HIGH, K_META, GROUP_TOKENS,
    )  # fmt: skip
    read_side(
        pool8, pool16, pool32, page, place, live, values + out, HEAD_DIM, PADDED, IS_FLOAT, False, V_BITS, V_GROUPS,
        V_START, V_HIGH, V_META, GROUP_TOKENS,
    )  # fmt: skip
    score, position = read_bookkeeping(
        pool8, pool16, pool32, page, place, live, BOOKKEEPING, SCORES, POSITIONS
    )  # fmt: skip
    tl.store(scores + row, score)
    tl.store(positions + row, position)
