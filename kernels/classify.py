"""Which tier a cached token belongs to, by LeanKV's thresholds or by its share of the head's mass.

Tokens come as float32 significances and int32 positions, both [heads, T], in any order; position -1 marks an empty
place. Tokens of the last `window` positions below `length` always stay high. Results are int8 [heads, T]: HIGH, LOW or
PRUNED. `length` and the alphas are numbers or tensors [heads, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leankv.kernels import classify_reference
from leankv.kernels.paths import Path, path_for

HIGH, LOW, PRUNED = 0, 1, 2
ThresholdVariant = Literal["code", "paper"]


def by_threshold(
    significance: Tensor,
    positions: Tensor,
    length: Tensor | int,
    alpha_low: Tensor | float,
    alpha_high: Tensor | float,
    window: int = 64,
    variant: ThresholdVariant = "code",
    path: Path | None = None,
) -> Tensor:
    """LeanKV's prefill rule (arXiv 2412.03131): below alpha_low/n pruned, below alpha_high/n low, else high.

    n is `length` as in the released code, or with `variant="paper"` the token's own number, counted from one.
    """
    n = positions + 1 if variant == "paper" else _tensor(length, positions)
    uniform = 1 / n.float()
    below = (alpha_low * uniform, alpha_high * uniform)
    chosen = path_for(significance, path)
    if chosen == "reference":
        return classify_reference.by_threshold(significance, positions, length, *below, window)
    if chosen == "triton":
        from leankv.kernels import classify_triton

        return classify_triton.by_threshold(significance, positions, _tensor(length, positions), *below, window)
    low = torch.where(significance < below[1], LOW, HIGH)
    return _exempt(torch.where(significance < below[0], PRUNED, low), positions, length, window)


def by_mass(
    significance: Tensor,
    positions: Tensor,
    length: Tensor | int,
    prune_share: float,
    low_share: float,
    window: int = 64,
    path: Path | None = None,
) -> Tensor:
    """The least significant tokens up to `prune_share` of the head's mass pruned, up to `low_share` low, others high.

    Sorted ascending, ties to the older token, cut-offs inclusive. A head's mass is the sum of all its significances,
    those of the exempt window included.
    """
    chosen = path_for(significance, path)
    if chosen == "reference":
        return classify_reference.by_mass(significance, positions, length, prune_share, low_share, window)
    if chosen == "triton":
        from leankv.kernels import classify_triton

        length = _tensor(length, positions)
        return classify_triton.by_mass(significance, positions, length, prune_share, low_share, window)
    exempt = (positions < 0) | (positions >= length - window)
    order = _ascending(significance.masked_fill(exempt, torch.inf), positions)
    held = significance.double().masked_fill(positions < 0, 0)
    mass = torch.gather(held, 1, order).cumsum(1)
    total = mass[:, -1:]
    low = torch.where(mass <= low_share * total, LOW, HIGH)
    tiers = torch.where(mass <= prune_share * total, PRUNED, low)
    return _exempt(torch.empty_like(tiers).scatter_(1, order, tiers), positions, length, window)


def keep_largest(scores: Tensor, positions: Tensor, keep: int) -> Tensor:
    """HIGH for the `keep` tokens of the largest scores of each head, PRUNED for the others and for empty places.

    Of equal scores the younger token is kept.
    """
    order = _ascending(scores.masked_fill(positions < 0, -torch.inf), positions)
    number = torch.arange(order.shape[1], device=order.device).expand_as(order)
    kept = torch.empty_like(order).scatter_(1, order, number) >= order.shape[1] - keep
    return torch.where(kept & (positions >= 0), HIGH, PRUNED).to(torch.int8)


def ranks(tiers: Tensor) -> tuple[Tensor, Tensor]:
    """Dense place of every token within its tier, in the order given, and tokens a tier.

    tiers int8 [heads, T] -> int32 [heads, T] (-1 where pruned), int32 [heads, 2]
    """
    member = torch.stack([tiers == HIGH, tiers == LOW], 1)
    running = member.cumsum(2, dtype=torch.int32)
    place = torch.where(member, running, 0).sum(1, dtype=torch.int32) - 1
    return place, running[:, :, -1].contiguous()


def _ascending(keys: Tensor, positions: Tensor) -> Tensor:
    """Order of the tokens by (key, position)."""
    by_position = positions.argsort(dim=1, stable=True)
    by_key = torch.gather(keys, 1, by_position).argsort(dim=1, stable=True)
    return torch.gather(by_position, 1, by_key)


def _tensor(length: Tensor | int, beside: Tensor) -> Tensor:
    """int32 on the device of `beside`; a number becomes [1, 1] without a copy from the host."""
    if isinstance(length, Tensor):
        return length
    return torch.full((1, 1), length, dtype=torch.int32, device=beside.device)


def _exempt(tiers: Tensor, positions: Tensor, length: Tensor | int, window: int) -> Tensor:
    tiers = torch.where(positions >= length - window, HIGH, tiers)
    return torch.where(positions < 0, PRUNED, tiers).to(torch.int8)
