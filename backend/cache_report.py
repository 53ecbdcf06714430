"""What LeanKV's cache makes of a real model's keys and values: attention error and compression, by layer and head.

A model runs over real texts once, uncompressed; its post-RoPE queries, keys and values are captured. Each setting then
stores the prompts in the cache itself, pages and all, and decodes the tokens that follow through it, teacher-forced:
queries, keys and values are the uncompressed model's, so the error of a layer is its own and none is inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.backend.capture import Captured
from leankv.kernels import pages as pg
from leankv.serving.errors import InputError
from leankv.serving.formats import FP16, format_named
from leankv.serving.policies.base import Policy, Tier
from leankv.serving.policies.registry import policy_named

UNIFORM = ("fp8", "int8", "int4", "kivi:bits=4", "kivi:bits=2")
UNIFORM_FORMATS = ("K8V4", "K4V8", "K4V2", "K2V4")
GRID = ((0.0, 0.0), (0.0, 1.0), (0.02, 1.0), (0.04, 0.04), (0.0, 3.0), (0.2, 3.0))
"""(alpha_low, alpha_high): all high, the published calibrations, and beyond them."""
QUICK = ("fp8", "int4", "kivi:bits=4", "kivi:bits=2", "K8V4 uniform", "leankv 0.02/1", "leankv 0.2/3", "leankv-r")
"""The report's lines that tell most."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Setting:
    """One line of the report: a policy under the name that the table shows."""

    label: str
    policy: Policy


