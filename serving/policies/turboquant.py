"""TurboQuant: rotated keys and values in 3 or 4 bits, as vLLM's presets store them."""

from leankv.serving.formats import FP16, KVFormat
from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import BoundaryLayers
from leankv.serving.policies.knobs import at_least, one_of


def turboquant(key_bits: int = 3, value_bits: int = 3, boundary: int = 2) -> Policy:
    """TurboQuant (Zandieh et al., ICLR 2026, arXiv 2504.19874) as `turboquant_3bit_nc` of vLLM pull request 38479.

    A token takes 104 bytes a head at head_dim 128 (4 bytes of norm or scale for key and value each), and the first and
    last `boundary` layers stay in 16 bits: 3.43 times the tokens on Qwen3-4B. Departure: the paper's residual bit and
    outlier channels are left out, as in vLLM.
    """
    one_of("key_bits", key_bits, (3, 4))
    one_of("value_bits", value_bits, (3, 4))
    at_least("boundary", boundary, 0)
    return Policy(
        name="turboquant",
        paper="https://arxiv.org/abs/2504.19874",
        summary="rotated keys and values in few bits, outer layers in 16",
        live=False,
        score=Score(),
        budget=BoundaryLayers(boundary, boundary),
        trigger=Trigger(),
        tiers=(Tier("boundary", FP16), Tier("quantized", KVFormat(key_bits, value_bits))),
        key_transform="rotated",
        shares_prefix=True,
    )
