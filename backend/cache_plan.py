"""How a unified cache is laid out: page size, layouts by policy and tier, and how many pages its memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leankv.kernels.pages import SCRATCH_BLOCKS
from leankv.serving.formats import FP16
from leankv.serving.pages import PageLayout, layout_of, page_bytes_for, uniform_page_bytes
from leankv.serving.policies.base import Policy


@dataclass(frozen=True)
class CacheShape:
    """The part of a model that its cache depends on."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


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


def most_pages_a_row(layouts: Sequence[PolicyLayout], max_tokens: int) -> int:
    """Columns of a page table: no mix of tiers of `max_tokens` tokens needs more."""
    smallest = min(layout.tokens for laid in layouts for layout in (*laid.tiers, *filter(None, [laid.staging])))
    return -(-max_tokens // smallest) + 1


def pages_in(memory_bytes: int, page_bytes: int, rows: int, max_pages: int) -> int:
    """Pages of a pool when its tables, free list and counters come out of `memory_bytes`, too."""
    tables = rows * (4 * max_pages + 16) + 12 * SCRATCH_BLOCKS + 24
    return max(0, (memory_bytes - tables) // (page_bytes + 4))
