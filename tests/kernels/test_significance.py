"""Prefill significance against float64 attention over the whole prompt."""

from __future__ import annotations

import pytest
import torch

from leankv.kernels.significance import prefill_scores, queries_seen


def _oracle(queries: torch.Tensor, keys: torch.Tensor, window: int, scale: float, group: str | None) -> torch.Tensor:
    """Full causal attention in float64, all queries, then only the last `window` of them summed."""
    n, heads, _ = queries.shape
    ratio = heads // keys.shape[1]
    logits = torch.einsum("qhd,khd->hqk", queries.double(), keys.double().repeat_interleave(ratio, 1)) * scale
    logits = logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    each = logits.softmax(-1)[:, -window:].sum(1)
    if group is None:
        return each
    sums = each.view(keys.shape[1], ratio, n)
    return sums.amax(1) if group == "max" else sums.mean(1)


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("group", ["max", "mean", None])
@pytest.mark.parametrize(
    ("tokens", "window", "heads", "kv_heads", "head_dim"),
    [(1, 1, 2, 1, 64), (63, 63, 3, 3, 64), (64, 64, 9, 3, 96), (150, 64, 7, 1, 128), (130, 130, 4, 2, 64)],
)
def test_scores_equal_full_attention(path, group, tokens, window, heads, kv_heads, head_dim) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(tokens, heads, head_dim, generator=generator)
    keys = torch.randn(tokens, kv_heads, head_dim, generator=generator)
    keys[:, :, 3] *= 328  # a channel as large as Qwen2.5-1.5B's largest key
    scale = head_dim**-0.5
    found = prefill_scores(queries[-window:], keys, scale, group, path=path)
    expected = _oracle(queries, keys, window, scale, group)
    assert torch.allclose(found.double(), expected, atol=1e-5 * window)


def test_every_token_is_divided_by_the_queries_that_saw_it() -> None:
    assert queries_seen(5, 3).tolist() == [3, 3, 3, 2, 1]
