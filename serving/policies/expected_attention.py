"""Expected Attention: prompt tokens that future queries are expected to attend to."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import TopShare
from leankv.serving.policies.knobs import at_least, share_knob


def expected_attention(keep: float = 0.5, sink: int = 4) -> Policy:
    """Expected Attention (Devoto et al., arXiv 2510.00636), prompt only: future queries as a Gaussian.

    Departure: every head keeps the same share; the paper also divides a layer's budget among heads as Ada-KV does.
    """
    share_knob("keep", keep)
    at_least("sink", sink, 0)
    return Policy(
        name="expected-attention",
        paper="https://arxiv.org/abs/2510.00636",
        summary="a share of the prompt per head, by attention expected from future queries",
        live=False,
        score=Score("expected", over_queries="mean", over_group="mean"),
        budget=TopShare(keep, sink),
        trigger=Trigger("prefill-end"),
        tiers=(Tier("kept", FP16),),
        shares_prefix=False,
    )
