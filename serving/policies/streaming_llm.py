"""StreamingLLM: the first few tokens and the newest ones."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import SinkRecent
from leankv.serving.policies.knobs import at_least


def streaming_llm(sink: int = 4, recent: int = 508) -> Policy:
    """StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453).

    Departure: keys keep the rotary position of the text; the paper renumbers positions within the cache.
    """
    at_least("sink", sink, 0)
    at_least("recent", recent, 1)
    return Policy(
        name="streaming-llm",
        paper="https://arxiv.org/abs/2309.17453",
        summary="attention sinks and a sliding window",
        live=True,
        score=Score(),
        budget=SinkRecent(sink, recent),
        trigger=Trigger("every-step"),
        tiers=(Tier("kept", FP16),),
        shares_prefix=False,
    )
