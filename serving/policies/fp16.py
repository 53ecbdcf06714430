"""The uncompressed cache that users run today: every token in 16 bits, in pages of 16 tokens without slack."""

from leankv.serving.formats import FP16
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import KeepAll


def fp16() -> Policy:
    """PagedAttention as in vLLM (Kwon et al., SOSP 2023, arXiv 2309.06180). No knobs.

    Departure: the pages of one block are counted per layer and KV head; their sum is vLLM's block.
    """
    return Policy(
        name="fp16",
        paper="https://arxiv.org/abs/2309.06180",
        summary="every token in 16 bits",
        live=True,
        score=Score(),
        budget=KeepAll(),
        trigger=Trigger(),
        tiers=(Tier("all", FP16),),
        shares_prefix=True,
    )
