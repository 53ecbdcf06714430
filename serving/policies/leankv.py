"""LeanKV: tokens of each head in a high-precision tier, a low-precision tier, or pruned, by significance."""

from leankv.serving.policies.base import Policy, Score, Tier, Trigger
from leankv.serving.policies.budgets import MassTiers, Thresholds
from leankv.serving.policies.knobs import at_least, format_knob, key_transform_knob, one_of, share_knob
from leankv.serving.policies.published import retention_by_mass, retention_by_threshold

PAPER = "https://arxiv.org/abs/2412.03131"
SIGNIFICANCE = Score("recent-window", window=64, over_queries="sum", over_group="max")


def leankv(
    high: str = "K8V4",
    low: str = "K4V2",
    alpha_high: float = 1.0,
    alpha_low: float = 0.02,
    window: int = 64,
    relative_to: str = "prompt",
    key_transform: str = "none",
) -> Policy:
    """LeanKV as published (Zhang et al., arXiv 2412.03131; v3 is DiffKV, SOSP 2025).

    Prefill: a token's significance is its attention from the last 64 queries, the maximum over the GQA group, divided
    by the queries that saw it; below alpha_low/N it is pruned, below alpha_high/N low, else high. Decode: each step
    adds the new query's attention and requantizes or prunes at most one token a head.
    Departures: thresholds are relative to the prompt's length, as in the released code (`relative_to=position`: the
    paper's); stored scales are rounded so that the error stays within half a stored step. Defaults: the paper's
    calibration for Llama-3-8B. `key_transform` is no part of the paper; it shows what it alone adds.
    """
    at_least("alpha_low", alpha_low, 0.0)
    at_least("alpha_high", alpha_high, alpha_low)
    at_least("window", window, 1)
    one_of("relative_to", relative_to, ("prompt", "position"))
    budget = Thresholds(alpha_high, alpha_low, window, "position" if relative_to == "position" else "prompt")
    return Policy(
        name="leankv",
        paper=PAPER,
        summary="mixed-precision tiers and pruning per head, by thresholds on significance",
        live=True,
        score=SIGNIFICANCE,
        budget=budget,
        trigger=Trigger("every-step"),
        tiers=(Tier("high", format_knob("high", high)), Tier("low", format_knob("low", low))),
        key_transform=key_transform_knob(key_transform),
        bookkeeping=8,
        shares_prefix=False,
        retention=retention_by_threshold(alpha_high, alpha_low, window),
    )


def leankv_r(
    high: str = "K8V4",
    low: str = "K4V2",
    prune: float = 0.01,
    low_mass: float = 0.2,
    window: int = 64,
    recompress_every: int = 64,
    bookkeeping: int = 8,
    key_transform: str = "rope-centred+rotated",
) -> Policy:
    """LeanKV with centred and rotated keys and tiers by cumulated mass (the paper's first version chose by mass).

    Centring and rotating leave attention as it is, yet narrow a key's range before it is quantized. Keys are centred on
    their mean before RoPE, turned to each position: a bias, as Qwen2.5 has, then adds nothing to the range. A model
    without one rotary embedding for all layers needs `key_transform=centred+rotated`. The least significant tokens are
    pruned up to the share `prune` of a head's mass and held low up to `low_mass`; in decode, new tokens enter high and
    the head is classified again every `recompress_every` steps, which frees emptied pages. Departures from the paper:
    all of that, except the significance itself.
    """
    share_knob("prune", prune)
    share_knob("low_mass", low_mass)
    at_least("low_mass", low_mass, prune)
    at_least("window", window, 1)
    at_least("recompress_every", recompress_every, 1)
    one_of("bookkeeping", bookkeeping, (5, 8))
    return Policy(
        name="leankv-r",
        paper=PAPER,
        summary="LeanKV with keys centred before RoPE and rotated, and tiers by attention mass",
        live=True,
        score=SIGNIFICANCE,
        budget=MassTiers(prune, low_mass, window, recompress_every),
        trigger=Trigger("every-n", recompress_every),
        tiers=(Tier("high", format_knob("high", high)), Tier("low", format_knob("low", low))),
        key_transform=key_transform_knob(key_transform),
        bookkeeping=bookkeeping,
        shares_prefix=False,
        retention=retention_by_mass(prune, low_mass, window),
    )
