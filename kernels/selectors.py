"""A policy's specification carried out: what becomes of a prompt's tokens, and which rule its decode steps follow.

`leankv.serving.policies` says what a policy keeps; here that becomes tiers of tokens. Every live policy goes through
these functions, so a policy is data. Deviations from a paper are stated with the policy.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from leankv.kernels.classify import (
    HIGH,
    LOW,
    PRUNED,
    ThresholdVariant,
    by_mass,
    by_threshold,
    keep_largest,
    ranks,
)
from leankv.kernels.decode_rules import DecodeRule
from leankv.kernels.paths import Path
from leankv.kernels.significance import prefill_scores, queries_seen
from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import HeavyRecent, KeepAll, MassTiers, Residual, SinkRecent, Thresholds, TopK
from leankv.serving.policies.held_tokens import capacity, residual_low

ALL_QUERIES = 1 << 30
"""Score window of a policy that scores every query."""


def scored_queries(policy: Policy, tokens: int) -> int:
    """How many of the last queries of a prompt (or of a chunk of it) the policy scores."""
    if policy.score.source == "none":
        return 0
    return tokens if policy.score.source == "all-queries" else min(policy.score.window, tokens)


def score_prompt(policy: Policy, queries: Tensor, keys: Tensor, scale: float, path: Path | None = None) -> Tensor:
    """Attention sums float32 [kv_heads, N] of queries [W, heads, head_dim] on keys [N, kv_heads, head_dim]."""
    return prefill_scores(queries, keys, scale, policy.score.over_group, path)


def select_prompt(policy: Policy, scores: Tensor, path: Path | None = None) -> Tensor:
    """Tier of every prompt token: int8 [kv_heads, N], HIGH, LOW or PRUNED.

    scores: float32 [kv_heads, N] as `score_prompt` gives them; only their shape matters to rules that use no score.
    """
    budget = policy.budget
    heads, tokens = scores.shape
    positions = torch.arange(tokens, dtype=torch.int32, device=scores.device).expand(heads, tokens)
    if isinstance(budget, Thresholds | MassTiers):
        significance = scores / queries_seen(tokens, policy.score.window, scores.device)
        if isinstance(budget, MassTiers):
            return by_mass(significance, positions, tokens, budget.prune, budget.low, budget.window, path)
        variant: ThresholdVariant = "paper" if budget.relative_to == "position" else "code"
        alphas = (budget.alpha_low, budget.alpha_high)
        return by_threshold(significance, positions, tokens, *alphas, budget.window, variant, path)
    if isinstance(budget, HeavyRecent):
        recent = positions >= tokens - recent_tokens(policy, tokens)
        return keep_largest(scores.masked_fill(recent, torch.inf), positions, capacity(policy, tokens))
    if isinstance(budget, TopK):
        recent = positions >= tokens - budget.window
        pooled = _max_pool(scores.masked_fill(recent, -torch.inf), policy.score.pooling)
        return keep_largest(pooled.masked_fill(recent, torch.inf), positions, budget.budget)
    return _by_position(policy, positions, tokens)


def place_prompt(policy: Policy, tiers: Tensor) -> tuple[Tensor, Tensor]:
    """Place of every token within its tier, int32 [kv_heads, N] (-1: pruned), and tokens a tier, int32 [kv_heads, 2].

    Dense in the order of positions, except that StreamingLLM's recent tokens lie where its ring would have put them.
    """
    places, counts = ranks(tiers)
    if isinstance(policy.budget, SinkRecent):
        positions = torch.arange(tiers.shape[1], dtype=torch.int32, device=tiers.device)
        places = torch.where(tiers == HIGH, ring_place(policy.budget, positions), -1).to(torch.int32)
    return places, counts


def ring_place(budget: SinkRecent, positions: Tensor) -> Tensor:
    """Where a token of the given position lies: the sinks first, then a ring of the recent tokens."""
    return torch.where(positions < budget.sink, positions, budget.sink + (positions - budget.sink) % budget.recent)


def decode_rule(policy: Policy) -> DecodeRule:
    """Who gives way in a decode step under this policy. Raises TypeError for a policy that does not run live."""
    window = policy.score.window
    match policy.budget:
        case Thresholds():
            return DecodeRule("thresholds", score_window=window)
        case HeavyRecent():
            return DecodeRule("heavy", score_window=window or ALL_QUERIES)
        case SinkRecent(sink=sink):
            return DecodeRule("ring", sink=sink)
        case KeepAll() | Residual() | TopK() | MassTiers():
            return DecodeRule("append", score_window=window)
    raise TypeError(f"{policy.name} has no live selector")


def recent_tokens(policy: Policy, prompt: int) -> int:
    """Tokens of the recent window after a prompt of `prompt` tokens, for the rules that have one; else 0."""
    match policy.budget:
        case Thresholds(window=window) | MassTiers(window=window):
            return window
        case HeavyRecent(recent=recent):
            return min(capacity(policy, prompt), ceil(recent * prompt))
    return 0


def _by_position(policy: Policy, positions: Tensor, tokens: int) -> Tensor:
    match policy.budget:
        case SinkRecent(sink=sink, recent=recent):
            kept = (positions < sink) | (positions >= tokens - recent)
            return torch.where(kept, HIGH, PRUNED).to(torch.int8)
        case Residual() as residual:
            return torch.where(positions < residual_low(residual, tokens), LOW, HIGH).to(torch.int8)
    return torch.full_like(positions, HIGH, dtype=torch.int8)


def _max_pool(scores: Tensor, width: int) -> Tensor:
    if width <= 1:
        return scores
    return torch.nn.functional.max_pool1d(scores[None], width, stride=1, padding=width // 2)[0, :, : scores.shape[1]]
