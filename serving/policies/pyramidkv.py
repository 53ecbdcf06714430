"""PyramidKV: SnapKV with budgets that shrink from the first layer to the last."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import Pyramid
from leankv.serving.policies.knobs import at_least


def pyramidkv(budget: int = 1024, window: int = 32, kernel: int = 7, beta: int = 20) -> Policy:
    """PyramidKV (Cai et al., arXiv 2406.02069). `budget` is the mean over layers.

    Departure: where a layer's budget exceeds the prompt the surplus is given up; the release hands it to later layers.
    """
    at_least("window", window, 1)
    at_least("budget", budget, window)
    at_least("kernel", kernel, 1)
    at_least("beta", beta, 1)
    return Policy(
        name="pyramidkv",
        paper="https://arxiv.org/abs/2406.02069",
        summary="SnapKV with more tokens in early layers than in late ones",
        live=False,
        score=Score("recent-window", window=window, over_queries="sum", over_group="mean", pooling=kernel),
        budget=Pyramid(budget, window, beta),
        trigger=Trigger("prefill-end"),
        tiers=(Tier("kept", FP16),),
        shares_prefix=False,
    )
