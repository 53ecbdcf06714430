"""The cache in 4-bit integers, one scale and zero per token and head."""

from leankv.serving.formats import INT4
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import KeepAll


def int4() -> Policy:
    """As vLLM's `int4_per_token_head` (pull request 40633). No knobs.

    Departure: asymmetric, with a float16 scale and zero for the key and for the value of each token and head.
    """
    return Policy(
        name="int4",
        paper="https://docs.vllm.ai/en/latest/features/quantization/quantized_kvcache/",
        summary="every token in 4-bit integers, scaled per token and head",
        live=True,
        score=Score(),
        budget=KeepAll(),
        trigger=Trigger(),
        tiers=(Tier("all", INT4),),
        shares_prefix=True,
    )
