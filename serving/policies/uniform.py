"""Every token in one KV format: what the format alone does to answers and memory."""

from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import KeepAll
from leankv.serving.policies.knobs import format_knob, key_transform_knob


def uniform(format: str = "K8V4", key_transform: str = "none") -> Policy:
    """All tokens as `format`, per token and head, as LeanKV compares widths (arXiv 2412.03131).

    K8V4 against K4V8 shows, at equal bytes, that keys matter more than values. Keys may be centred and rotated first,
    which leaves attention as it is.
    """
    return Policy(
        name="uniform",
        paper="https://arxiv.org/abs/2412.03131",
        summary="every token in one integer format, scaled per token and head",
        live=True,
        score=Score(),
        budget=KeepAll(),
        trigger=Trigger(),
        tiers=(Tier("all", format_knob("format", format)),),
        shares_prefix=True,
        key_transform=key_transform_knob(key_transform),
    )
