"""NumPy oracle of the live policies: a head's cache as a plain list of tokens, changed one token at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import HeavyRecent, KeepAll, MassTiers, Residual, SinkRecent, Thresholds, TopK

HIGH, LOW = 0, 1
F = np.float32


@dataclass
class Token:
    position: int
    tier: int
    total: np.float32
    seen: int

    @property
    def mean(self) -> np.float32:
        return F(self.total / F(self.seen)) if self.seen else F(0)


def prefill_sums(queries: np.ndarray, keys: np.ndarray, scale: float, window: int, group: str) -> np.ndarray:
    """[kv_heads, N] sums over the last `window` queries, from full causal attention in float64."""
    n, heads, _ = queries.shape
    ratio = heads // keys.shape[1]
    logits = np.einsum("qhd,khd->hqk", queries.astype(float), np.repeat(keys, ratio, 1).astype(float)) * scale
    logits[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    sums = (weights / weights.sum(-1, keepdims=True))[:, n - window :].sum(1).reshape(keys.shape[1], ratio, n)
    return (sums.max(1) if group == "max" else sums.mean(1)).astype(F)


class Head:
    """One KV head's cache under `policy`, from its prompt's scores on."""

    def __init__(self, policy: Policy, sums: np.ndarray) -> None:
        self.policy, self.prompt = policy, len(sums)
        window = policy.score.window if policy.score.source == "recent-window" else self.prompt
        tokens = [Token(i, HIGH, sums[i], min(self.prompt - i, window)) for i in range(self.prompt)]
        self.tokens = self._prefill(tokens)

    def _prefill(self, tokens: list[Token]) -> list[Token]:
        rule, n = self.policy.budget, self.prompt
        if isinstance(rule, KeepAll):
            return tokens
        if isinstance(rule, SinkRecent):
            return [t for t in tokens if t.position < rule.sink or t.position >= n - rule.recent]
        if isinstance(rule, Residual):
            blocks = 0
            while n - blocks * rule.block > rule.recent:
                blocks += 1
            for token in tokens[: blocks * rule.block]:
                token.tier = LOW
            return tokens
        if isinstance(rule, HeavyRecent):
            recent = math.ceil(rule.recent * n)
            keep = max(1, math.ceil((rule.heavy + rule.recent) * n)) - recent
            old = sorted(tokens[: n - recent], key=lambda t: (t.total, t.position))
            return old[len(old) - min(keep, len(old)) :] + tokens[n - recent :]
        if isinstance(rule, TopK):
            old, half = tokens[: n - rule.window], self.policy.score.pooling // 2
            pooled = {
                t.position: max(o.total for o in old[max(0, t.position - half) : t.position + half + 1]) for t in old
            }
            ranked = sorted(old, key=lambda t: (pooled[t.position], t.position))
            keep = rule.budget - rule.window
            return ranked[max(0, len(ranked) - keep) :] + tokens[max(0, n - rule.window) :]
        if isinstance(rule, MassTiers):
            return self._by_mass(tokens, n)
        assert isinstance(rule, Thresholds)
        kept = []
        for token in tokens:
            share = token.mean * F((token.position + 1) if rule.relative_to == "position" else n)
            if token.position < n - rule.window:
                if share < rule.alpha_low:
                    continue
                token.tier = LOW if share < rule.alpha_high else HIGH
            kept.append(token)
        return kept

    def _by_mass(self, tokens: list[Token], length: int) -> list[Token]:
        rule = self.policy.budget
        assert isinstance(rule, MassTiers)
        total, below, kept = sum(float(t.mean) for t in tokens), 0.0, []
        for token in sorted(tokens, key=lambda t: (t.mean, t.position)):
            if token.position >= length - rule.window:
                kept.append(token)
                continue
            below += float(token.mean)
            if below <= rule.prune * total:
                continue
            # Bits that were given up cannot be had back: a low token stays low.
            token.tier = LOW if below <= rule.low * total else token.tier
            kept.append(token)
        return kept

    def step(self, p: int) -> None:
        """Make room for the token at position p and take it in, without a score yet."""
        rule, new = self.policy.budget, Token(p, HIGH, F(0), 0)
        high = [t for t in self.tokens if t.tier == HIGH]
        if isinstance(rule, Thresholds):
            self._five_cases(rule, p)
        elif isinstance(rule, SinkRecent) and len(high) >= rule.sink + rule.recent:
            self.tokens.remove(min((t for t in high if t.position >= rule.sink), key=lambda t: t.position))
        elif isinstance(rule, HeavyRecent) and len(high) >= max(1, math.ceil((rule.heavy + rule.recent) * self.prompt)):
            recent = math.ceil(rule.recent * self.prompt)
            self.tokens.remove(min((t for t in high if t.position <= p - recent), key=lambda t: (t.total, t.position)))
        elif isinstance(rule, Residual) and len(high) == rule.recent:
            for token in sorted(high, key=lambda t: t.position)[: rule.block]:
                token.tier = LOW
        self.tokens.append(new)

    def _five_cases(self, rule: Thresholds, p: int) -> None:
        def least(tier: int, newest: int) -> Token | None:
            found = [t for t in self.tokens if t.tier == tier and t.position <= newest]
            return min(found, key=lambda t: (t.mean, t.position)) if found else None

        out, spare = least(HIGH, p - rule.window), least(LOW, p)
        s_l = out.mean if out else F(np.inf)
        s_r = spare.mean if spare else F(np.inf)
        low, high = F(rule.alpha_low) / F(p), F(rule.alpha_high) / F(p)
        if out and s_l < low and s_l < s_r:
            self.tokens.remove(out)
        elif out and spare and s_l < high and s_r < low:
            self.tokens.remove(spare)
            out.tier = LOW
        elif out and s_l < high:
            out.tier = LOW

    def attend(self, gains: np.ndarray) -> None:
        """The step's query gives token i `gains[i]`."""
        for token in self.tokens:
            token.total = F(token.total + gains[token.position])
            token.seen += 1

    def recompress(self, length: int) -> None:
        self.tokens = self._by_mass(self.tokens, length)

    def held(self) -> dict[int, int]:
        return {t.position: t.tier for t in self.tokens}
