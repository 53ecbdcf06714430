# mypy: disable-error-code="no-untyped-def,assignment"
# ruff: noqa: RUF005 (Triton adds tuples, but does not unpack them)
"""The Triton kernels of decode attention.

`split_kernel`: a program takes a run of tiles of one tier for up to eight query heads of a KV head. Rows 0 to 7 of its
16-row operands are the heads' float16 queries, rows 8 to 15 what float16 lost of them, so the padding that the tensor
cores want buys nearly float32 queries; the same for probabilities. Scales and zeros are applied to the products:
(q . code) * s + z * sum(q), and probability times s before the values' codes. All logits are in base 2. Where keys were
centred by position, the query's product with the centre is read from a table made before (`rope_triton.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from leankv.kernels.triton_codecs import (
    channels_of,
    codec_number,
    codecs_in,
    codes_of,
    columns_of,
    key_part,
    key_parts,
    of,
    plane,
    planes,
    planes_before,
    scale_of,
    value_part,
    value_parts,
    words_of,
    zero_of,
)


@triton.jit
def folded(x, COLUMNS: tl.constexpr):
    """[8, n] out of [16, n]: row r plus row r + 8."""
    return tl.sum(tl.reshape(x, (2, 8, COLUMNS)), 0)


@triton.jit
def unfolded(x, COLUMNS: tl.constexpr):
    """float16 [16, n] out of float32 [8, n]: rows 0 to 7 are x, rows 8 to 15 what float16 loses of it."""
    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    # Not tl.join: it makes Triton choose an operand layout of four neighbours, which costs shuffles.
    is_high = (tl.arange(0, 2) == 0)[:, None, None]
    return tl.reshape(tl.where(is_high, high[None, :, :], low[None, :, :]), (16, COLUMNS))


@triton.jit
def twice(x):
    """[16] out of [8]: x and x again."""
    return tl.reshape(tl.broadcast_to(x[None, :], (2, 8)), (16,))


@triton.jit
def query_plane(query, row_mask, PART: tl.constexpr, PLANE: tl.constexpr):
    """float32 [8, columns]: the channels of the query that a plane's codes meet."""
    _word, _copy, there = columns_of(PART)
    channel = channels_of(PART, PLANE)
    mask = row_mask[:, None] & there[None, :]
    return tl.load(query[:, None] + channel[None, :], mask=mask, other=0).to(tl.float32)


@triton.jit
def query_planes(query, row_mask, CODEC: tl.constexpr):
    """All planes of the query as float16 halves, and the sums of the query by key group.

    Integer planes are weighted here. That of a float format is not: 256 times a query may be no float16.
    """
    planes_of_query = ()
    sums = ()
    for _g in tl.static_range(of(CODEC, "key_groups")):
        sums = sums + (tl.zeros((8,), tl.float32),)
    for p in tl.static_range(key_parts(CODEC)):
        for i in tl.static_range(planes(key_part(CODEC, p))):
            x = query_plane(query, row_mask, key_part(CODEC, p), plane(key_part(CODEC, p), i))
            if of(CODEC, "key_groups") > 0:
                sums = _added(sums, tl.sum(x, 1), p, CODEC, i)
            if not of(CODEC, "is_float"):
                x *= of(plane(key_part(CODEC, p), i), "weight")
            planes_of_query = planes_of_query + (unfolded(x, of(key_part(CODEC, p), "columns")),)
    return planes_of_query, sums


@triton.jit
def _added(sums, x, PART: tl.constexpr, CODEC: tl.constexpr, PLANE: tl.constexpr):
    """`sums` with x added to the group of a plane; third bits count no channel twice."""
    result = ()
    for g in tl.static_range(of(CODEC, "key_groups")):
        if of(plane(key_part(CODEC, PART), PLANE), "group") == g and not is_third_bits(CODEC, PART):
            result = result + (sums[g] + x,)
        else:
            result = result + (sums[g],)
    return result


@triton.constexpr_function
def is_third_bits(codec, index):
    """Whether key part `index` holds third bits, whose channels another part has counted."""
    return codec.key_parts[index].planes[0].weight == 4


