"""SnapKV: the prompt's tokens that its last queries attend to."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import TopK
from leankv.serving.policies.knobs import at_least


def snapkv(budget: int = 1024, window: int = 32, kernel: int = 7) -> Policy:
    """SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469). Only the prompt is compressed; generated tokens all stay.

    Departure: with grouped-query attention a KV head takes the mean over its query heads; the release repeats KV heads.
    """
    at_least("window", window, 1)
    at_least("budget", budget, window)
    at_least("kernel", kernel, 1)
    return Policy(
        name="snapkv",
        paper="https://arxiv.org/abs/2404.14469",
        summary="a fixed budget of prompt tokens per head, by attention from its last queries",
        live=True,
        score=Score("recent-window", window=window, over_queries="sum", over_group="mean", pooling=kernel),
        budget=TopK(budget, window),
        trigger=Trigger("prefill-end"),
        tiers=(Tier("kept", FP16),),
        shares_prefix=False,
    )
