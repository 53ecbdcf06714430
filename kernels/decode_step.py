"""One decode step of the cache: which cached token gives way to the new one, for every request, layer and head at once.

LeanKV's five cases (arXiv 2412.03131, section 5), as far as the cache goes: at position p, L is the token of least
significance in the high tier outside the recent window, R the least of the low tier (each infinite if there is
none, ties to the older token).

    s(L) < alpha_low/p and s(L) < s(R)            OVERWRITE      the new token takes L's place; L is pruned
    s(L) < alpha_high/p and s(R) < alpha_low/p    DEMOTE_OVER    L is requantized over R; the new token takes L's place
    s(L) < alpha_high/p                           DEMOTE         L is requantized into a new low place; likewise
    else                                          APPEND         the new token is appended to the high tier

With fewer tokens than the window, L does not exist, which makes the first case of the published list an APPEND. The
window counts the new token. H2O and StreamingLLM are the same step with another victim (`DecodeRule`).

None of this needs the new key and value, so it runs once a step for all layers; each layer's token is then stored at
the place that `make_room` gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leankv.kernels import decode_step_reference, decode_step_torch
from leankv.kernels.decode_rules import DEMOTE_OVER, DecodePlan, DecodeRule, StepInputs
from leankv.kernels.layout import HIGH, LOW, locate
from leankv.kernels.pages import PageTables, last_met
from leankv.kernels.paths import Path, path_for
from leankv.kernels.store import gather, store
from leankv.serving.pages import PageLayout


def plan_step(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, ...],
    rule: DecodeRule,
    step: StepInputs,
    path: Path | None = None,
) -> DecodePlan:
    """Decide the step for rows whose tiers have `layouts` (high, then low); writes nothing."""
    chosen = path_for(pool, path)
    if chosen == "reference":
        return decode_step_reference.plan(pool, tables, layouts, rule, step)
    if chosen == "torch":
        return decode_step_torch.plan(pool, tables, layouts, rule, step)
    from leankv.kernels import decode_step_triton

    return decode_step_triton.plan(pool, tables, layouts, rule, step)


def make_room(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, ...],
    rule: DecodeRule,
    rows: Tensor,
    plan: DecodePlan,
    errors: Tensor | None = None,
    path: Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Carry a plan out after `pages.resize` to `plan.wanted`: requantize the demoted tokens, with score and position.

    Returns page and place (int64 [n]) of each row's new token; the page is -1 for padding, and for every row if the
    pages did not suffice: then nothing is written.
    """
    going = last_met(tables) & (rows >= 0)
    table = tables.table[rows.clamp(min=0)]
    if rule.kind == "thresholds":
        demoted = going & (plan.case >= DEMOTE_OVER)
        source = _location(table, plan.place, HIGH, layouts[HIGH], demoted)
        target = _location(table, plan.spare, LOW, layouts[LOW], demoted)
        # Keys stay as they are stored, centred or rotated, so no transform applies on the way.
        tokens = gather(pool, layouts[HIGH], source[0][:, None], source[1][:, None], path=path)
        store(pool, layouts[LOW], target[0][:, None], target[1][:, None], tokens, errors=errors, path=path)
    return _location(table, plan.place, HIGH, layouts[HIGH], going)


def _location(table: Tensor, token: Tensor, tier: int, layout: PageLayout, there: Tensor) -> tuple[Tensor, Tensor]:
    page, place = locate(table, token.clamp(min=0)[:, None], tier, layout)
    return torch.where(there, page[:, 0], -1), place[:, 0]
