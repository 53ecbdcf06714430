"""One decode step of the cache: which cached token gives way to the new one, for every request, layer and head at once.

LeanKV's five cases (arXiv 2412.03131, section 5), as far as the cache goes: at position p, L is the token of least
significance in the high tier outside the recent window, R the least of the low tier (each infinite if there is none,
ties to the older token).

    s(L) < alpha_low/p and s(L) < s(R)            OVERWRITE      the new token takes L's place; L is pruned
    s(L) < alpha_high/p and s(R) < alpha_low/p    DEMOTE_OVER    L is requantized over R; the new token takes L's place
    s(L) < alpha_high/p                           DEMOTE         L is requantized into a new low place; likewise
    else                                          APPEND         the new token is appended to the high tier

With fewer tokens than the window, L does not exist, which makes the first case of the published list an APPEND. The
window counts the new token. H2O and StreamingLLM are the same step with another victim (`DecodeRule`).

None of this needs the new key and value, so it runs once a step for all layers; `append_token` then stores each layer's.
"""

from __future__ import annotations

from torch import Tensor

from leankv.kernels import decode_step_reference, decode_step_torch
from leankv.kernels.decode_rules import DecodePlan, DecodeRule, StepInputs
from leankv.kernels.pages import PageTables
from leankv.kernels.paths import Path, path_for
from leankv.serving.pages import PageLayout


def plan_step(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, ...],
    rule: DecodeRule,
    step: StepInputs,
    path: Path | None = None,
) -> DecodePlan:
    """Decide the step for rows whose tiers have `layouts` (high, then low); reads scores and positions, writes nothing."""
    chosen = path_for(pool, path)
    if chosen == "reference":
        return decode_step_reference.plan(pool, tables, layouts, rule, step)
    if chosen == "torch":
        return decode_step_torch.plan(pool, tables, layouts, rule, step)
    from leankv.kernels import decode_step_triton

    return decode_step_triton.plan(pool, tables, layouts, rule, step)
