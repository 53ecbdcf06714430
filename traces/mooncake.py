"""Mooncake traces (kvcache-ai/Mooncake, FAST 2025): JSONL with prefix hashes of 512-token blocks.

Timestamps are milliseconds, but the published ones are collected in ticks (about 3 s in the conversation trace, ten
requests each). Replayed as they stand, every tick is a burst that nobody sent, so a tick's requests are spread over
the time until the next tick.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from leankv.traces.columns import arrivals_ps, assembled, lengths
from leankv.traces.source import Source
from leankv.traces.tables import read_jsonl
from leankv.traces.trace import PS_PER_S, IntArray, PrefixBlocks, Trace

COLUMNS = ("timestamp", "input_length", "output_length")
HASHES = "hash_ids"
BLOCK_TOKENS = 512
Spread = Literal["even", "random", "none"]


def read_mooncake(source: Source, spread: Spread = "even", seed: int = 0) -> Trace:
    """`spread`: within a tick evenly, at random (by `seed`), or "none" to keep the ticks.

    Raises:
        InputError: naming file, row and mend for anything unreadable.
    """
    table = read_jsonl(source, (*COLUMNS, HASHES))
    arrival = arrivals_ps(source, table.column(COLUMNS[0]), COLUMNS[0], unit="ms")
    prompt = lengths(source, table.column(COLUMNS[1]), COLUMNS[1])
    output = lengths(source, table.column(COLUMNS[2]), COLUMNS[2])
    trace = assembled(source, arrival, prompt, output, "mooncake", prefix_blocks(source, table.column(HASHES)))
    return spread_ticks(trace, spread, seed)


def prefix_blocks(source: Source, column: Any, block_tokens: int = BLOCK_TOKENS) -> PrefixBlocks:
    """A pyarrow column of integer lists as PrefixBlocks; a missing list is an empty one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_null(lists.type):
        return PrefixBlocks(np.zeros(len(lists) + 1, np.int64), np.zeros(0, np.int64), block_tokens)
    if not pa.types.is_list(lists.type):
        raise source.error(f"{HASHES} are {lists.type}, not lists of integers", "write one list of integers a row")
    try:
        hashes = pc.cast(pc.list_flatten(lists), pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        raise source.error(f"{HASHES} are {lists.type}, not lists of integers", "write integer hashes") from None
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return PrefixBlocks(np.concatenate(([0], np.cumsum(counts, dtype=np.int64))), hashes, block_tokens)


def spread_ticks(trace: Trace, spread: Spread, seed: int) -> Trace:
    """The trace with the requests of each shared timestamp moved into [tick, next tick), their order kept.

    The room of a tick is the distance to the next, but no more than the median distance (an idle pause is no tick).
    """
    ticks, first, counts = np.unique(trace.arrival_ps, return_index=True, return_counts=True)
    if spread == "none" or len(ticks) == len(trace):
        return trace
    distances = np.diff(ticks)
    usual = int(np.median(distances)) if len(distances) else PS_PER_S
    room = np.append(np.minimum(distances, usual), usual)
    offsets = _even(counts, first, room) if spread == "even" else _random(counts, room, seed)
    moved = trace.take(np.arange(len(trace)), trace.arrival_ps + offsets)
    kept = tuple(line for line in trace.warnings if "share the timestamp" not in line)
    note = f"{len(trace) - len(ticks)} requests shared an earlier one's timestamp: spread within their tick ({spread})"
    return replace(moved, warnings=kept).with_step(f"spread_ticks({spread}, seed={seed})", f"{trace.name}: {note}")


def _even(counts: IntArray, first: IntArray, room: IntArray) -> IntArray:
    position = np.arange(counts.sum()) - np.repeat(first, counts)
    return position * np.repeat(room // counts, counts)


def _random(counts: IntArray, room: IntArray, seed: int) -> IntArray:
    rng = np.random.default_rng(seed)
    tick = np.repeat(np.arange(len(counts)), counts)
    offsets = (rng.random(len(tick)) * room[tick]).astype(np.int64)
    return offsets[np.lexsort((offsets, tick))]
