"""The cache's other operations, timed: prefill compression, decode append, pages taken and given back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from leankv.bench.kernel_attention import layers_beyond_cache
from leankv.bench.paged import Mix, Paged, Shape, empty_paged, filled_paged, mixes, occupancy
from leankv.bench.timing import seconds
from leankv.kernels import pages as pg
from leankv.kernels.decode_rules import DecodeRule, StepInputs
from leankv.kernels.decode_step import make_room, plan_step
from leankv.kernels.prefill_compress import store_in_tiers
from leankv.kernels.scores import update_scores
from leankv.kernels.selectors import place_prompt, score_prompt, select_prompt
from leankv.kernels.store import Tokens, store
from leankv.serving.policies.registry import policy_named

Figures = dict[str, float | None]
RULE = DecodeRule("thresholds")
WINDOW = 64


def prefill_time(shape: Shape, context: int, device: torch.device) -> Figures:
    """One layer of one prompt: scores from the last 64 queries, tiers, pages, quantize and store; launched eagerly.

    Bytes: keys twice (scores, store), values once, and what is stored. `sdpa`: causal attention over the same prompt.
    """
    policy = policy_named("leankv")
    mix = mixes(shape.head_dim)["usual mix"]
    roomy = Mix("prompt", mix.layouts, (1.0, 1.0))
    paged = empty_paged(shape, roomy, 1, context, 1, device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    queries = torch.randn(context, shape.heads, shape.head_dim, device=device, dtype=dtype)
    keys, values = torch.randn(2, context, shape.kv_heads, shape.head_dim, device=device, dtype=dtype)
    positions = torch.arange(context, dtype=torch.int32, device=device)[:, None].expand(-1, shape.kv_heads).contiguous()
    rows, errors = paged.rows, torch.zeros(1, dtype=torch.int32, device=device)

    def compress() -> None:
        scores = score_prompt(policy, queries[-WINDOW:], keys, shape.scale)
        tiers = select_prompt(policy, scores)
        places, counts = place_prompt(policy, tiers)
        tokens = Tokens(keys, values, scores.T.contiguous(), positions)
        store_in_tiers(paged.pool, paged.tables, mix.layouts, rows, tokens, tiers, places, counts, errors=errors)

    elapsed = seconds(compress, device, lambda: pg.free(paged.tables, rows), graph=False)
    compress()
    counts = paged.tables.counts.sum(0).tolist()
    pairs = zip(counts, mix.layouts, strict=True)
    stored = sum(n * (layout.format.bytes_per_token(shape.head_dim) + layout.bookkeeping) for n, layout in pairs)
    moved = 2 * keys.nbytes + values.nbytes + stored
    return {"seconds": elapsed, "bytes": moved, "sdpa_seconds": _causal_attention(shape, queries, keys, values)}


def _causal_attention(shape: Shape, queries: Tensor, keys: Tensor, values: Tensor) -> float:
    q, k, v = (x.half().transpose(0, 1)[None] for x in (queries, keys, values))

    def attend() -> None:
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=shape.scale, enable_gqa=True)

    return seconds(attend, queries.device)


def append_time(shape: Shape, batch: int, context: int, device: torch.device) -> Figures:
    """One layer of LeanKV's decode step beside attention: decide, take pages, requantize, store, add to the scores.

    Bytes: score and position of every cached token, then every score read and written.
    """
    mix = mixes(shape.head_dim)["usual mix"]
    layers = layers_beyond_cache(batch * shape.kv_heads * sum(mix.held(context)) * 16, device)
    paged = filled_paged(shape, mix, batch, context, layers, device)
    step, rows = _inputs(paged, context), paged.rows
    before = paged.tables.counts.clone()
    keys, values = torch.randn(2, len(rows), 1, shape.head_dim, device=device)
    gains = torch.rand(len(rows), sum(mix.held(context)) + 1, device=device) / context
    zeros, errors = torch.zeros(len(rows), 1, device=device), torch.zeros(1, dtype=torch.int32, device=device)

    def append() -> None:
        plan = plan_step(paged.pool, paged.tables, mix.layouts, RULE, step)
        pg.resize(paged.tables, rows, plan.wanted)
        page, place = make_room(paged.pool, paged.tables, mix.layouts, RULE, rows, plan, errors)
        tokens = Tokens(keys, values, zeros, step.position[:, None])
        store(paged.pool, mix.layouts[0], page[:, None], place[:, None], tokens, errors=errors)
        update_scores(paged.pool, paged.tables, mix.layouts, step, gains, WINDOW)

    elapsed = seconds(append, device, lambda: pg.resize(paged.tables, rows, before)) / layers
    return {"seconds": elapsed, "bytes": batch * shape.kv_heads * sum(mix.held(context)) * (8 + 8)}


def page_times(shape: Shape, batch: int, context: int, layers: int, device: torch.device) -> dict[str, Figures]:
    """All layers at once: pages for whole contexts taken, given back, and one decode step's resize.

    Bytes: 4 a page in the free list and 4 in the table, 24 a row of counters.
    """
    paged = empty_paged(shape, mixes(shape.head_dim)["K8V4"], batch, context, layers, device, pool=False)
    wanted = occupancy(paged)
    rows = wanted[0]

    def give_back() -> None:
        pg.free(paged.tables, rows)

    def take() -> None:
        pg.resize(paged.tables, *wanted)

    taken = seconds(take, device, give_back)
    take()
    held = int(pg.pages_held(paged.tables.counts, paged.tables.tokens_per_page).sum())
    freed = seconds(give_back, device, take)
    before, more = paged.tables.counts.clone(), paged.tables.counts + torch.tensor([1, 0], device=device).int()
    step = seconds(lambda: pg.resize(paged.tables, rows, more), device, lambda: pg.resize(paged.tables, rows, before))
    counters = 24 * len(rows)
    return {
        "pages taken": {"seconds": taken, "bytes": 8 * held + counters},
        "pages freed": {"seconds": freed, "bytes": 8 * held + counters},
        "pages, decode step": {"seconds": step, "bytes": counters},
    }


def _inputs(paged: Paged, context: int) -> StepInputs:
    rows = paged.rows

    def filled(value: float, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.full((len(rows),), value, dtype=dtype, device=rows.device)

    alphas = filled(0.02, torch.float32), filled(1.0, torch.float32)
    return StepInputs(rows, filled(context), filled(context), *alphas, filled(0), filled(WINDOW))
