"""Any Hugging Face causal model over the unified cache: one attention function for packed batches.

A forward call carries one row of tokens: first one token of each decoding request, then the prompts' chunks one after
another. What belongs to whom travels in a `Packed` among the call's keyword arguments, so nothing is global.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from leankv.backend.cache import KVCache
from leankv.serving.errors import InputError

NAME = "leankv_cache"


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` of the row are the next chunk of the prompt in `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Packed:
    """One step: the first `decoding` tokens in the order of the cache's step, then the chunks.

    windows: gets the length of every sliding window that a layer attends to; see `past_window`. masks: by (chunk,
    prefix) length, shared by the layers.
    """

    cache: KVCache
    decoding: int
    chunks: tuple[Span, ...]
    windows: set[int]
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def mask(self, chunk: int, prefix: int, device: torch.device) -> Tensor:
        """As a mask [chunk, prefix + chunk]: a chunk's token sees the prefix, the chunk's earlier tokens and itself."""
        if (chunk, prefix) not in self.masks:
            self.masks[chunk, prefix] = _mask(chunk, prefix, device)
        return self.masks[chunk, prefix]


def _mask(chunk: int, prefix: int, device: torch.device) -> Tensor:
    """bool on a CPU; on a GPU the bias that stands for it, since no fused kernel takes a mask beside grouped heads.

    With the bias, torch calls flash attention, whose causality is lower-right and which groups heads by itself; in
    float32 or at a head size that flash attention lacks, torch makes the mask after all.
    """
    if device.type == "cuda":
        return causal_lower_right(chunk, prefix + chunk)
    return torch.ones(chunk, prefix + chunk, dtype=torch.bool, device=device).tril(prefix)


def attend_through_cache(model: Any) -> None:
    """Let every attention layer of `model` go through the cache: its calls need `leankv_step`, a `Packed`."""
    from transformers import AttentionInterface

    # Without a mask function of this name none is built (who sees whom follows from the packing), and transformers does
    # not ask the device whether positions are packed.
    AttentionInterface.register(NAME, _attention)
    model.set_attn_implementation(NAME)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    leankv_step: Packed,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, head_dim], key and value [1, kv_heads, T, head_dim]; returns [1, T, heads, head_dim]."""
    require_plain(others)
    if sliding_window is not None:
        leankv_step.windows.add(sliding_window)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    decoded = None
    if n := leankv_step.decoding:
        new_queries, new_keys, new_values = (x[:n].contiguous() for x in (queries, keys, values))
        decoded = leankv_step.cache.decode(layer, new_queries, new_keys, new_values, scaling)
        if not leankv_step.chunks:
            return decoded[None], None
    output = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    if decoded is not None:
        output[:n] = decoded
    for span in leankv_step.chunks:
        at = slice(span.start, span.stop)
        output[at] = _prefill(leankv_step, span.slot, layer, queries[at], keys[at], values[at], scaling)
    return output[None], None


def _prefill(
    step: Packed, slot: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float
) -> Tensor:
    """Attention of a chunk over the prompt so far; then its keys and values go into the cache."""
    earlier_keys, earlier_values = step.cache.prefix(slot, layer)
    prefix = len(earlier_keys)
    all_keys, all_values = keys, values
    if prefix:
        all_keys = torch.cat([earlier_keys.to(keys.dtype), keys])
        all_values = torch.cat([earlier_values.to(values.dtype), values])
    q, k, v = (x.transpose(0, 1)[None] for x in (queries, all_keys, all_values))
    output = functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=step.mask(len(keys), prefix, keys.device) if prefix else None,
        is_causal=not prefix,
        scale=scale,
        enable_gqa=True,
    )
    step.cache.store_chunk(slot, layer, queries, keys, values, scale)
    return output[0].transpose(0, 1)


def require_plain(others: dict[str, Any]) -> None:
    """Raise InputError for attention that the cache does not compute."""
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise InputError(
                f"the model's attention has {name}, which the cache does not compute; choose another model"
            )


def past_window(windows: set[int], positions: int) -> str | None:
    """Why a request of so many positions cannot be served: a sliding window would cut it. None where it can."""
    if not windows or positions <= min(windows):
        return None
    return (
        f"{positions} tokens pass the sliding window of some layers ({min(windows)}), and the cache does not slide; "
        "cap the lengths (--max-prompt, --max-output) or choose another model"
    )
