"""Decode attention as the formula says: one request and KV head at a time, on dequantized tokens, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.kernels import store_torch
from leankv.kernels.layout import locate
from leankv.kernels.rope import turned
from leankv.kernels.transforms import rotate

if TYPE_CHECKING:
    from leankv.kernels.attention import LayerCache


def decode_attention(
    query: Tensor, cache: LayerCache, slots: Tensor, scale: float, output: Tensor, contributions: Tensor | None
) -> None:
    """See `kernels/attention.py`."""
    output.zero_()
    group = query.shape[1] // cache.kv_heads
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        queries = query[row].float()
        if cache.rotated is not None and int(cache.rotated[slot]):
            queries = rotate(queries)
        for head in range(cache.kv_heads):
            keys, values, positions = held_tokens(cache, slot, head)
            if len(keys) == 0:
                continue
            heads = slice(head * group, (head + 1) * group)
            # The softmax ignores a common shift of the keys; float32 does not where they have channels of 300.
            logits = queries[heads] @ (keys - keys[0]).T
            if cache.centres is not None and int(cache.centres.chosen[slot]):
                centres = turned(cache.centres.mean[head], cache.centres.turns[positions.long()])
                logits += query[row, heads].float() @ (centres - centres[0]).T
            probabilities = torch.softmax(logits * scale, dim=-1)
            output[row, heads] = (probabilities @ values).to(output.dtype)
            if contributions is not None:
                contributions[row, head, : len(keys)] = probabilities.amax(0)


def held_tokens(cache: LayerCache, slot: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dequantized keys (as stored: centred and rotated) and values, float32 [n, head_dim], and positions int32 [n].

    The high tier comes first.
    """
    keys, values = [torch.empty(0, cache.head_dim)], [torch.empty(0, cache.head_dim)]
    positions = [torch.empty(0, dtype=torch.int32)]
    for tier in (0, 1):
        count = int(cache.token_counts[slot, head, tier])
        if count == 0:
            continue
        layout = cache.layouts[int(cache.tier_formats[slot, tier])]
        pages, places = locate(cache.page_table[slot, head], torch.arange(count), tier, layout)
        found = store_torch.gather(cache.pool, layout, pages, places)
        keys.append(found.keys)
        values.append(found.values)
        positions.append(found.positions)
    return torch.cat(keys), torch.cat(values), torch.cat(positions)