@dataclass(frozen=True, eq=False)
class HeadFigures:
    """What one setting did, on the CPU.

    error    float64 [layers, heads]: norm of the output's deviation from float64 attention over the uncompressed keys
             and values, over that attention's norm, all decode queries of all texts together
    nominal, physical  float64 [layers, kv_heads]: uncompressed FP16 bytes over payload bits, over pages held, after
             the last decode step
    kept     float64 [layers, kv_heads, 2]: share of the positions in the high and the low tier, likewise
    """

    label: str
    error: Tensor
    nominal: Tensor
    physical: Tensor
    kept: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Totals and every head, as plain numbers; ratios of totals are of all bytes together."""
        return {
            "setting": self.label,
            "mean_error": float(self.error.mean()),
            "median_error": float(self.error.median()),
            "max_error": float(self.error.max()),
            "nominal_ratio": float(1 / (1 / self.nominal).mean()),
            "physical_ratio": float(1 / (1 / self.physical).mean()),
            "kept_shares": self.kept.mean((0, 1)).tolist(),
            "error_by_layer_and_head": self.error.tolist(),
            "nominal_by_layer_and_kv_head": self.nominal.tolist(),
            "physical_by_layer_and_kv_head": self.physical.tolist(),
            "kept_by_layer_kv_head_and_tier": self.kept.tolist(),
        }


def settings(grid: Sequence[tuple[float, float]], others: Sequence[str] = ()) -> list[Setting]:
    """The report's lines: uniform formats, `leankv` over a grid of (alpha_low, alpha_high), `leankv-r`, then `others`.

    Raises InputError for a threshold out of order or a policy that does not run live.
    """
    lines = [Setting(name, policy_named(name)) for name in UNIFORM]
    lines += [Setting(f"{name} uniform", _uniform(name)) for name in UNIFORM_FORMATS]
    for low, high in grid:
        lines.append(Setting(f"leankv {low:g}/{high:g}", policy_named(f"leankv:alpha_low={low},alpha_high={high}")))
    lines.append(Setting("leankv-r", policy_named("leankv-r")))
    lines += [Setting(name, policy_named(name)) for name in others]
    for line in lines:
        if not line.policy.live:
            raise InputError(f"policy {line.label!r} does not run live; choose one that does")
    return lines


def _uniform(format: str) -> Policy:
    """Every token in one format, without bookkeeping: what the format alone does."""
    return replace(policy_named("int8"), name=format, tiers=(Tier("all", format_named(format)),))


def shape_of(captured: Captured) -> CacheShape:
    _, heads, head_dim = captured.queries[0].shape
    return CacheShape(captured.layers, heads, captured.keys[0].shape[1], head_dim)


def exact_outputs(captured: Captured, prompt: int) -> Tensor:
    """Float64 attention of every token after the prompt: [layers, steps, heads, head_dim]."""
    layers = zip(captured.queries, captured.keys, captured.values, captured.scales, strict=True)
    return torch.stack([_exact(q[prompt:], k, v, scale) for q, k, v, scale in layers])


def _exact(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    steps, heads, head_dim = queries.shape
    tokens, kv_heads, _ = keys.shape
    by_head = queries.double().unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
    logits = by_head @ keys.double().permute(1, 2, 0) * scale
    beyond = torch.arange(tokens) > torch.arange(tokens - steps, tokens)[:, None]
    weights = logits.unflatten(1, (-1, steps)).masked_fill(beyond, -torch.inf).softmax(-1)
    outputs = weights.flatten(1, 2) @ values.double().transpose(0, 1)
    return outputs.unflatten(1, (-1, steps)).permute(2, 0, 1, 3).reshape(steps, heads, head_dim)


def filled_cache(policy: Policy, texts: Sequence[Captured], prompt: int, key_means: KeyMeans) -> KVCache:
    """A cache that holds the first `prompt` tokens of each text, in slots 0, 1, ...; whole prompts, unstaged."""
    shape, longest = shape_of(texts[0]), texts[0].tokens
    memory = 2 * len(texts) * (longest + 256) * shape.layers * shape.kv_heads * FP16.payload_bytes(shape.head_dim)
    cache = KVCache(
        shape, [policy], slots=len(texts), memory_bytes=memory + (1 << 22), max_tokens=longest, key_means=key_means
    )
    for slot, text in enumerate(texts):
        cache.admit(slot, prompt)
        cache.begin_chunk(slot, prompt)
        for layer in range(shape.layers):
            queries, keys, values = (part[layer][:prompt] for part in (text.queries, text.keys, text.values))
            cache.store_chunk(slot, layer, queries, keys, values, text.scales[layer])
        cache.end_chunk(slot, prompt)
    assert cache.met, "the pool was sized for all of it"
    return cache


def measure(
    setting: Setting,
    texts: Sequence[Captured],
    exact: Sequence[Tensor],
    prompt: int,
    key_means: KeyMeans,
    progress: Progress | None = None,
) -> HeadFigures:
    """Run one setting. texts: captured, all of one length; exact: `exact_outputs` of each."""
    cache = filled_cache(setting.policy, texts, prompt, key_means)
    steps = texts[0].tokens - prompt
    squares = torch.zeros(cache.shape.layers, cache.shape.heads, dtype=torch.float64)
    for step in range(steps):
        expected = torch.stack([each[:, step] for each in exact], 1)
        squares += (_decode(cache, texts, prompt + step) - expected).square().sum((1, 3))
        if progress:
            progress((step + 1) / steps)
    total = sum(each.square().sum((1, 3)) for each in exact)
    nominal, physical, kept = compression(cache, texts[0].tokens)
    return HeadFigures(setting.label, (squares / total).sqrt(), nominal, physical, kept)


def _decode(cache: KVCache, texts: Sequence[Captured], position: int) -> Tensor:
    """One step of all texts: outputs float64 [layers, texts, heads, head_dim]."""
    slots = list(range(len(texts)))
    cache.prepare_step(slots)
    cache.begin_step(torch.tensor(slots, dtype=torch.int32))
    outputs = []
    for layer, scale in enumerate(texts[0].scales):
        queries = torch.stack([text.queries[layer][position] for text in texts])
        keys = torch.stack([text.keys[layer][position] for text in texts])
        values = torch.stack([text.values[layer][position] for text in texts])
        outputs.append(cache.decode(layer, queries, keys, values, scale).double())
    assert cache.met, "the pool was sized for all of it"
    cache.end_step(slots)
    return torch.stack(outputs)


def compression(cache: KVCache, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nominal and physical ratio float64 [layers, kv_heads] and shares kept [layers, kv_heads, 2], over all slots."""
    shape = cache.shape
    by_row = (cache.tables.slots, shape.layers, shape.kv_heads, 2)
    counts = cache.tables.counts.view(by_row)
    held = pg.pages_held(cache.tables.counts, cache.tables.tokens_per_page).view(by_row)
    payload = [0.0, 0.0]
    for tier, layout in enumerate(cache.policies[0].tiers):
        payload[tier] = layout.format.payload_bytes(shape.head_dim)
    positions = cache.tables.slots * context
    plain = positions * FP16.payload_bytes(shape.head_dim)
    tokens = counts.sum(0).double()
    nominal = plain / (tokens * torch.tensor(payload, dtype=torch.float64)).sum(-1)
    physical = plain / (held.sum((0, 3)).double() * cache.page_bytes)
    return nominal, physical, tokens / positions
