"""KIVI: old keys quantized per channel, old values per token, the newest tokens in full precision."""

from dataclasses import replace

from leankv.serving.formats import FP16, KIVI2, KIVI4
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import Residual
from leankv.serving.policies.knobs import at_least, one_of


def kivi(bits: int = 2, group: int = 32, residual: int = 128) -> Policy:
    """KIVI (Liu et al., ICML 2024, arXiv 2402.02750): `bits` 2 or 4, in groups of `group`.

    Departure: once more than `residual` tokens wait, the oldest `group` of them are quantized, keys and values alike.
    The paper empties the keys' window whenever it is full, and slides the values' one token at a time.
    """
    one_of("bits", bits, (2, 4))
    one_of("group", group, (32, 64, 128))
    at_least("residual", residual, group)
    return Policy(
        name="kivi",
        paper="https://arxiv.org/abs/2402.02750",
        summary="keys quantized per channel, values per token, newest tokens in 16 bits",
        live=True,
        score=Score(),
        budget=Residual(residual, group),
        trigger=Trigger("every-n", group),
        tiers=(Tier("recent", FP16), Tier("quantized", replace(KIVI2 if bits == 2 else KIVI4, group_tokens=group))),
        shares_prefix=False,
    )
