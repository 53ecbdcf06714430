"""A retention with its growth while decoding, near what SmolLM2 showed under LeanKV."""

from dataclasses import replace

from leankv.serving.decode_growth import DecodeGrowth
from leankv.serving.policies.base import Policy
from leankv.serving.policies.registry import policy_named
from leankv.serving.retention import Retention

GROWTH = DecodeGrowth(
    whole=64,
    prompts=(64, 128, 512, 1900),
    generated=(0, 16, 64),
    tokens=(
        ((64.0, 0.0), (71.2, 8.6), (98.4, 29.1)),
        ((76.9, 46.8), (86.6, 53.0), (117.8, 69.4)),
        ((125.7, 325.6), (136.8, 329.0), (172.9, 338.2)),
        ((259.5, 1143.8), (267.1, 1146.2), (297.8, 1152.8)),
    ),
    pages=(
        ((3.0, 0.0), (3.0, 0.96), (3.77, 1.02)),
        ((3.08, 1.26), (3.33, 1.55), (4.4, 1.92)),
        ((4.67, 6.61), (5.02, 6.69), (6.25, 6.85)),
        ((9.14, 22.09), (9.37, 22.14), (10.42, 22.26)),
    ),
)
KEPT = Retention.from_shares(
    (64, 128, 512, 1900), ((1.0, 0.0), (0.6, 0.37), (0.245, 0.635), (0.136, 0.602)), 0.02, "measured on smollm2-135m"
)


def measured_leankv() -> Policy:
    return replace(policy_named("leankv"), retention=replace(KEPT, growth=GROWTH))
