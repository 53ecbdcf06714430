"""DuoAttention: some heads keep everything, the others a sink and a window."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import HeadClasses
from leankv.serving.policies.knobs import at_least, share_knob


def duo_attention(retrieval: float = 0.5, sink: int = 64, recent: int = 256) -> Policy:
    """DuoAttention (Xiao et al., ICLR 2025, arXiv 2410.10819): half of the heads are retrieval heads on GQA models.

    Departure: every layer has the same share of retrieval heads; the paper's optimisation places them freely.
    """
    share_knob("retrieval", retrieval)
    at_least("sink", sink, 0)
    at_least("recent", recent, 1)
    return Policy(
        name="duo-attention",
        paper="https://arxiv.org/abs/2410.10819",
        summary="full cache for retrieval heads, sink and window for streaming heads",
        live=False,
        score=Score("head-class"),
        budget=HeadClasses(retrieval, sink, recent),
        trigger=Trigger("every-step"),
        tiers=(Tier("kept", FP16),),
        shares_prefix=False,
    )
