"""How the live engine's pool is laid out: page size, layouts by policy and tier, and the pages that a memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leankv.serving.formats import FP16
from leankv.serving.pages import PageLayout, layout_of, page_bytes_for, uniform_page_bytes
from leankv.serving.policies.base import Policy

ROW_BYTES = 16
"""Counters of a row (a request's layer and KV head): tokens by tier, and what a page of each tier holds."""
ENTRY_BYTES = 4
"""A page's number, in a page table or in the free list."""
FIXED_BYTES = 12 * 1024 + 28
"""Block sums between launches, and the state of the free list."""


@dataclass(frozen=True)
class PolicyLayout:
    """A policy's place in the cache: layouts of its tiers, and of the pages where its prompts wait (None: nowhere)."""

    policy: Policy
    tiers: tuple[PageLayout, ...]
    staging: PageLayout | None


def page_bytes_of(policies: Sequence[Policy], head_dim: int) -> int:
    """Bytes of a page that serves all the policies: the rule of `serving.memory`, over their formats together."""
    formats = [tier.format for policy in policies for tier in policy.tiers]
    staging = [FP16 for policy in policies if policy.staged]
    wanted = tuple(dict.fromkeys([*formats, *staging]))
    bookkeeping = max(policy.bookkeeping for policy in policies)
    if len(wanted) == 1:
        return uniform_page_bytes(wanted[0], head_dim, bookkeeping)
    return page_bytes_for(head_dim, wanted, bookkeeping)


def policy_layouts(policies: Sequence[Policy], head_dim: int, page_bytes: int) -> tuple[PolicyLayout, ...]:
    """Layouts of every policy in pages of `page_bytes`. Raises ValueError for a policy that does not run live."""
    laid = []
    for policy in policies:
        if not policy.live:
            raise ValueError(f"policy {policy.name} does not run live; it can be simulated")
        tiers = tuple(layout_of(tier.format, head_dim, page_bytes, policy.bookkeeping) for tier in policy.tiers)
        staging = layout_of(FP16, head_dim, page_bytes, policy.bookkeeping) if policy.staged else None
        laid.append(PolicyLayout(policy, tiers, staging))
    return tuple(laid)


def live_layout(policy: Policy, head_dim: int) -> PolicyLayout:
    """The layout of a live policy in a pool of its own."""
    return policy_layouts([policy], head_dim, page_bytes_of([policy], head_dim))[0]


def most_pages_a_row(layouts: Sequence[PolicyLayout], max_tokens: int) -> int:
    """Columns of a page table: no mix of tiers of `max_tokens` tokens needs more."""
    smallest = min(layout.tokens for laid in layouts for layout in (*laid.tiers, *filter(None, [laid.staging])))
    return -(-max_tokens // smallest) + 1


def pages_in(memory_bytes: int, page_bytes: int, rows: int, max_pages: int) -> int:
    """Pages of a pool when its tables, free list and counters come out of `memory_bytes`, too."""
    tables = rows * (ENTRY_BYTES * max_pages + ROW_BYTES) + FIXED_BYTES
    return max(0, (memory_bytes - tables) // (page_bytes + ENTRY_BYTES))


def live_pool_pages(policy: Policy, head_dim: int, heads: int, memory_bytes: int, slots: int, max_tokens: int) -> int:
    """Pages of the live engine's pool for one policy, up to `slots` requests of at most `max_tokens` tokens each.

    heads: KV heads over all layers. Raises ValueError for a policy that does not run live.
    """
    columns = most_pages_a_row([live_layout(policy, head_dim)], max_tokens)
    return pages_in(memory_bytes, page_bytes_of([policy], head_dim), slots * heads, columns)
