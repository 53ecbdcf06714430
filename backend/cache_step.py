"""A decode step of the unified cache, for a batch under any mix of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.backend.cache_slots import slot_numbers
from leankv.kernels import pages as pg
from leankv.kernels.attention import LayerCache, TurnedCentres
from leankv.kernels.decode_rules import StepInputs
from leankv.kernels.decode_step import make_room, plan_step
from leankv.kernels.recompress import recompress
from leankv.kernels.scores import update_scores
from leankv.kernels.store import Tokens, store
from leankv.serving.policies.budgets import MassTiers

if TYPE_CHECKING:
    from leankv.backend.cache import KVCache


@dataclass(frozen=True, eq=False)
class Share:
    """A policy's share of a step: where its requests stand in the batch, and by layer its rows' inputs.

    page, place: int64 [layers, members, kv_heads] of the new tokens; the page is -1 for another policy's requests.
    positions, scores: int32 and float32 [members, kv_heads] of the new tokens.
    """

    policy: int
    members: Tensor
    inputs: tuple[StepInputs, ...]
    page: Tensor
    place: Tensor
    positions: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """slots: int32 [batch]. position: int32 [batch] of the new tokens.

    contributions: float32 [batch, kv_heads, capacity], where some policy keeps scores.
    """

    slots: Tensor
    position: Tensor
    shares: tuple[Share, ...]
    contributions: Tensor | None


def begin(cache: KVCache, slots: Tensor) -> Step:
    """See `KVCache.begin_step`: one plan a policy, then one resize for all, so that a shortage leaves all as it was."""
    position = cache.state.length[slots.clamp(min=0).long()]
    chosen = [_members(cache, slots, policy) for policy in range(len(cache.policies))]
    inputs = [_inputs(cache, member_slots) for _, member_slots in chosen]
    plans = [
        plan_step(cache.pool, cache.tables, laid.tiers, rule, rows, cache.path)
        for laid, rule, rows in zip(cache.policies, cache.rules, inputs, strict=True)
    ]
    wanted = torch.cat([plan.wanted for plan in plans])
    pg.resize(cache.tables, torch.cat([each.rows for each in inputs]), wanted, path=cache.path)
    shares = []
    for policy, (laid, (members, _), rows, plan) in enumerate(zip(cache.policies, chosen, inputs, plans, strict=True)):
        where = cache.pool, cache.tables, laid.tiers, cache.rules[policy]
        made = make_room(*where, rows.rows, plan, cache.errors, cache.path)
        page, place = (_by_layer(cache, each).view(cache.shape.layers, -1, cache.shape.kv_heads) for each in made)
        # A captured step runs on after a shortage: without rows it leaves the scores alone, too.
        going = replace(rows, rows=torch.where(pg.last_met(cache.tables), rows.rows, -1))
        positions = position[members, None].expand(page.shape[1:]).contiguous()
        scores = torch.zeros(positions.shape, device=positions.device)
        shares.append(Share(policy, members, _inputs_by_layer(cache, going), page, place, positions, scores))
    cache.state.advance(torch.where(pg.last_met(cache.tables), slots, -1))
    return Step(slots, position, tuple(shares), _contributions(cache, slots))


def store_new(cache: KVCache, step: Step, layer: int, keys: Tensor, values: Tensor) -> None:
    """Store the batch's new tokens of a layer where `begin` made room."""
    for share in step.shares:
        if not len(share.members):
            continue
        tokens = Tokens(_of_members(share, keys), _of_members(share, values), share.scores, share.positions)
        layout, transform = cache.policies[share.policy].tiers[0], cache.transform(share.policy, layer)
        store(cache.pool, layout, share.page[layer], share.place[layer], tokens, transform, cache.errors, cache.path)


def layer_view(cache: KVCache, layer: int) -> LayerCache:
    """One layer of the cache as attention reads it."""
    shape = (cache.tables.slots, cache.shape.layers, cache.shape.kv_heads, -1)
    return LayerCache(
        pool=cache.pool,
        layouts=cache.layouts,
        page_table=cache.tables.table.view(shape)[:, layer],
        token_counts=cache.tables.counts.view(shape)[:, layer],
        tier_formats=cache.state.formats,
        rotated=cache.state.rotated if cache.rotates else None,
        centres=_centres(cache, layer),
    )


def _centres(cache: KVCache, layer: int) -> TurnedCentres | None:
    transform = None if cache.turning is None else cache.turning[layer]
    if transform is None or transform.mean is None or transform.turns is None:
        return None
    return TurnedCentres(transform.mean, transform.turns, cache.state.turning, cache.state.length)


