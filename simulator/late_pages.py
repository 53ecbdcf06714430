"""The pages of a request as the live engine knows them: by counts that are one step old, and by bounds from lengths.

The live scheduler never waits for a count, so it admits and preempts by what a request may hold at most
(`leankv.serving.page_bounds`). A simulation that is to be held against it decides by the same numbers; what it reports
stays what is really held.
"""

from __future__ import annotations

import numpy as np

from leankv.serving.memory import MemoryModel
from leankv.serving.page_bounds import (
    STEPS_UNSEEN,
    most_growth,
    most_pages,
    most_pages_after,
    most_pages_array,
    most_prompt_pages,
    most_prompt_pages_array,
    row_pages,
)
from leankv.serving.policies.budgets import KeepAll, Residual
from leankv.serving.policies.held_tokens import held_tokens, residual_tokens_array
from leankv.serving.pool_plan import live_layout


class LatePages:
    """A policy's pages on one model, as the live account bounds them (`pages`, ...) and as they are (`held`, ...).

    A policy that does not run live has no bounds of its own; its memory model's pages stand for them. growth: pages
    that a step adds at most. shrinks: whether a request may hold less after a step than before. replays: whether a
    preempted request computes its prompt alone and is fed its generated tokens again step by step.
    """

    def __init__(self, memory: MemoryModel) -> None:
        policy = memory.policy
        self.memory = memory
        self.heads = memory.heads
        self.laid = live_layout(policy, memory.model.head_dim) if policy.live else None
        self.growth = self.heads * (1 if self.laid is None else most_growth(self.laid))
        self.shrinks = isinstance(policy.budget, Residual)
        self.replays = not isinstance(policy.budget, KeepAll)
        self._by_length = self.laid is not None and held_tokens(policy, 1, 1) is not None

    def pages(self, prompt: int, context: int) -> int:
        """Most pages by the policy's rule at `context` >= `prompt` positions."""
        if self.laid is None:
            return self.memory.pages(prompt, context)
        return self.heads * most_pages(self.laid, prompt, context)

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """`pages` for int64 arrays of one length."""
        if self.laid is None:
            return self.memory.pages_array(prompts, contexts)
        return self.heads * most_pages_array(self.laid, prompts, contexts)

    def prefill_pages(self, prompt: int, done: int) -> int:
        """Most pages while a prompt is computed, whatever is `done` of it."""
        if self.laid is None:
            return self.memory.prefill_pages(prompt, prompt)
        return self.heads * most_prompt_pages(self.laid, prompt)

    def prefill_pages_array(self, prompts: np.ndarray) -> np.ndarray:
        """`prefill_pages` for an int64 array."""
        if self.laid is None:
            return self.memory.prefill_pages_array(prompts)
        return self.heads * most_prompt_pages_array(self.laid, prompts)

    def seen(self, prompt: int, context: int) -> int:
        """Most pages with the next token, when that makes `context`; a count of two tokens before has arrived."""
        counted = self.held(prompt, context - 1 - STEPS_UNSEEN) + (STEPS_UNSEEN + 1) * self.growth
        return min(self.pages(prompt, context), counted)

    def seen_at_release(self, prompt: int, context: int) -> int:
        """Most pages at `context`; a count of one token before has arrived."""
        counted = self.held(prompt, context - STEPS_UNSEEN) + STEPS_UNSEEN * self.growth
        return min(self.pages(prompt, context), counted)

    def growth_bound(self, tokens: int) -> int:
        """Most that `tokens` further tokens add to `pages` or to `held`."""
        if self.laid is None:
            return self.memory.growth_bound(tokens)
        bound = self.heads * most_pages_after(self.laid, tokens)
        return bound if self._by_length else max(bound, self.memory.growth_bound(tokens))

    def held(self, prompt: int, context: int) -> int:
        """Pages held at `context`, as the live engine counts them: exactly where lengths decide, else their mean."""
        if not self._by_length:
            return self.memory.pages(prompt, context)
        tokens = held_tokens(self.memory.policy, prompt, context)
        assert self.laid is not None and tokens is not None
        return self.heads * row_pages(self.laid, tokens)

    def tier_pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """`held` by tier for int64 arrays of one length n: int64[n, tiers]."""
        budget = self.memory.policy.budget
        if self.laid is None or not isinstance(budget, Residual):
            return self.memory.tier_pages_array(prompts, contexts)
        held = residual_tokens_array(budget, contexts)
        pages = [-(-tokens // layout.tokens) for tokens, layout in zip(held, self.laid.tiers, strict=True)]
        return self.heads * np.stack(pages, axis=1)

    def incomplete_pages_array(self, done: np.ndarray) -> np.ndarray:
        """See `MemoryModel.incomplete_pages_array`."""
        if not self.shrinks:
            return self.memory.incomplete_pages_array(done)
        pages: np.ndarray = self.tier_pages_array(done, done).sum(axis=1)
        return pages
