"""Two policies on the same requests, request by request.

Policies are compared on common random numbers: the same arrivals and lengths. The traffic's own variation is then in
both runs alike and leaves their difference, so that this has a much narrower interval than either mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leankv.serving import bootstrap, seeds

if TYPE_CHECKING:
    import pyarrow as pa

BASELINE = "fp16"
Floats = npt.NDArray[np.float64]


def paired_difference(pairs: Sequence[tuple[pa.Table, pa.Table]], metric: str = "e2el") -> dict[str, Any] | None:
    """The mean over requests of (other - baseline), in ms; negative where the other is faster.

    Args:
        pairs: tables `requests` of (baseline, other), each two runs of one trace; more than one pair where the trace
            was drawn from several seeds.
        metric: "ttft", "tpot", "e2el" or "queue".

    Returns:
        metric, requests (those that both runs finished), mean_difference_ms, and interval [low, high]: by a block
        bootstrap over time (None for under 40 requests), or with several pairs by Student's t over their means. None
        where some pair has no request that both finished.

    Raises:
        ValueError: the tables of a pair are not of the same requests.
    """
    differences = [_differences(baseline, other, f"{metric}_ms") for baseline, other in pairs]
    if not all(map(len, differences)):
        return None
    means = [float(each.mean()) for each in differences]
    return {
        "metric": f"{metric}_ms",
        "requests": sum(map(len, differences)),
        "mean_difference_ms": float(np.mean(means)),
        "interval": seeds.mean_interval(means) if len(pairs) > 1 else _over_time(differences[0]),
    }


def _differences(baseline: pa.Table, other: pa.Table, name: str) -> Floats:
    for column in ("request_id", "prompt_tokens", "output_tokens"):
        if not baseline[column].equals(other[column]):
            raise ValueError(f"paired runs must be of the same requests; {column} differs")
    differences: Floats = other[name].to_numpy() - baseline[name].to_numpy()
    return differences[~np.isnan(differences)]


def _over_time(differences: Floats) -> list[float] | None:
    return bootstrap.mean_interval(differences) if bootstrap.enough(len(differences)) else None
