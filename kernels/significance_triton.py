# mypy: disable-error-code="no-untyped-def"
"""Prefill scores as two Triton launches: the softmax normaliser by splits of the keys, then the probabilities."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_QUERIES = 64
BLOCK_KEYS = 64
MAX_SPLITS = 32
NUM_WARPS = 8
# Triton takes a literal below the normal float32 range for a float64, and everything after it.
SMALLEST = tl.constexpr(1e-30)


def prefill_scores(queries: Tensor, keys: Tensor, scale: float, group: str | None) -> Tensor:
    """See `significance.prefill_scores`."""
    window, heads, head_dim = queries.shape
    tokens, kv_heads, _ = keys.shape
    splits = min(MAX_SPLITS, triton.cdiv(tokens, BLOCK_KEYS))
    split_keys = triton.cdiv(triton.cdiv(tokens, splits), BLOCK_KEYS) * BLOCK_KEYS
    normaliser = torch.empty(heads, splits, window, dtype=torch.float32, device=keys.device)
    scores = torch.empty(kv_heads if group else heads, tokens, dtype=torch.float32, device=keys.device)
    shape = {
        "GROUP": heads // kv_heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "DIM": triton.next_power_of_2(head_dim),
        "BLOCK_QUERIES": BLOCK_QUERIES,
        "BLOCK_KEYS": BLOCK_KEYS,
        "num_warps": NUM_WARPS,
    }
    given = (queries.contiguous(), keys.contiguous(), normaliser)
    blocks = triton.cdiv(window, BLOCK_QUERIES)
    normaliser_kernel[(heads, splits, blocks)](*given, window, tokens, scale, splits, split_keys, **shape)
    score_kernel[(kv_heads, triton.cdiv(tokens, BLOCK_KEYS))](
        *given, scores, window, tokens, scale, splits,
        SPLITS=triton.next_power_of_2(splits), MEAN=group == "mean", EACH=group is None, **shape,
    )  # fmt: skip
    return scores


@triton.jit
def _block(
    vectors, head, first, number, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """[BLOCK, DIM] float16 vectors of one head out of [number, HEADS, HEAD_DIM], from `first` on, padded with zeros."""
    index = first + tl.arange(0, BLOCK)
    channel = tl.arange(0, DIM)
    there = (index < number)[:, None] & (channel < HEAD_DIM)[None, :]
    at = vectors + (index.to(tl.int64)[:, None] * HEADS + head) * HEAD_DIM + channel[None, :]
    return tl.load(at, mask=there, other=0.0).to(tl.float16)


@triton.jit
def _logits(q, k, first_query, first_key, window, tokens, scale, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Scaled logits, minus infinity where the key is in the future or either is padding."""
    query = first_query + tl.arange(0, BLOCK_Q)
    key = first_key + tl.arange(0, BLOCK_K)
    visible = key[None, :] <= (tokens - window + query)[:, None]
    visible = visible & (query < window)[:, None] & (key < tokens)[None, :]
    return tl.where(visible, tl.dot(q, tl.trans(k)) * scale, float("-inf"))


@triton.jit(do_not_specialize=["window", "tokens", "splits", "split_keys"])
def normaliser_kernel(
    queries, keys, normaliser, window, tokens, scale, splits, split_keys,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Log of the sum of exponentials over one split of the keys, for one head and one block of queries."""
    head = tl.program_id(0)
    split = tl.program_id(1)
    first_query = tl.program_id(2) * BLOCK_QUERIES
    q = _block(queries, head, first_query, window, KV_HEADS * GROUP, HEAD_DIM, DIM, BLOCK_QUERIES)
    largest = tl.full([BLOCK_QUERIES], -1e30, tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    last = tl.minimum(tokens, (split + 1) * split_keys)
    for first_key in range(split * split_keys, last, BLOCK_KEYS):
        k = _block(keys, head // GROUP, first_key, tokens, KV_HEADS, HEAD_DIM, DIM, BLOCK_KEYS)
        logits = _logits(q, k, first_query, first_key, window, tokens, scale, BLOCK_QUERIES, BLOCK_KEYS)
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(logits - new_largest[:, None]), 1)
        largest = new_largest
    query = first_query + tl.arange(0, BLOCK_QUERIES)
    at = normaliser + (head * splits + split) * window + query
    tl.store(at, tl.where(total > 0, largest + tl.log(tl.maximum(total, SMALLEST)), float("-inf")), mask=query < window)


@triton.jit(do_not_specialize=["window", "tokens", "splits"])
def score_kernel(
    queries, keys, normaliser, scores, window, tokens, scale, splits,
    SPLITS: tl.constexpr, MEAN: tl.constexpr, EACH: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Sum over the queries, then maximum or mean over the group (or neither), for one KV head and one block of keys."""
    kv_head = tl.program_id(0)
    first_key = tl.program_id(1) * BLOCK_KEYS
    k = _block(keys, kv_head, first_key, tokens, KV_HEADS, HEAD_DIM, DIM, BLOCK_KEYS)
    key = first_key + tl.arange(0, BLOCK_KEYS)
    of_group = tl.zeros([BLOCK_KEYS], tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        of_head = tl.zeros([BLOCK_KEYS], tl.float32)
        for first_query in range(0, window, BLOCK_QUERIES):
            q = _block(queries, head, first_query, window, KV_HEADS * GROUP, HEAD_DIM, DIM, BLOCK_QUERIES)
            query = first_query + tl.arange(0, BLOCK_QUERIES)
            split = tl.arange(0, SPLITS)
            there = (split < splits)[:, None] & (query < window)[None, :]
            parts = tl.load(
                normaliser + (head * splits + split[:, None]) * window + query[None, :], mask=there, other=float("-inf")
            )
            largest = tl.maximum(tl.max(parts, 0), -1e30)
            log_total = largest + tl.log(tl.maximum(tl.sum(tl.exp(parts - largest[None, :]), 0), SMALLEST))
            logits = _logits(q, k, first_query, first_key, window, tokens, scale, BLOCK_QUERIES, BLOCK_KEYS)
            of_head += tl.sum(tl.exp(logits - log_total[:, None]), 0)
        of_group = (of_group + of_head / GROUP) if MEAN else tl.maximum(of_group, of_head)
        if EACH:
            tl.store(scores + head.to(tl.int64) * tokens + key, of_head, mask=key < tokens)
    if not EACH:
        tl.store(scores + kv_head.to(tl.int64) * tokens + key, of_group, mask=key < tokens)