@triton.jit
def logits_of(
    pool16, pool32, page, place, valid, query_16, sums, CODEC: tl.constexpr, TILE: tl.constexpr, ASM: tl.constexpr
):
    """float32 [8, TILE]: query times key, scales and zeros applied, not yet scaled by the softmax's factor."""
    total = tl.zeros((8, TILE), tl.float32)
    for g in tl.static_range(groups_or_one(CODEC)):
        product = tl.zeros((16, TILE), tl.float32)
        for p in tl.static_range(key_parts(CODEC)):
            words = words_of(pool16, page + place * of(key_part(CODEC, p), "row_words"), valid, key_part(CODEC, p))
            for i in tl.static_range(planes(key_part(CODEC, p))):
                if of(plane(key_part(CODEC, p), i), "group") == g:
                    codes = codes_of(
                        words,
                        of(key_part(CODEC, p), "bits"),
                        of(plane(key_part(CODEC, p), i), "shift"),
                        of(CODEC, "is_float"),
                        ASM,
                    )
                    mine = query_16[planes_before(of(CODEC, "key_parts"), p) + i]
                    product = tl.dot(mine, tl.trans(codes), product)
        folded_product = folded(product, TILE)
        if of(CODEC, "is_float"):
            total = folded_product * of(plane(key_part(CODEC, 0), 0), "weight")
        else:
            pair = tl.load(
                pool32 + page // 2 + of(CODEC, "key_meta") + place * of(CODEC, "key_groups") + g, mask=valid, other=0
            )
            total += folded_product * scale_of(pair)[None, :] + sums[g][:, None] * zero_of(pair)[None, :]
    return total


@triton.constexpr_function
def groups_or_one(codec):
    return max(codec.key_groups, 1)


