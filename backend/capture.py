"""A model's own queries, keys and values, after RoPE, as its attention sees them.

An attention function of our own is registered with transformers' AttentionInterface; what it records goes to the
`Captured` that the forward call carries among its keyword arguments, so nothing is global and nothing is patched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leankv.backend.weights import Loaded
from leankv.serving.errors import InputError

NAME = "leankv_capture"


@dataclass(frozen=True, eq=False)
class Captured:
    """One text of n tokens, by layer: queries [n, heads, head_dim], keys and values [n, kv_heads, head_dim].

    scale: of the softmax, by layer. All in the model's dtype.
    """

    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    @property
    def layers(self) -> int:
        return len(self.keys)

    @property
    def tokens(self) -> int:
        return len(self.keys[0])

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for of in (self.queries, self.keys, self.values) for each in of)

    def on_host(self) -> Captured:
        """In float32 in the host's memory."""
        queries, keys, values = ([x.cpu().float() for x in of] for of in (self.queries, self.keys, self.values))
        return Captured(queries, keys, values, self.scales)


def capture(loaded: Loaded, tokens: Tensor) -> Captured:
    """Run the model once over `tokens` int64 [n] and return what every layer's attention was given.

    Raises InputError for a model with layers that attend otherwise (a sliding window, no `AttentionInterface`).
    """
    _register()
    recorded = Captured()
    before = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation(NAME)
    try:
        with torch.inference_mode():
            # The base model: logits of every position would be the largest tensor of all, and nobody reads them.
            loaded.model.base_model(tokens[None].to(loaded.model.device), use_cache=False, leankv_captured=recorded)
    finally:
        loaded.model.set_attn_implementation(before)
    if recorded.layers != loaded.layers:
        raise InputError(
            f"{loaded.name}: only {recorded.layers} of {loaded.layers} layers use transformers' attention interface; "
            "choose another model"
        )
    return recorded


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attention)
    # No mask is built: the attention below is causal by itself.
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    leankv_captured: Captured,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if sliding_window is not None and sliding_window < key.shape[2]:
        raise InputError(
            f"a layer of the model attends to the last {sliding_window} tokens only, and a text of {key.shape[2]} is "
            "measured; measure shorter ones (calibrate: --max-context), or choose a model without a sliding window"
        )
    leankv_captured.queries.append(query[0].transpose(0, 1).contiguous())
    leankv_captured.keys.append(key[0].transpose(0, 1).contiguous())
    leankv_captured.values.append(value[0].transpose(0, 1).contiguous())
    leankv_captured.scales.append(scaling)
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None
