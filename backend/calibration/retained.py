"""What a score-driven policy keeps of real texts, by tier: of prompts as they grow, and while they are continued.

Prompts' tiers come from the live selector. Then the texts go on through the cache, token by token: queries, keys and
values are those of the model, which has read them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import KeyMeans
from leankv.backend.cache_report import shape_of
from leankv.backend.capture import Captured
from leankv.backend.retention_report import kept_tokens
from leankv.kernels import pages as pg
from leankv.serving.decode_growth import DecodeGrowth, Table
from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import Thresholds
from leankv.serving.pool_plan import live_layout
from leankv.serving.profile import HeadRetention

if TYPE_CHECKING:
    from torch import Tensor

GENERATED = (0, 4, 16, 32, 64)
QUICK_GENERATED = (0, 8, 16)
CONTINUED, CONTINUED_TEXTS = (1, 1.125, 1.5, 2, 4, 8, 16), 2
"""Which prompts are continued, in windows: just above one, all heads open their first page of the low tier at once."""


def head_retention(policy: Policy, texts: Sequence[Captured], contexts: Sequence[int]) -> HeadRetention:
    """Tokens that every layer, KV head and tier keeps of prompts, on average over the texts, to a tenth."""
    means = []
    for context in contexts:
        kept = torch.stack([kept_tokens(policy, text, context) for text in texts]).double().mean(0)
        means.append(tuple(tuple(tuple(round(x, 1) for x in head) for head in layer) for layer in kept.tolist()))
    return HeadRetention(tuple(contexts), tuple(means), len(texts))


def decode_growth(
    policy: Policy,
    texts: Sequence[Captured],
    key_means: KeyMeans,
    contexts: Sequence[int],
    generated: Sequence[int],
    progress: Callable[[float], None],
) -> DecodeGrowth | None:
    """Tokens and pages after prompts of `contexts` (increasing), and while the texts are continued.

    Long prompts are not continued: what they gain is that of the longest which is, since it changes little there.
    None where the policy has no thresholds, or the texts are too short for two prompts.
    """
    if not isinstance(policy.budget, Thresholds):
        return None
    whole = policy.budget.window
    longest = min(text.tokens for text in texts)
    continued = [prompt for each in CONTINUED if (prompt := round(each * whole)) <= longest - generated[-1]]
    prompts = sorted({*continued, *(context for context in contexts if whole < context <= longest)})
    if len(prompts) < 2 or not continued:
        return None
    seen = []
    for number, text in enumerate(texts[:CONTINUED_TEXTS]):

        def partly(share: float, number: int = number) -> None:
            progress((number + share) / min(len(texts), CONTINUED_TEXTS))

        seen.append(_continued(policy, text, key_means, continued, generated, partly))
    after = torch.stack(seen).mean(0).cummax(2).values
    start = _after_prompts(policy, texts, prompts)
    tokens, pages = start[:, :, None] + _between(after - after[:, :, :1], continued, prompts)
    return DecodeGrowth(whole, tuple(prompts), tuple(generated), _table(tokens), _table(pages))


def _after_prompts(policy: Policy, texts: Sequence[Captured], prompts: Sequence[int]) -> Tensor:
    """Mean tokens, then pages, of a head when prompts are complete: float64 [2, prompts, 2 tiers]."""
    head_dim = texts[0].keys[0].shape[-1]
    capacity = torch.tensor([layout.tokens for layout in live_layout(policy, head_dim).tiers])
    found = []
    for prompt in prompts:
        kept = torch.stack([kept_tokens(policy, text, prompt) for text in texts]).cpu()
        both = torch.stack([kept, pg.pages_held(kept, capacity.expand_as(kept))])
        found.append(both.double().mean((1, 2, 3)))
    return torch.stack(found, 1)


def _between(gained: Tensor, continued: Sequence[int], prompts: Sequence[int]) -> Tensor:
    """[2, continued, generated, tiers] at all `prompts`, linear between those continued and level beyond them."""
    at = torch.tensor(continued, dtype=torch.float64)
    rows = []
    for prompt in prompts:
        right = min(int(torch.searchsorted(at, prompt)), len(continued) - 1)
        left = max(0, right - 1)
        span = continued[right] - continued[left]
        share = min(1.0, (prompt - continued[left]) / span) if span else 0.0
        rows.append(gained[:, left] + share * (gained[:, right] - gained[:, left]))
    return torch.stack(rows, 1)


@torch.inference_mode()
def _continued(
    policy: Policy,
    text: Captured,
    key_means: KeyMeans,
    prompts: Sequence[int],
    generated: Sequence[int],
    progress: Callable[[float], None],
) -> Tensor:
    """Mean tokens, then pages, of a head: float64 [2, prompts, generated, 2 tiers]."""
    cache = _filled(policy, text, key_means, prompts, generated[-1])
    found = []
    for step in range(generated[-1] + 1):
        if step in generated:
            tables = cache.tables
            both = torch.stack([tables.counts, pg.pages_held(tables.counts, tables.tokens_per_page)])
            found.append(both.view(2, len(prompts), -1, 2).double().mean(2).cpu())
        if step < generated[-1]:
            _decode(cache, text, [prompt + step for prompt in prompts])
        progress((step + 1) / (generated[-1] + 1))
    return torch.stack(found, 2)


def _filled(policy: Policy, text: Captured, key_means: KeyMeans, prompts: Sequence[int], more: int) -> KVCache:
    """The beginnings of a text, a slot each."""
    shape = shape_of(text)
    rows, tokens = shape.layers * shape.kv_heads, sum(prompts) + (more + 128) * len(prompts)
    cache = KVCache(
        shape,
        [policy],
        slots=len(prompts),
        memory_bytes=2 * tokens * rows * FP16.payload_bytes(shape.head_dim) + (1 << 22),
        max_tokens=prompts[-1] + more,
        device=text.keys[0].device,
        key_means=key_means,
    )
    for slot, prompt in enumerate(prompts):
        cache.admit(slot, prompt)
        cache.begin_chunk(slot, prompt)
        for layer, scale in enumerate(text.scales):
            queries, keys, values = (part[layer][:prompt] for part in (text.queries, text.keys, text.values))
            cache.store_chunk(slot, layer, queries, keys, values, scale)
        cache.end_chunk(slot, prompt)
    return cache


def _decode(cache: KVCache, text: Captured, positions: Sequence[int]) -> None:
    """One step of every slot, at its position of the text."""
    slots = list(range(len(positions)))
    at = torch.tensor(positions, device=cache.pool.device)
    cache.prepare_step(slots)
    cache.begin_step(torch.tensor(slots, dtype=torch.int32, device=cache.pool.device))
    for layer, scale in enumerate(text.scales):
        cache.decode(layer, text.queries[layer][at], text.keys[layer][at], text.values[layer][at], scale)
    cache.end_step(slots)


def _table(means: Tensor) -> Table:
    """To a thousandth."""
    return tuple(tuple(tuple(round(x, 3) for x in tiers) for tiers in row) for row in means.tolist())
