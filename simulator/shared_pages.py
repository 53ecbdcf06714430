"""Pages of prefix blocks in use at sampled instants, worked out after the run from the stays."""

from __future__ import annotations

import numpy as np

from leankv.simulator.recorder import Ints, ReplicaLog
from leankv.traces.trace import PrefixBlocks


def shared_pages(log: ReplicaLog, blocks: PrefixBlocks, block_pages: int, times: Ints) -> Ints:
    """Pages at each instant of `times` (ps, sorted): a block in use by several requests counts once. int64[times]."""
    counts = log.stays.column("shared_tokens") // blocks.block_tokens
    first = blocks.offsets[log.stays.column("request")]
    hashes = blocks.hashes[np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())]
    low = np.repeat(np.searchsorted(times, log.stays.column("admitted_ps")), counts)
    high = np.repeat(np.searchsorted(times, log.stays.column("end_ps")), counts)
    return block_pages * _covered(hashes, low, high, len(times))


def _covered(groups: Ints, low: Ints, high: Ints, size: int) -> Ints:
    """For each index below `size`, how many groups have an interval [low, high) over it. int64[size]."""
    order = np.lexsort((low, groups))
    _, index = np.unique(groups[order], return_inverse=True)
    # Each group gets a number range of its own, so that one running maximum serves them all.
    shift = index * (size + 1)
    low, high = low[order] + shift, high[order] + shift
    reached = np.maximum.accumulate(np.concatenate(([0], high)))[:-1] if len(high) else high
    start = np.maximum(low, np.maximum(reached, shift)) - shift
    end = np.maximum(high - shift, start)
    change = np.zeros(size + 1, dtype=np.int64)
    np.add.at(change, start, 1)
    np.add.at(change, end, -1)
    return np.cumsum(change)[:-1]
