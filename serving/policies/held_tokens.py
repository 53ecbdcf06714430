"""Tokens that a head holds, tier by tier, where a policy's rule makes them follow from lengths alone."""

from __future__ import annotations

from math import ceil

import numpy as np

from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import HeavyRecent, KeepAll, Residual, SinkRecent, TopK


def capacity(policy: Policy, prompt: int) -> int:
    """Tokens that a head may hold after a prompt of `prompt` tokens, for the rules that hold their size; else 0."""
    match policy.budget:
        case SinkRecent(sink=sink, recent=recent):
            return sink + recent
        case HeavyRecent(heavy=heavy, recent=recent):
            return max(1, ceil(min(1.0, heavy + recent) * prompt))
    return 0


def residual_low(budget: Residual, tokens: int) -> int:
    """How many of `tokens` tokens have left the window in full precision: whole blocks, the oldest first."""
    return max(0, -(-(tokens - budget.recent) // budget.block)) * budget.block


def blocked_tokens(policy: Policy, chunk: int, context: int) -> int:
    """Tokens that leave a window in full precision for quantized blocks as `chunk` prompt tokens come after `context`.

    0 for policies without such a window.
    """
    if not isinstance(policy.budget, Residual):
        return 0
    return residual_low(policy.budget, context + chunk) - residual_low(policy.budget, context)


def held_tokens(policy: Policy, prompt: int, tokens: int) -> tuple[int, ...] | None:
    """By tier, with `tokens` positions behind a head, `prompt` of them a complete prompt; None where scores decide."""
    match policy.budget:
        case KeepAll():
            return (tokens,)
        case Residual() as budget:
            low = residual_low(budget, tokens)
            return (tokens - low, low)
        case TopK(budget=kept):
            return (min(prompt, kept) + tokens - prompt,)
        case SinkRecent() | HeavyRecent():
            return (min(tokens, capacity(policy, prompt)),)
    return None


def residual_tokens_array(budget: Residual, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`held_tokens` of such a rule for an int64 array."""
    low = np.maximum(0, -(-(tokens - budget.recent) // budget.block)) * budget.block
    return tokens - low, low
