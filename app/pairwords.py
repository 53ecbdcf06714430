"""What two policies' samples say of each other, as words and table. Pure functions of a quality folder's content."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import TYPE_CHECKING

from leankv.app.qualitywords import AXES
from leankv.serving.paired import BASELINE
from leankv.serving.quality_scores import METRICS, Score, score_all, window_losses

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.quality import Quality

OURS = "leankv"
ALIKE = 1.1
"""Two caches are of a size when neither is this much larger than the other."""


def nearest(quality: Quality) -> tuple[str, str] | None:
    """LeanKV (else the first policy beside fp16) and the policy of another method whose cache is nearest in size."""
    names = [name for name in quality.policies if name != BASELINE]
    if len(names) < 2:
        return None
    first = OURS if OURS in names else names[0]
    others = [name for name in names if _method(name) != _method(first)] or [name for name in names if name != first]
    ratio = quality.policies[first].physical_ratio
    return first, min(others, key=lambda name: abs(log(quality.policies[name].physical_ratio / ratio)))


def _method(policy: str) -> str:
    return policy.partition(":")[0].removesuffix("-r")


def losses(quality: Quality, policy: str, against: str) -> Mapping[str, float]:
    """See `window_losses`."""
    return window_losses(quality.samples, policy, against)


def verdict(quality: Quality, policy: str, against: str) -> str:
    """Which of the two has the lower perplexity, how surely, and whether their caches are of a size (Markdown)."""
    score = score_all(quality.samples, policy, against).get("perplexity")
    sizes = [quality.policies[name].physical_ratio for name in (policy, against)]
    if score is None or score.difference is None:
        return f"**No text was scored under both.** Their caches: {sizes[0]:.2f}x and {sizes[1]:.2f}x, pages counted."
    loss = losses(quality, policy, against)
    worse = sum(value > 0 for value in loss.values())
    size = "of a size" if max(sizes) <= ALIKE * min(sizes) else "**not of a size**"
    return (
        f"**{policy} {_surely(score)} {against}: {score.difference:+.1%} perplexity{_between(score)}** on "
        f"{score.paired} windows, higher on {worse} of them. Their caches are {size}: {sizes[0]:.2f}x against "
        f"{sizes[1]:.2f}x, pages counted."
    )


def _surely(score: Score) -> str:
    interval, lower = score.difference_interval, (score.difference or 0) < 0
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "cannot be told from"
    return "loses less than" if lower else "loses more than"


def _between(score: Score) -> str:
    interval = score.difference_interval
    return "" if interval is None else f" ({interval[0]:+.1%} to {interval[1]:+.1%})"


def table(quality: Quality, policy: str, against: str) -> pa.Table:
    """A row a metric that both have: both figures, the difference and its interval, in the metric's unit."""
    import pyarrow as pa

    rows = []
    for name, score in score_all(quality.samples, policy, against).items():
        if score.difference is None or name not in AXES:
            continue
        relative = METRICS[name].difference == "relative"
        axis = AXES[name][0]
        scale = 100.0 if axis.unit == "%" else 1.0
        low, high = score.difference_interval or (None, None)
        rows.append(
            {
                "Metric": f"{'Perplexity' if relative else axis.title} ({axis.unit})",
                "Difference": scale * score.difference,
                "95 % from": None if low is None else scale * low,
                "95 % to": None if high is None else scale * high,
                "Samples": score.paired,
            }
        )
    return pa.Table.from_pylist(rows)
