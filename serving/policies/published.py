"""What scores keep, from published figures, until a measured retention replaces it.

Both curves keep the recent window whole and a fixed share of all older tokens, so short contexts keep more.
"""

from itertools import pairwise
from math import log

from leankv.serving.retention import Retention

SIGNIFICANCE_BELOW = ((0.0, 0.0), (0.02, 0.01), (0.04, 0.02), (1.0, 0.746), (3.0, 0.975), (10.0, 1.0))
"""Share of the tokens outside the window whose significance, relative to uniform attention, is below a threshold.

Each point solves one figure for the share, with 12 bits a channel high (K8V4), 6 low (K4V2) and 32 uncompressed:
0.04 -> 0.02: LeanKV v3's largest memory, 36.7 %, taken as that of Qwen2.5-7B, which alone has no low tier (alpha
    0.04/0.04); 0.02 is half of it.
1 -> 0.746: a nominal ratio of 4.10 with alpha 0/1, measured with fake quantization on Qwen2.5-Coder-1.5B at 1,024
    tokens, 64 of them in the window.
3 -> 0.975: v3's smallest memory, 19.3 %, taken as that of the models with alpha 0/3, at QwQ's reasoning lengths (16k).
10 -> 1: an upper end, assumed.
At alpha 0.02/1 this gives 23 % of FP16 for long contexts: inside v3's 19.3 to 36.7 % and v1's 3.0 to 5.0x.
"""

TOKENS_BELOW_MASS = ((0.0, 0.0), (0.005, 0.275), (0.01, 0.387), (0.02, 0.53), (0.2, 0.949), (0.3, 0.96), (1.0, 1.0))
"""Share of the tokens outside the window that hold less than a share of a head's mass, least significant first.

Solved from nominal ratios measured with fake quantization on Qwen2.5-Coder-1.5B at 1,024 tokens: 7.92 (prune .005, low
.2, K4V4/K3V2), 7.14 (.01, .2, K8V4/K4V2), 11.36 (.02, .3, K4V4/K3V2), with 11 % and 10 % of all tokens in the high tier
at .2 and .3: three ratios do not fix five shares, so these two are assumed.
"""

MASS_SOURCE = "measured on Qwen2.5-Coder-1.5B (fake quantization)"


def retention_by_threshold(alpha_high: float, alpha_low: float, window: int) -> Retention:
    """(high, low) tokens for LeanKV's thresholds."""
    pruned, below_high = (_interpolate(SIGNIFICANCE_BELOW, alpha) for alpha in (alpha_low, alpha_high))
    return _beyond_window(window, 1 - below_high, below_high - pruned, "literature")


def retention_by_mass(prune: float, low: float, window: int) -> Retention:
    """(high, low) tokens for tiers by cumulated mass."""
    pruned, below_high = (_interpolate(TOKENS_BELOW_MASS, mass) for mass in (prune, low))
    return _beyond_window(window, 1 - below_high, below_high - pruned, MASS_SOURCE)


def _beyond_window(window: int, high: float, low: float, source: str) -> Retention:
    after = 2 * window
    kept = ((0.0, 0.0), (float(window), 0.0), (window + high * window, low * window))
    return Retention((0, window, after), kept, spread=0.0, source=source)


def _interpolate(points: tuple[tuple[float, float], ...], at: float) -> float:
    """Piecewise linear in log(at), but linear from 0 to the first point; flat beyond the last."""
    for (low, low_share), (high, high_share) in pairwise(points):
        if at <= high:
            position = log(at / low) / log(high / low) if low else at / high
            return low_share + position * (high_share - low_share)
    return points[-1][1]