@triton.jit
def channel_logits_of(
    pool16, pool32, page, place, valid, query, row_mask, CODEC: tl.constexpr, HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """As `logits_of` for keys scaled per channel over this tile's 32 tokens: the scales go into the query."""
    product = tl.zeros((16, TILE), tl.float32)
    constant = tl.zeros((8,), tl.float32)
    meta = pool32 + page // 2 + of(CODEC, "key_meta") + tl.min(place) // TILE * HEAD_DIM
    for p in tl.static_range(key_parts(CODEC)):
        words = words_of(pool16, page + place * of(key_part(CODEC, p), "row_words"), valid, key_part(CODEC, p))
        _word, _copy, there = columns_of(key_part(CODEC, p))
        for i in tl.static_range(planes(key_part(CODEC, p))):
            channel = channels_of(key_part(CODEC, p), plane(key_part(CODEC, p), i))
            pair = tl.load(meta + channel, mask=there, other=0)
            x = query_plane(query, row_mask, key_part(CODEC, p), plane(key_part(CODEC, p), i))
            if not is_third_bits(CODEC, p):
                constant += tl.sum(x * zero_of(pair)[None, :], 1)
            scaled = x * (scale_of(pair)[None, :] * of(plane(key_part(CODEC, p), i), "weight"))
            codes = codes_of(
                words, of(key_part(CODEC, p), "bits"), of(plane(key_part(CODEC, p), i), "shift"), False, ASM
            )
            product = tl.dot(unfolded(scaled, of(key_part(CODEC, p), "columns")), tl.trans(codes), product)
    return folded(product, TILE) + constant[:, None]


@triton.jit
def no_values(CODEC: tl.constexpr):
    """Zeroed sums of weighted codes by plane, and of weighted zeros by group."""
    sums = ()
    for p in tl.static_range(value_parts(CODEC)):
        for _i in tl.static_range(planes(value_part(CODEC, p))):
            sums = sums + (tl.zeros((16, of(value_part(CODEC, p), "columns")), tl.float32),)
    zeros = ()
    for _g in tl.static_range(of(CODEC, "value_groups")):
        zeros = zeros + (tl.zeros((8,), tl.float32),)
    return sums, zeros


@triton.jit
def with_values(
    pool16,
    pool32,
    page,
    place,
    valid,
    weights,
    decay,
    sums,
    zeros,
    CODEC: tl.constexpr,
    TILE: tl.constexpr,
    ASM: tl.constexpr,
):
    """The sums of `no_values`, decayed, plus those of this tile under `weights` float32 [8, TILE]."""
    scaled = ()
    new_zeros = ()
    for g in tl.static_range(of(CODEC, "value_groups")):
        pair = tl.load(
            pool32 + page // 2 + of(CODEC, "value_meta") + place * of(CODEC, "value_groups") + g, mask=valid, other=0
        )
        scaled = scaled + (unfolded(weights * scale_of(pair)[None, :], TILE),)
        new_zeros = new_zeros + (zeros[g] * decay + tl.sum(weights * zero_of(pair)[None, :], 1),)
    if of(CODEC, "is_float"):
        scaled = (unfolded(weights, TILE),)
    decay_16 = twice(decay)
    new_sums = ()
    for p in tl.static_range(value_parts(CODEC)):
        words = words_of(pool16, page + place * of(value_part(CODEC, p), "row_words"), valid, value_part(CODEC, p))
        for i in tl.static_range(planes(value_part(CODEC, p))):
            codes = codes_of(
                words,
                of(value_part(CODEC, p), "bits"),
                of(plane(value_part(CODEC, p), i), "shift"),
                of(CODEC, "is_float"),
                ASM,
            )
            before = sums[planes_before(of(CODEC, "value_parts"), p) + i] * decay_16[:, None]
            new_sums = new_sums + (tl.dot(scaled[of(plane(value_part(CODEC, p), i), "group")], codes, before),)
    return new_sums, new_zeros


@triton.jit
def store_partial(partial, row_mask, total, sums, zeros, CODEC: tl.constexpr):
    """Write the normalised output of a split; `partial`: address of each of 8 rows."""
    inverse = tl.where(total > 0, 1.0 / total, 0.0)
    for p in tl.static_range(value_parts(CODEC)):
        _word, _copy, there = columns_of(value_part(CODEC, p))
        for i in tl.static_range(planes(value_part(CODEC, p))):
            codes = folded(sums[planes_before(of(CODEC, "value_parts"), p) + i], of(value_part(CODEC, p), "columns"))
            x = codes * of(plane(value_part(CODEC, p), i), "weight")
            if of(CODEC, "value_groups") > 0:
                x += zeros[of(plane(value_part(CODEC, p), i), "group")][:, None]
            channel = channels_of(value_part(CODEC, p), plane(value_part(CODEC, p), i))
            mask = row_mask[:, None] & there[None, :]
            tl.store(partial[:, None] + channel[None, :], x * inverse[:, None], mask=mask)


@triton.jit
def positions_of(pool8, pool32, page, place, valid, CODEC: tl.constexpr):
    """int32 [TILE]: the tokens' positions; `page`: index in 16-bit words of each token's page."""
    if of(CODEC, "bookkeeping") == 8:
        return tl.load(pool32 + page // 2 + of(CODEC, "positions") // 4 + place, mask=valid, other=0)
    start = pool8 + page * 2 + of(CODEC, "positions") + 3 * place
    low = tl.load(start, mask=valid, other=0).to(tl.int32)
    middle = tl.load(start + 1, mask=valid, other=0).to(tl.int32)
    return low | (middle << 8) | (tl.load(start + 2, mask=valid, other=0).to(tl.int32) << 16)


@triton.jit
def attend(
    pool8, pool16, pool32, query, row_mask, table, column_step, count, first, last, scale, partial, weights, maxima,
    products, positions, CODEC: tl.constexpr, PAGE_WORDS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
    KEEP_WEIGHTS: tl.constexpr, BY_POSITION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Attention over tiles `first` to `last` of a tier of `count` tokens; returns its logsumexp [8], base 2.

    products: address of each of 8 rows of `positions` products to add to the logits by position (BY_POSITION).
    """
    if not of(CODEC, "per_channel"):
        query_16, query_sums = query_planes(query, row_mask, CODEC)
    highest = tl.full((8,), float("-inf"), tl.float32)
    total = tl.zeros((8,), tl.float32)
    sums, zeros = no_values(CODEC)
    offset = tl.arange(0, TILE)
    for tile in range(first, last):
        token = tile * TILE + offset
        valid = token < count
        if of(CODEC, "tokens") % TILE == 0:
            number = tile * TILE // of(CODEC, "tokens")
            place = tile * TILE % of(CODEC, "tokens") + offset
            page = tl.load(table + number * column_step).to(tl.int64) * PAGE_WORDS
        else:
            number = token // of(CODEC, "tokens")
            place = token - number * of(CODEC, "tokens")
            page = tl.load(table + number * column_step, mask=valid, other=0).to(tl.int64) * PAGE_WORDS
        if of(CODEC, "per_channel"):
            logits = channel_logits_of(pool16, pool32, page, place, valid, query, row_mask, CODEC, HEAD_DIM, TILE, ASM)
        else:
            logits = logits_of(pool16, pool32, page, place, valid, query_16, query_sums, CODEC, TILE, ASM)
        if BY_POSITION and of(CODEC, "bookkeeping") > 0:
            position = positions_of(pool8, pool32, page, place, valid, CODEC)
            at = row_mask[:, None] & (valid & (position < positions))[None, :]
            logits += tl.load(products[:, None] + position[None, :], mask=at, other=0)
        logits = tl.where(valid[None, :], logits * scale, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(logits, 1))
        decay = tl.exp2(highest - new_highest)
        probabilities = tl.exp2(logits - new_highest[:, None])
        highest = new_highest
        total = total * decay + tl.sum(probabilities, 1)
        sums, zeros = with_values(
            pool16, pool32, page, place, valid, probabilities, decay, sums, zeros, CODEC, TILE, ASM
        )
        if KEEP_WEIGHTS:
            here = row_mask[:, None] & valid[None, :]
            tl.store(weights[:, None] + token[None, :], probabilities.to(tl.float16), mask=here)
            tl.store(maxima + tile, highest, mask=row_mask)
    store_partial(partial, row_mask, total, sums, zeros, CODEC)
    return tl.where(total > 0, highest + tl.log2(total), float("-inf"))


@triton.jit
def share_of_splits(high, low, high_bytes, low_bytes, splits, LEAST_TILES: tl.constexpr, TILE: tl.constexpr):
    """Splits that the tiers use: (high, low) in proportion to their bytes, at least one each where it holds tokens."""
    tiles = (high + TILE - 1) // TILE + (low + TILE - 1) // TILE
    both = (high > 0).to(tl.int32) + (low > 0).to(tl.int32)
    used = tl.maximum(tl.minimum(splits, (tiles + LEAST_TILES - 1) // LEAST_TILES), both)
    high_cost = high.to(tl.float32) * high_bytes
    cost = high_cost + low.to(tl.float32) * low_bytes
    for_high = (used * (high_cost / tl.maximum(cost, 1.0)) + 0.5).to(tl.int32)
    for_high = tl.minimum(tl.maximum(for_high, (high > 0).to(tl.int32)), used - (low > 0).to(tl.int32))
    return for_high, used - for_high


@triton.jit
def split_kernel(
    pool8, pool16, pool32, query, page_table, token_counts, tier_formats, slots, partial, partial_lse, weights, maxima,
    products, scale, table_slot, table_head, counts_slot, counts_head, capacity, max_tiles, max_pages, positions,
    splits, CODECS: tl.constexpr, PAGE_WORDS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr, TILE: tl.constexpr, LEAST_TILES: tl.constexpr, KEEP_WEIGHTS: tl.constexpr,
    BY_POSITION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (batch * kv_heads * blocks of 8 query heads, splits)."""
    BLOCKS: tl.constexpr = (GROUP + 7) // 8
    block = tl.program_id(0) % BLOCKS
    head = tl.program_id(0) // BLOCKS % KV_HEADS
    request = tl.program_id(0) // (BLOCKS * KV_HEADS)
    split = tl.program_id(1)

    in_group = block * 8 + tl.arange(0, 8)
    row_mask = in_group < GROUP
    query_row = (request * KV_HEADS + head) * GROUP + in_group

    slot = tl.load(slots + request)
    held = slot >= 0
    slot = tl.maximum(slot, 0).to(tl.int64)
    counts = token_counts + slot * counts_slot + head * counts_head
    high = tl.load(counts, mask=held, other=0)
    low = tl.load(counts + 1, mask=held, other=0)
    high_format = tl.load(tier_formats + 2 * slot)
    low_format = tl.load(tier_formats + 2 * slot + 1)
    high_bytes = 0
    low_bytes = 0
    for c in tl.static_range(codecs_in(CODECS)):
        high_bytes = tl.where(high_format == c, of(codec_number(CODECS, c), "token_bytes"), high_bytes)
        low_bytes = tl.where(low_format == c, of(codec_number(CODECS, c), "token_bytes"), low_bytes)
    for_high, for_low = share_of_splits(high, low, high_bytes, low_bytes, splits, LEAST_TILES, TILE)

    lse = partial_lse + query_row.to(tl.int64) * splits + split
    if split >= for_high + for_low:
        tl.store(lse, tl.full((8,), float("-inf"), tl.float32), mask=row_mask)
    else:
        tier = (split >= for_high).to(tl.int32)
        count = tl.where(tier == 0, high, low)
        format = tl.where(tier == 0, high_format, low_format)
        sharing = tl.where(tier == 0, for_high, for_low)
        tiles = (count + TILE - 1) // TILE
        each = (tiles + sharing - 1) // sharing
        first = (split - tier * for_high) * each
        last = tl.minimum(first + each, tiles)
        table = page_table + slot * table_slot + head * table_head + tier * (max_pages - 1)
        tile_base = tier * ((high + TILE - 1) // TILE)
        my_weights = weights + query_row.to(tl.int64) * capacity + tier * high
        my_maxima = maxima + query_row.to(tl.int64) * max_tiles + tile_base
        my_partial = partial + (query_row.to(tl.int64) * splits + split) * HEAD_DIM
        my_query = query + query_row.to(tl.int64) * HEAD_DIM
        my_products = products + query_row.to(tl.int64) * positions
        for c in tl.static_range(codecs_in(CODECS)):
            if format == c:
                found = attend(
                    pool8, pool16, pool32, my_query, row_mask, table, 1 - 2 * tier, count, first, last, scale,
                    my_partial, my_weights, my_maxima, my_products, positions, codec_number(CODECS, c), PAGE_WORDS,
                    HEAD_DIM, TILE, KEEP_WEIGHTS, BY_POSITION, ASM,
                )  # fmt: skip
                tl.store(lse, found, mask=row_mask)


@triton.jit
def merge_kernel(
    partial, partial_lse, lse, output, splits,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, PADDED_SPLITS: tl.constexpr,
):  # fmt: skip
    """Grid (batch * heads): the splits' outputs weighted by exp2 of their logsumexp, which is merged too."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, PADDED_SPLITS)
    parts = tl.load(partial_lse + row * splits + split, mask=split < splits, other=float("-inf"))
    highest = tl.max(parts)
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(tl.exp2(parts - shift))
    channel = tl.arange(0, PADDED_DIM)
    inside = channel < HEAD_DIM
    merged = tl.zeros((PADDED_DIM,), tl.float32)
    for first in range(0, splits, 8):
        some = first + tl.arange(0, 8)
        share = tl.load(partial_lse + row * splits + some, mask=some < splits, other=float("-inf"))
        # An empty split wrote no output, so what stands there must not be read.
        there = (share > float("-inf"))[:, None] & inside[None, :]
        x = tl.load(partial + (row * splits + some)[:, None] * HEAD_DIM + channel[None, :], mask=there, other=0)
        merged += tl.sum(tl.exp2(share - shift)[:, None] * x, 0)
    tl.store(output + row * HEAD_DIM + channel, merged / tl.where(total > 0, total, 1.0), mask=inside)
    tl.store(lse + row, shift + tl.log2(total))


@triton.jit
def contributions_kernel(
    weights, maxima, lse, token_counts, slots, contributions, counts_slot, counts_head, capacity, max_tiles,
    out_request, out_head,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (batch * kv_heads, blocks of tokens): the largest probability of each token over the heads of its group."""
    request = tl.program_id(0) // KV_HEADS
    head = tl.program_id(0) % KV_HEADS
    slot = tl.load(slots + request)
    counts = token_counts + tl.maximum(slot, 0).to(tl.int64) * counts_slot + head * counts_head
    high = tl.load(counts, mask=slot >= 0, other=0)
    low = tl.load(counts + 1, mask=slot >= 0, other=0)
    first = tl.program_id(1) * BLOCK
    if first < high + low:
        token = first + tl.arange(0, BLOCK)
        inside = token < high + low
        tile = tl.where(token < high, token // TILE, (high + TILE - 1) // TILE + (token - high) // TILE)
        largest = tl.zeros((BLOCK,), tl.float32)
        for h in range(GROUP):
            row = (tl.program_id(0) * GROUP + h).to(tl.int64)
            weight = tl.load(weights + row * capacity + token, mask=inside, other=0).to(tl.float32)
            maximum = tl.load(maxima + row * max_tiles + tile, mask=inside, other=float("-inf"))
            largest = tl.maximum(largest, weight * tl.exp2(maximum - tl.load(lse + row)))
        tl.store(contributions + request.to(tl.int64) * out_request + head * out_head + token, largest, mask=inside)
