"""Is one policy better than another on this trace, or was it chance?

Both policies saw the same requests at the same times, so their difference is taken request by request and resampled in
blocks of consecutive arrivals: pairs cancel what the two runs share, blocks keep bursts whole (Kuensch, "The jackknife
and the bootstrap for general stationary observations", 1989).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

BLOCKS = 20
RESAMPLES = 400


def in_time(requests: pa.Table, slo: Mapping[str, float]) -> np.ndarray:
    """bool[n], by request id: finished, and within every service level (`slo`: metric -> milliseconds)."""
    from leankv.serving.metrics import meets_slo

    ordered = requests.sort_by("request_id")
    finished = np.asarray(ordered["status"].to_pylist(), dtype=object) == "finished"
    return finished & meets_slo(ordered, slo)


def share_gap(ours: pa.Table, theirs: pa.Table, slo: Mapping[str, float]) -> tuple[float, float] | None:
    """95 % interval of (our share in time) - (theirs), over the same requests; None for too few requests."""
    gap = in_time(ours, slo).astype(float) - in_time(theirs, slo)
    if len(gap) < 2 * BLOCKS:
        return None
    blocks = np.array_split(gap, BLOCKS)
    sums, sizes = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
    draws = np.random.default_rng(0).integers(0, BLOCKS, (RESAMPLES, BLOCKS))
    low, high = np.percentile(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), (2.5, 97.5))
    return float(low), float(high)
