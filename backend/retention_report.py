"""How much a score-driven policy keeps of real prompts as they grow, as the memory model reads it.

Tiers are chosen by the live selector from captured queries and keys; nothing needs to be stored for that. A prompt's
shorter version is its beginning: attention is causal, so one run of the model serves all lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from leankv.backend.capture import Captured
from leankv.kernels.classify import ranks
from leankv.kernels.pages import pages_held
from leankv.kernels.selectors import score_prompt, scored_queries, select_prompt
from leankv.serving.policies.base import Policy
from leankv.serving.pool_plan import page_bytes_of, policy_layouts
from leankv.serving.retention import Retention

CONTEXTS = (256, 512, 1024, 2000, 4000, 8000)


def kept_tokens(policy: Policy, captured: Captured, context: int) -> Tensor:
    """Tokens that every layer and KV head keeps of the first `context` tokens: int32 [layers, kv_heads, tiers]."""
    last = context - scored_queries(policy, context)
    counts = []
    for queries, keys, scale in zip(captured.queries, captured.keys, captured.scales, strict=True):
        scores = score_prompt(policy, queries[last:context], keys[:context], scale)
        counts.append(ranks(select_prompt(policy, scores))[1])
    return torch.stack(counts)[..., : len(policy.tiers)]


def retention(policy: Policy, texts: Sequence[Captured], contexts: Sequence[int], source: str) -> Retention:
    """Mean kept tokens by tier over all texts, layers and heads, at each of `contexts` (increasing).

    spread: over the texts. A tier that keeps fewer tokens of a longer prompt, by a few texts' chance, is held level.
    Raises InputError where that makes more tokens than there are.
    """
    assert texts and contexts[-1] <= min(text.tokens for text in texts)
    head_dim = texts[0].keys[0].shape[-1]
    layouts = policy_layouts([policy], head_dim, page_bytes_of([policy], head_dim))[0].tiers
    a_page = torch.tensor([layout.tokens for layout in layouts])
    means, spreads, slacks = [], [], []
    for context in contexts:
        kept = torch.stack([kept_tokens(policy, text, context) for text in texts])
        means.append(kept.double().mean((0, 1, 2)).tolist())
        by_text = kept.double().sum((1, 2, 3))
        spreads.append(float(by_text.std(correction=0) / by_text.mean()))
        slacks.append(float((pages_held(kept, a_page.expand_as(kept)) - kept / a_page).mean()))
    level = list(accumulate(means, lambda before, now: [max(pair) for pair in zip(before, now, strict=True)]))
    shares = [[each / context for each in row] for row, context in zip(level, contexts, strict=True)]
    return Retention.from_shares(
        contexts, shares, sum(spreads) / len(spreads), source, slack_pages=sum(slacks) / len(slacks)
    )
