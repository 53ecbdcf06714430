"""The cache in 8-bit integers, one scale and zero per token and head."""

from leankv.serving.formats import INT8
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import KeepAll


def int8() -> Policy:
    """As vLLM's `int8_per_token_head` (pull request 40633). No knobs.

    Departure: asymmetric, with a float16 scale and zero for the key and for the value of each token and head.
    """
    return Policy(
        name="int8",
        paper="https://docs.vllm.ai/en/latest/features/quantization/quantized_kvcache/",
        summary="every token in 8-bit integers, scaled per token and head",
        live=True,
        score=Score(),
        budget=KeepAll(),
        trigger=Trigger(),
        tiers=(Tier("all", INT8),),
        shares_prefix=True,
    )
