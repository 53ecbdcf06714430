"""How many pages a row (one layer and KV head of a request) can hold at most, from its policy and length alone."""

from __future__ import annotations

from leankv.backend.cache_plan import PolicyLayout
from leankv.kernels.selectors import capacity, residual_low
from leankv.serving.policies.budgets import KeepAll, MassTiers, Residual, SinkRecent, Thresholds, TopK


def most_pages(laid: PolicyLayout, prompt: int, tokens: int) -> int:
    """Pages of a row with `tokens` positions behind it, `prompt` of them a prompt that is complete.

    Exact for the rules whose sizes follow from lengths; for tiers by score, the costliest split.
    """
    budget = laid.policy.budget
    per_page = [layout.tokens for layout in laid.tiers]
    match budget:
        case Thresholds() | MassTiers():
            return -(-tokens // min(per_page)) + len(per_page) - 1
        case Residual(recent=recent):
            held = [min(tokens, recent), residual_low(budget, tokens)]
        case SinkRecent(sink=sink, recent=recent):
            held = [min(tokens, sink + recent)]
        case TopK(budget=kept):
            held = [min(prompt, kept) + tokens - prompt]
        case KeepAll():
            held = [tokens]
        case _:
            held = [min(tokens, capacity(laid.policy, prompt))]
    return sum(-(-count // per) for count, per in zip(held, per_page, strict=False))


def most_prompt_pages(laid: PolicyLayout, prompt: int) -> int:
    """Pages of a row at any moment while a prompt is computed: its staging pages or, where more, the compressed."""
    compressed = most_pages(laid, prompt, prompt)
    return compressed if laid.staging is None else max(-(-prompt // laid.staging.tokens), compressed)


def most_growth(laid: PolicyLayout) -> int:
    """Pages that one decode step adds to a row: a new token's, and one more where a step may classify anew."""
    return 2 if isinstance(laid.policy.budget, MassTiers) else 1
