"""Sharing of common prompt prefixes: blocks of pages held once, however many requests use them (vLLM's prefix caching).

A block whose last user is gone stays, idle, as long as its pages are not wanted; the least recently used goes first.
Idle blocks are looked at when a prompt is admitted: those that no longer fit beside what is in use are forgotten then.
Pages that decoding took and gave back between two admissions are not noticed, so reuse is, if anything, overstated.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np

from leankv.traces.trace import PrefixBlocks


def shareable_blocks(prompts: np.ndarray, blocks: PrefixBlocks) -> np.ndarray:
    """Whole blocks of each prompt that can be shared: all but its last token, whose logits are needed, at most."""
    return np.minimum((prompts - 1) // blocks.block_tokens, np.diff(blocks.offsets))


class PrefixCache:
    """The blocks of one replica.

    Args:
        blocks: hashes by request; equal hashes are equal prefixes up to and including that block.
        counts: shareable blocks of each request, int64[requests].
        block_pages: pages of one block.
    """

    def __init__(self, blocks: PrefixBlocks, counts: np.ndarray, block_pages: int) -> None:
        self.block_tokens = blocks.block_tokens
        self.block_pages = block_pages
        self.blocks = blocks
        self._counts = counts
        self._users: Counter[int] = Counter()
        self._idle: OrderedDict[int, None] = OrderedDict()

    def hashes(self, request_id: int) -> list[int]:
        start = self.blocks.offsets[request_id]
        found: list[int] = self.blocks.hashes[start : start + self._counts[request_id]].tolist()
        return found

    def missing_pages(self, request_id: int) -> int:
        """Pages of the request's blocks that nobody uses now."""
        return self.block_pages * sum(block not in self._users for block in self.hashes(request_id))

    def take(self, request_id: int, free_pages: int) -> tuple[int, int]:
        """Use the request's blocks: (tokens found computed, pages newly in use)."""
        hashes = self.hashes(request_id)
        while len(self._idle) * self.block_pages > free_pages:
            self._idle.popitem(last=False)
        hits = 0
        while hits < len(hashes) and (hashes[hits] in self._users or hashes[hits] in self._idle):
            hits += 1
        pages = self.missing_pages(request_id)
        for block in hashes:
            self._idle.pop(block, None)
            self._users[block] += 1
        return hits * self.block_tokens, pages

    def give_back(self, request_id: int) -> int:
        """The request is done with its blocks; returns the pages idle now. Its first block will be forgotten last."""
        pages = 0
        for block in reversed(self.hashes(request_id)):
            self._users[block] -= 1
            if not self._users[block]:
                del self._users[block]
                self._idle[block] = None
                pages += self.block_pages
        return pages
