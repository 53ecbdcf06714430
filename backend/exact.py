"""A cache as exact as the model: every token in float32, to hold the engine against plain attention on a CPU."""

from __future__ import annotations

from dataclasses import replace

from leankv.serving.formats import FP32
from leankv.serving.policies.base import Policy, Tier
from leankv.serving.policies.fp16 import fp16


def fp32() -> Policy:
    """`fp16` in float32. It is no method that anybody serves with, so it is not among the policies by name."""
    return replace(fp16(), name="fp32", summary="every token in 32 bits", tiers=(Tier("all", FP32),))
