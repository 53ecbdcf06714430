"""How many pages a row (one layer and KV head of a request) can hold at most, from its policy and length alone.

The live scheduler knows page counts one step late, so it decides by these bounds; the simulator does the same where it
is to be held against it.
"""

from __future__ import annotations

import numpy as np

from leankv.serving.policies.budgets import MassTiers, Residual, Thresholds
from leankv.serving.policies.held_tokens import held_tokens
from leankv.serving.pool_plan import PolicyLayout

STEPS_UNSEEN = 1
"""Steps that have run since the count that the live scheduler knows."""


def most_pages(laid: PolicyLayout, prompt: int, tokens: int) -> int:
    """Pages of a row with `tokens` positions behind it, `prompt` of them a prompt that is complete.

    Exact for the rules whose sizes follow from lengths, but for windows that shrink by blocks, which count as full; for
    tiers by score, the costliest split.
    """
    held = held_tokens(laid.policy, prompt, tokens)
    if held is None:
        return -(-tokens // min(layout.tokens for layout in laid.tiers)) + len(laid.tiers) - 1
    if isinstance(laid.policy.budget, Residual):
        held = (min(tokens, laid.policy.budget.recent), *held[1:])
    return row_pages(laid, held)


def row_pages(laid: PolicyLayout, held: tuple[int, ...]) -> int:
    """Pages of a row that holds so many tokens by tier."""
    return sum([-(-count // layout.tokens) for count, layout in zip(held, laid.tiers, strict=True)])


def most_prompt_pages(laid: PolicyLayout, prompt: int) -> int:
    """Pages of a row at any moment while a prompt is computed: its staging pages or, where more, the compressed."""
    compressed = most_pages(laid, prompt, prompt)
    return compressed if laid.staging is None else max(-(-prompt // laid.staging.tokens), compressed)


def most_growth(laid: PolicyLayout) -> int:
    """Pages that one decode step adds to a row: a new token's, and one more where a step may classify anew."""
    return 2 if isinstance(laid.policy.budget, MassTiers) else 1


def most_pages_after(laid: PolicyLayout, steps: int) -> int:
    """Pages that any `steps` consecutive decode steps add to `most_pages`, or to what a row of known size holds."""
    budget = laid.policy.budget
    if isinstance(budget, Thresholds | MassTiers):
        return -(-steps // min(layout.tokens for layout in laid.tiers))
    if isinstance(budget, Residual):
        blocks = -(-steps // budget.block) * budget.block
        return row_pages(laid, (min(steps, budget.recent), blocks))
    return -(-steps // laid.tiers[0].tokens)


def most_pages_array(laid: PolicyLayout, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """`most_pages` for int64 arrays of one length."""
    pairs = zip(prompts.tolist(), tokens.tolist(), strict=True)
    return np.fromiter((most_pages(laid, prompt, length) for prompt, length in pairs), np.int64, len(prompts))


def most_prompt_pages_array(laid: PolicyLayout, prompts: np.ndarray) -> np.ndarray:
    """`most_prompt_pages` for an int64 array."""
    bounds = (most_prompt_pages(laid, prompt) for prompt in prompts.tolist())
    return np.fromiter(bounds, np.int64, len(prompts))
