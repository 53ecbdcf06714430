"""Prefill significance: how much the last queries of a prompt attend to each of its tokens.

score(i) = over the query heads of a KV head's group, the maximum (or mean) of the sum over the last W queries of the
softmax probability on key i; significance(i) = score(i) / min(N - i, W), the number of those queries that see token i
(LeanKV, arXiv 2412.03131, as released: W = 64, maximum). H2O (arXiv 2306.14048) is the same sum with W = N, SnapKV
(arXiv 2404.14469) with W = 32.

Only W x N logits exist, and of those one block at a time.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leankv.kernels.paths import Path, path_for

GroupAggregation = Literal["max", "mean"]
QUERY_BLOCK = 64


def prefill_scores(
    queries: Tensor, keys: Tensor, scale: float, group: GroupAggregation | None = "max", path: Path | None = None
) -> Tensor:
    """Score of every prompt token for every KV head: float32 [kv_heads, N].

    With `group` None the sums of every query head, float32 [heads, N]: those of chunks add up, their maxima do not.

    queries  [W, heads, head_dim], the last W of the prompt, after RoPE
    keys     [N, kv_heads, head_dim], all of the prompt, after RoPE; N >= W
    scale    softmax scale
    """
    assert queries.shape[0] <= keys.shape[0], "more queries than tokens"
    assert queries.shape[1] % keys.shape[1] == 0, "query heads must split over KV heads"
    chosen = path_for(keys, path)
    if chosen == "triton":
        from leankv.kernels import significance_triton

        return significance_triton.prefill_scores(queries, keys, scale, group)
    each = (_reference if chosen == "reference" else _vectorised)(queries, keys, scale)
    return each if group is None else over_group(each, keys.shape[1], group)


def over_group(each: Tensor, kv_heads: int, group: GroupAggregation) -> Tensor:
    """Scores [kv_heads, N] out of the sums of every query head [heads, N]."""
    grouped = each.view(kv_heads, -1, each.shape[-1])
    return grouped.amax(1) if group == "max" else grouped.mean(1)


def queries_seen(tokens: int, window: int, device: torch.device | str = "cpu") -> Tensor:
    """min(N - i, window) for i = 0 .. N - 1: the number of scored queries that saw token i; float32 [tokens]."""
    remaining = torch.arange(tokens, 0, -1, device=device, dtype=torch.float32)
    return remaining.clamp(max=window)


def _reference(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    window, heads, _ = queries.shape
    tokens, kv_heads, _ = keys.shape
    each = torch.zeros(heads, tokens)
    for head in range(heads):
        logits = queries[:, head].float() @ keys[:, head // (heads // kv_heads)].float().T * scale
        for query in range(window):
            seen = tokens - window + query + 1
            each[head, :seen] += torch.softmax(logits[query, :seen], dim=0)
    return each.to(keys.device)


def _vectorised(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    window, heads, head_dim = queries.shape
    tokens, kv_heads, _ = keys.shape
    by_head = keys.permute(1, 2, 0).float()
    each = torch.zeros(kv_heads, heads // kv_heads, tokens, device=keys.device)
    for start in range(0, window, QUERY_BLOCK):
        block = queries[start : start + QUERY_BLOCK]
        first = tokens - window + start
        last = first + block.shape[0]
        folded = block.permute(1, 0, 2).float().reshape(kv_heads, -1, head_dim) * scale
        logits = torch.bmm(folded, by_head[:, :, :last]).view(heads, -1, last)
        future = torch.ones(block.shape[0], block.shape[0], dtype=torch.bool, device=keys.device).triu(1)
        logits[:, :, first:].masked_fill_(future, -torch.inf)
        each[:, :, :last] += torch.softmax(logits, dim=-1).sum(1).view(kv_heads, -1, last)
    return each.flatten(0, 1)
