"""H2O: the tokens with the most accumulated attention, and the newest ones."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import HeavyRecent
from leankv.serving.policies.knobs import share_knob


def h2o(heavy: float = 0.1, recent: float = 0.1) -> Policy:
    """H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): shares of the prompt's length; each new token evicts one.

    Scores come from every query, so prefill pays a second pass of queries over keys (fused attention keeps no
    probabilities); it is counted. Departure: a KV head takes the maximum over its group's query
    heads, which is what decode attention returns with its output.
    """
    share_knob("heavy", heavy)
    share_knob("recent", recent)
    share_knob("heavy + recent", heavy + recent)
    return Policy(
        name="h2o",
        paper="https://arxiv.org/abs/2306.14048",
        summary="heavy hitters by accumulated attention, and the newest tokens",
        live=True,
        score=Score("all-queries", over_queries="sum", over_group="max"),
        budget=HeavyRecent(heavy, recent),
        trigger=Trigger("every-step"),
        tiers=(Tier("kept", FP16),),
        bookkeeping=8,
        shares_prefix=False,
    )
