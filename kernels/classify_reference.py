"""LeanKV's two classification rules, one token at a time: the form to read."""

from __future__ import annotations

import torch
from torch import Tensor

HIGH, LOW, PRUNED = 0, 1, 2


def by_threshold(
    significance: Tensor, positions: Tensor, length: Tensor | int, prune_below: Tensor, low_below: Tensor, window: int
) -> Tensor:
    """See `classify.by_threshold`; the thresholds broadcast to [heads, T]."""
    shape = significance.shape
    columns = (significance, positions, torch.as_tensor(length), prune_below, low_below)
    flat = [torch.broadcast_to(column, shape).flatten().tolist() for column in columns]
    tiers = [_threshold(v, p, n, prune, low, window) for v, p, n, prune, low in zip(*flat, strict=True)]
    return torch.tensor(tiers, dtype=torch.int8).view(shape)


def _threshold(value: float, position: int, length: int, prune_below: float, low_below: float, window: int) -> int:
    if position < 0:
        return PRUNED
    if position >= length - window:
        return HIGH
    if value < prune_below:
        return PRUNED
    return LOW if value < low_below else HIGH


def by_mass(
    significance: Tensor, positions: Tensor, length: Tensor | int, prune_share: float, low_share: float, window: int
) -> Tensor:
    """See `classify.by_mass`."""
    lengths = torch.broadcast_to(torch.as_tensor(length), (significance.shape[0], 1)).flatten().tolist()
    tiers = torch.full(significance.shape, PRUNED, dtype=torch.int8)
    for head, length_of_head in enumerate(lengths):
        window_start = length_of_head - window
        tokens = [i for i in range(significance.shape[1]) if positions[head, i] >= 0]
        keys = [
            (int(positions[head, i]) >= window_start, float(significance[head, i]), int(positions[head, i]), i)
            for i in tokens
        ]
        ascending = [(exempt, mass, i) for exempt, mass, _, i in sorted(keys)]
        total = sum(mass for _, mass, _ in ascending)
        below = 0.0
        for exempt, mass, i in ascending:
            below += mass
            low = LOW if below <= low_share * total else HIGH
            tiers[head, i] = HIGH if exempt else PRUNED if below <= prune_share * total else low
    return tiers
