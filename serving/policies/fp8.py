"""The cache in 8-bit floats (e4m3), as vLLM's `kv_cache_dtype=fp8`."""

from leankv.serving.formats import FP8
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import KeepAll


def fp8() -> Policy:
    """8-bit floats (Micikevicius et al., arXiv 2209.05433) for keys and values. No knobs.

    Departure: elements are cast without a scale; vLLM can load one calibrated scale per tensor.
    """
    return Policy(
        name="fp8",
        paper="https://docs.vllm.ai/en/latest/features/quantization/quantized_kvcache/",
        summary="every token in 8-bit floats",
        live=True,
        score=Score(),
        budget=KeepAll(),
        trigger=Trigger(),
        tiers=(Tier("all", FP8),),
        shares_prefix=True,
    )
