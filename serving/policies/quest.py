"""Quest: everything stays, each step reads the pages that could matter to its query."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import ReadTopPages
from leankv.serving.policies.knobs import at_least

PAGE_TOKENS = 16


def quest(budget: int = 2048, dense_layers: int = 2) -> Policy:
    """Quest (Tang et al., ICML 2024, arXiv 2406.10774): saves reads, not memory.

    Each page of 16 tokens carries the minimum and maximum of its keys, and every step reads all of these.
    Departure: with grouped-query attention a KV head's pages are chosen for the maximum over its query heads.
    """
    at_least("budget", budget, PAGE_TOKENS)
    at_least("dense_layers", dense_layers, 0)
    return Policy(
        name="quest",
        paper="https://arxiv.org/abs/2406.10774",
        summary="keeps every token, reads only the pages that bounds rank highest",
        live=False,
        score=Score("page-bounds", over_group="max"),
        budget=ReadTopPages(budget, PAGE_TOKENS, dense_layers),
        trigger=Trigger("every-step"),
        tiers=(Tier("all", FP16),),
        page_vectors=2,
        shares_prefix=True,
    )
