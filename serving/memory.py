"""Pages that a request holds under a policy, and the bytes a decode step reads of them.

A page belongs to one layer, KV head and tier, so what a policy saves shows only in whole pages. All counts are for the
fullest tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from leankv.serving.formats import FP16, KVFormat
from leankv.serving.models import ModelSpec
from leankv.serving.pages import UNIFORM_PAGE_TOKENS, layout_of, page_bytes_for, uniform_page_bytes
from leankv.serving.policies.base import Policy
from leankv.serving.policies.curves import Curve, Decoded, HeadGroup, LayerBudgets

TABLE_BYTES = 8
"""Per page: an entry of the free list and one of a page table, 32 bits each."""
COUNTER_BYTES = 8
"""Per sequence, head and tier: tokens held, and pages."""
PRODUCT_BYTES = 4
"""Of a query head's product with a centre at one position, in float32."""
FLOAT_NOISE = 1e-6
"""What a mean of pages may exceed a whole number by without meaning one more page."""
SEQUENCES = 256
"""Default of `--max-num-seqs`: counters are allocated for all of them."""


@dataclass(frozen=True)
class _Part:
    """Pages of one group of heads in one tier, ready for quick evaluation."""

    tier: int
    heads: int
    tokens_per_page: int
    slack: float | None
    at: Callable[[int, int], float]
    curve: Curve

    def pages(self, prompt: int, context: int) -> int:
        """Pages of all heads."""
        return self.pages_of(self.at(prompt, context))

    def pages_of(self, held: float) -> int:
        """Pages of all heads when each holds `held` tokens, on average where heads differ.

        A head that holds something has a page; one that holds more has on average `slack` of a page beyond its tokens.
        """
        if self.slack is None:
            return int(self.heads * -(-held // self.tokens_per_page))
        return ceil(self.heads * self._unrounded(held))

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """`pages` for arrays: the same operations in the same order, so the same values."""
        held = self.curve.at_array(prompts, contexts)
        if self.slack is None:
            return (self.heads * -(-held // self.tokens_per_page)).astype(np.int64)
        per_head = np.maximum(held / self.tokens_per_page + self.slack, 1.0)
        return np.ceil(self.heads * np.minimum(held, per_head)).astype(np.int64)

    def growth(self, prompt: int, tokens: int) -> int:
        """Most pages that `tokens` further tokens can add after `prompt` tokens or more."""
        added = self.curve.growth(prompt, tokens)
        if self.slack is None:
            return self.heads * ceil(added / self.tokens_per_page)
        # The steepest is a head's first token, which opens a page; later, pages follow tokens. Unrounded, so that no
        # other window's rounding can exceed it by more than the one page added for that.
        least = self.at(prompt, prompt)
        opened = self._unrounded(least + added) - self._unrounded(least)
        pages = self.heads * max(opened, added / self.tokens_per_page)
        return ceil(pages - FLOAT_NOISE) + 1 if added else 0

    def _unrounded(self, held: float) -> float:
        """Mean pages of a head that holds `held` tokens, where heads differ."""
        assert self.slack is not None
        return min(held, max(1.0, held / self.tokens_per_page + self.slack))


@dataclass(frozen=True)
class _LayeredPart(_Part):
    """Heads that differ by layer only: whole pages layer by layer, so no slack is expected, it is counted."""

    layers: LayerBudgets

    def pages(self, prompt: int, context: int) -> int:
        tokens = self.tokens_per_page
        per_head = sum([-(-held // tokens) for held in self.layers.by_layer(prompt, context)])
        return self.heads // len(self.layers.caps) * per_head

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        per_layer: np.ndarray = -(-self.layers.by_layer_array(prompts, contexts) // self.tokens_per_page)
        return (self.heads // len(self.layers.caps) * per_layer.sum(axis=0)).astype(np.int64)


@dataclass(frozen=True)
class _DecodedPart(_Part):
    """Heads whose pages were measured as well as their tokens, so no slack is expected, it is in them."""

    decoded: Decoded

    def pages(self, prompt: int, context: int) -> int:
        return ceil(self.heads * self.decoded.pages(prompt, context, self.tokens_per_page))

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        per_head = self.decoded.pages_array(prompts, contexts, self.tokens_per_page)
        return np.ceil(self.heads * per_head).astype(np.int64)

    def growth(self, prompt: int, tokens: int) -> int:
        return ceil(self.heads * self.decoded.pages_growth(prompt, tokens, self.tokens_per_page)) + 1 if tokens else 0


@dataclass(frozen=True)
class MemoryModel:
    """The memory of one policy on one model.

    `prompt` is the prompt's length in tokens, `context` the tokens cached so far (prompt and generated, evicted ones
    included), and context >= prompt, at least 1. `chunked_prefill` decides how score-driven policies stage a prompt:
    chunked, all of it waits in FP16 pages until its last chunk; unchunked, layers are compressed one by one, and one is
    staged.
    """

    policy: Policy
    model: ModelSpec
    tp: int = 1
    chunked_prefill: bool = True

    @cached_property
    def page_bytes(self) -> int:
        """Bytes of a page: for 16 tokens where the pool has one format, else a size found for all of its formats."""
        formats = self._formats
        if len(formats) > 1:
            return page_bytes_for(self.model.head_dim, formats, self.policy.bookkeeping)
        summary = 2 * self.model.head_dim * self.policy.page_vectors
        return uniform_page_bytes(formats[0], self.model.head_dim, self.policy.bookkeeping) + summary

    @cached_property
    def tokens_per_page(self) -> tuple[int, ...]:
        """Tokens of a page, by tier."""
        return tuple(self._tokens_of(tier.format) for tier in self.policy.tiers)

    @cached_property
    def heads(self) -> int:
        """KV heads over all layers of the fullest rank."""
        return self.model.layers * self.model.kv_heads_on_rank(self.tp)

    def pages(self, prompt: int, context: int) -> int:
        """Pages held once the prompt is compressed; non-decreasing in the context."""
        total = 0
        for part in self._parts:
            total += part.pages(prompt, context)
        return total

    def pages_by_tier(self, prompt: int, context: int) -> tuple[int, ...]:
        """`pages`, split by tier."""
        by_tier = [0] * len(self.policy.tiers)
        for part in self._parts:
            by_tier[part.tier] += part.pages(prompt, context)
        return tuple(by_tier)

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """`pages` for int64 arrays of one length; the same values."""
        total = np.zeros(len(contexts), dtype=np.int64)
        for part in self._parts:
            total += part.pages_array(prompts, contexts)
        return total

    def tier_pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """`pages_by_tier` for int64 arrays of one length n: int64[n, tiers]."""
        by_tier = np.zeros((len(contexts), len(self.policy.tiers)), dtype=np.int64)
        for part in self._parts:
            by_tier[:, part.tier] += part.pages_array(prompts, contexts)
        return by_tier

    def prefill_pages(self, prompt: int, done: int) -> int:
        """Pages reserved while `done` of the prompt's tokens are computed, and the last is not.

        Score-driven policies reserve for the whole prompt from its first chunk: its FP16 staging pages or, where those
        are more, the compressed pages. Unchunked: the compressed pages and one layer's staging.
        """
        if not self.policy.staged:
            return self.pages(done, done)
        staged_per_head = -(-prompt // self._staging_tokens)
        compressed = self.pages(prompt, prompt)
        if self.chunked_prefill:
            return max(self.heads * staged_per_head, compressed)
        return compressed + self.heads // self.model.layers * staged_per_head

    def prefill_pages_array(self, prompts: np.ndarray) -> np.ndarray:
        """`prefill_pages(prompt, prompt)` for an int64 array."""
        compressed = self.pages_array(prompts, prompts)
        if not self.policy.staged:
            return compressed
        staged_per_head = -(-prompts // self._staging_tokens)
        if self.chunked_prefill:
            return np.maximum(self.heads * staged_per_head, compressed)
        return compressed + self.heads // self.model.layers * staged_per_head

    def incomplete_pages_array(self, done: np.ndarray) -> np.ndarray:
        """Pages that prompts really hold after a step, `done` (int64[n]) of their tokens computed and not the last."""
        if self.policy.staged:
            return self.heads * -(-done // self._staging_tokens)
        return self.pages_array(done, done)

    def growth_bound(self, tokens: int, prompt: int = 1) -> int:
        """Upper bound of the pages that any `tokens` consecutive decode tokens of one request add.

        It is far smaller for requests known to have at least `prompt` prompt tokens, whose heads have pages already.
        """
        return sum(part.growth(prompt, tokens) for part in self._parts)

    def capacity(self, kv_bytes: int, sequences: int = SEQUENCES) -> int:
        """Pages in `kv_bytes`, page tables and counters for `sequences` requests and the stored mean keys paid for."""
        row = self.heads if self._shares_table else 1
        counters = COUNTER_BYTES * sequences * (1 if self._shares_table else self.heads * len(self.policy.tiers))
        means = 2 * self.model.head_dim * self.heads if "centred" in self.policy.key_transform else 0
        return row * max(0, (kv_bytes - counters - means) // (row * self.page_bytes + TABLE_BYTES))

    def kv_read(self, prompt: int, context: int) -> tuple[float, ...]:
        """Bytes that one decode step moves for attention, by tier: all heads and layers, scales and zeros included.

        Where the policy keeps scores up to date their bytes are in, as are Quest's page bounds, and a step's share in
        reading and writing the cache once every n-th step.
        """
        read = [0.0] * len(self.policy.tiers)
        for tier, heads, at, token_bytes in self._reads:
            read[tier] += heads * token_bytes * at(prompt, context)
        return tuple(read)

    def cached_share(self, tier: int) -> float:
        """Of a tier's bytes in `kv_read`, the share that is keys and values in its format: what attention decodes.

        The rest are scores, positions, and reading and writing the cache anew.
        """
        format = self.policy.tiers[tier].format
        return format.bytes_per_token(self.model.head_dim) / self._step_bytes(format)

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        """Contexts above `prompt` between which `kv_read` is linear in the context."""
        return self.policy.breakpoints(prompt, self.model.layers, self.model.kv_heads_on_rank(self.tp))

    @cached_property
    def reads_follow_context(self) -> bool:
        """Whether `kv_read` depends on the context alone."""
        policy, kv_heads = self.policy, self.model.kv_heads_on_rank(self.tp)
        groups = policy.read_groups(self.model.layers, kv_heads) + self._groups
        return all(curve.follows_context for group in groups for curve in group.curves if curve is not None)

    def ratios(self, prompts: np.ndarray, contexts: np.ndarray) -> tuple[float, float]:
        """(nominal, physical) of requests together, int64 arrays: all their uncompressed bytes over all their bytes.

        Nominal counts payload alone, as papers do; physical all pages held: metadata, slack and fragments included.
        Not those of a mean request: where a budget caps what is kept, only the long ones are compressed.
        """
        head_dim = self.model.head_dim
        uncompressed = float(self.heads * contexts.sum() * FP16.payload_bytes(head_dim))
        payload = sum(
            group.heads * float(curve.at_array(prompts, contexts).sum()) * tier.format.payload_bytes(head_dim)
            for group in self._groups
            for curve, tier in zip(group.curves, self.policy.tiers, strict=True)
            if curve is not None
        )
        pages = int(self.pages_array(prompts, contexts).sum())
        return uncompressed / payload, uncompressed / (pages * self.page_bytes)

    @cached_property
    def _formats(self) -> tuple[KVFormat, ...]:
        """Formats that share the pool: the tiers' and, where prompts are staged, FP16."""
        formats = [tier.format for tier in self.policy.tiers]
        return tuple(dict.fromkeys([*formats, FP16] if self.policy.staged else formats))

    def _tokens_of(self, format: KVFormat) -> int:
        size = self.page_bytes - 2 * self.model.head_dim * self.policy.page_vectors
        return layout_of(format, self.model.head_dim, size, self.policy.bookkeeping).tokens

    @cached_property
    def _staging_tokens(self) -> int:
        return self._tokens_of(FP16)

    @cached_property
    def _groups(self) -> tuple[HeadGroup, ...]:
        return self.policy.groups(self.model.layers, self.model.kv_heads_on_rank(self.tp))

    @cached_property
    def _shares_table(self) -> bool:
        """Whether one page table serves all heads of a request, since they hold the same tokens."""
        return len(self._groups) == 1 and not any(
            part.slack is not None or isinstance(part, _LayeredPart) for part in self._parts
        )

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        return tuple(
            self._part(tier, group, curve)
            for group in self._groups
            for tier, curve in enumerate(group.curves)
            if curve is not None
        )

    def _part(self, tier: int, group: HeadGroup, curve: Curve) -> _Part:
        common = (tier, group.heads, self.tokens_per_page[tier], group.slack_pages, curve.at, curve)
        if isinstance(curve, Decoded):
            return _DecodedPart(*common, curve)
        return _LayeredPart(*common, curve) if isinstance(curve, LayerBudgets) else _Part(*common)

    @cached_property
    def _reads(self) -> tuple[tuple[int, int, Callable[[int, int], float], float], ...]:
        """(tier, heads, tokens read, bytes a token) of everything a step reads."""
        policy, head_dim = self.policy, self.model.head_dim
        groups = policy.read_groups(self.model.layers, self.model.kv_heads_on_rank(self.tp))
        reads: list[tuple[int, int, Callable[[int, int], float], float]] = [
            (tier, group.heads, curve.at, self._step_bytes(policy.tiers[tier].format))
            for group in groups
            for tier, curve in enumerate(group.curves)
            if curve is not None
        ]
        if self._products:  # every position has one, whether its token is held or not
            written = sum(group.heads for group in groups)
            reads.append((0, written, lambda _prompt, context: float(context), self._products))
        bounds = 2 * head_dim * policy.page_vectors / UNIFORM_PAGE_TOKENS
        return tuple(reads + ([(part.tier, part.heads, part.at, bounds) for part in self._parts] if bounds else []))

    @property
    def _products(self) -> float:
        """Bytes a KV head and position of its queries' products with a centre that turns: written, then read again."""
        if not self.policy.key_transform.startswith("rope"):
            return 0.0
        return PRODUCT_BYTES * self.model.heads / self.tp / self.model.kv_heads_on_rank(self.tp)

    def _step_bytes(self, format: KVFormat) -> float:
        """Bytes moved a step for each token read: its own, its score read and written, its share of recompression.

        And its queries' products with a centre that turns with the position.
        """
        policy = self.policy
        token = format.bytes_per_token(self.model.head_dim)
        if not policy.bookkeeping:
            return token
        kept = token + policy.bookkeeping
        beside = policy.bookkeeping + self._products
        if policy.trigger.when == "every-n":
            return kept + beside + 2 * kept / policy.trigger.steps
        return kept + beside