def update(cache: KVCache, step: Step, layer: int) -> None:
    """Add what the layer's queries gave to the scores of the policies that keep them."""
    for share in step.shares:
        laid = cache.policies[share.policy]
        if not laid.policy.bookkeeping or not len(share.members):
            continue
        assert step.contributions is not None
        gains = _of_members(share, step.contributions).flatten(0, 1)
        window = cache.rules[share.policy].score_window
        update_scores(cache.pool, cache.tables, laid.tiers, share.inputs[layer], gains, window, cache.path)


def recompress_due(cache: KVCache, slots: Sequence[int]) -> None:
    """Compress again the heads of those requests whose turn it is after this step."""
    for policy, laid in enumerate(cache.policies):
        budget = laid.policy.budget
        if not isinstance(budget, MassTiers):
            continue
        due = [s for s in slots if cache.requests[s].policy == policy and cache.requests[s].recompresses]
        if due:
            recompress_slots(cache, policy, budget, slot_numbers(due, cache.pool.device))


def recompress_slots(cache: KVCache, policy: int, budget: MassTiers, slots: Tensor) -> None:
    """Compress again all heads of `slots` int32 [n] (-1 is padding), as many at a time as the workspace holds."""
    high, low = cache.policies[policy].tiers
    window = cache.policies[policy].policy.score.window
    every, workspace = _inputs(cache, slots), cache.buffers.recompression if cache.path == "triton" else None
    at_once = workspace.rows if workspace else len(every.rows)
    for first in range(0, len(every.rows), at_once):
        some = StepInputs(*(getattr(every, name)[first : first + at_once] for name in StepInputs.__dataclass_fields__))
        where = cache.pool, cache.tables, (high, low)
        recompress(*where, budget, some, window, cache.errors, cache.path, workspace)


def _members(cache: KVCache, slots: Tensor, policy: int) -> tuple[Tensor, Tensor]:
    """Places in the batch and slots of a policy's requests.

    With kernels every place is a member, and the slots of others are -1: shapes must not depend on contents.
    """
    mine = (cache.state.policy[slots.clamp(min=0).long()] == policy) & (slots >= 0)
    if cache.path == "triton":
        return torch.arange(len(slots), device=slots.device), torch.where(mine, slots, -1).to(torch.int32)
    members = torch.nonzero(mine).flatten()
    return members, slots[members].to(torch.int32)


def _inputs(cache: KVCache, slots: Tensor) -> StepInputs:
    """Inputs of all rows of `slots` int32 [members], layer by layer, head by head."""
    state, slot = cache.state, slots.clamp(min=0).long()
    each = cache.shape.layers * cache.shape.kv_heads

    def by_row(of_slot: Tensor) -> Tensor:
        return of_slot[slot].repeat_interleave(each)

    return StepInputs(
        rows=pg.rows_of(cache.tables, slots).flatten(),
        position=by_row(state.length),
        prompt=by_row(state.prompt),
        alpha_low=by_row(state.alpha_low),
        alpha_high=by_row(state.alpha_high),
        capacity=by_row(state.capacity),
        recent=by_row(state.recent),
    )


def _of_members(share: Share, batch: Tensor) -> Tensor:
    """Rows of `batch` [batch, ...] that are a share's; no copy where all are."""
    return batch if len(share.members) == len(batch) else batch[share.members]


def _by_layer(cache: KVCache, column: Tensor) -> Tensor:
    """[layers, members * kv_heads], contiguous, out of [members * layers * kv_heads]: one copy a step, none a layer."""
    by_slot = column.view(-1, cache.shape.layers, cache.shape.kv_heads)
    return by_slot.transpose(0, 1).flatten(1).contiguous()


def _inputs_by_layer(cache: KVCache, inputs: StepInputs) -> tuple[StepInputs, ...]:
    columns = [_by_layer(cache, getattr(inputs, name)) for name in StepInputs.__dataclass_fields__]
    return tuple(StepInputs(*(column[layer] for column in columns)) for layer in range(cache.shape.layers))


def _contributions(cache: KVCache, slots: Tensor) -> Tensor | None:
    """Room for what each cached token is given, as wide as the longest request may get (on a CPU: is)."""
    if not any(laid.policy.bookkeeping for laid in cache.policies):
        return None
    if cache.path == "triton":
        assert cache.buffers.contributions is not None and len(slots) <= cache.largest_batch
        return cache.buffers.contributions[: len(slots)]
    rows = pg.rows_of(cache.tables, slots.to(torch.int32)).flatten()
    tokens = int(cache.tables.counts[rows.clamp(min=0)].sum(1).max())
    return torch.empty(len(slots), cache.shape.kv_heads, tokens, device=cache.pool.device)
