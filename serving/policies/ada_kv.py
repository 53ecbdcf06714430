"""Ada-KV: SnapKV with a layer's budget divided among its heads by need."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import AdaTopK
from leankv.serving.policies.knobs import at_least, share_knob


def ada_kv(budget: int = 1024, window: int = 32, kernel: int = 7, safeguard: float = 0.2) -> Policy:
    """Ada-KV (Feng et al., arXiv 2407.11550), on SnapKV's scores. `budget` is the mean over a layer's heads.

    Departure: heads are the KV heads, each with the mean over its query heads.
    """
    at_least("window", window, 1)
    at_least("budget", budget, window)
    at_least("kernel", kernel, 1)
    share_knob("safeguard", safeguard)
    return Policy(
        name="ada-kv",
        paper="https://arxiv.org/abs/2407.11550",
        summary="SnapKV with a layer's budget shared unevenly by its heads",
        live=False,
        score=Score("recent-window", window=window, over_queries="sum", over_group="mean", pooling=kernel),
        budget=AdaTopK(budget, window, safeguard),
        trigger=Trigger("prefill-end"),
        tiers=(Tier("kept", FP16),),
        shares_prefix=False,
    )
