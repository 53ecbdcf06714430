"""Which resource held a run back, from its table `segments`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.scheduler import SchedulerLimits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WAITING_MATTERS = 0.05


def limiting_resource(limits: SchedulerLimits, segments: pa.Table) -> str:
    """What a faster deployment would need more of: the cause of most of the time that requests spend in the queue.

    "arrivals" where under 5 % of the time anything waits: the traffic itself bounds throughput. Whoever still waits
    when a step is put together finds its batch full ("batch slots"), its token budget spent, or no pages ("KV
    capacity"). A spent budget is "compute" where prompts take most of such a step, and "memory bandwidth" where most of
    it would go into reading weights and caches without them, too.
    """
    columns = {name: segments[name].to_numpy() for name in ("steps", "sequences", "prompt_tokens", "waiting")}
    steps, sequences, prompts, waiting = columns.values()
    lasting_ps = steps * (segments["first_gap_ps"].to_numpy() + segments["slope_ps"].to_numpy() * (steps - 1) / 2)
    if lasting_ps[waiting > 0].sum() < WAITING_MATTERS * _replica_time_ps(segments, lasting_ps):
        return "arrivals"
    full = sequences + (prompts > 0) >= limits.max_num_seqs
    spent = (prompts > 0) & ((sequences + prompts >= limits.max_num_batched_tokens) | (not limits.chunked_prefill))
    delay = lasting_ps * waiting
    delays = {
        "batch slots": delay[full].sum(),
        "budget": delay[spent & ~full].sum(),
        "KV capacity": delay[~spent & ~full].sum(),
    }
    cause = max(delays, key=delays.__getitem__)
    if cause != "budget":
        return cause
    late = spent & ~full & (waiting > 0)
    reading_ps = decode_step_ps(segments, lasting_ps, sequences[late]).sum()
    return "compute" if reading_ps < lasting_ps[late].sum() / 2 else "memory bandwidth"


def _replica_time_ps(segments: pa.Table, lasting_ps: Floats) -> float:
    """From the first step to the end of the last, times the replicas that computed any."""
    start_ps = segments["start_ps"].to_numpy()
    span_ps = float((start_ps + lasting_ps).max() - start_ps.min())
    return span_ps * len(np.unique(segments["replica"].to_numpy()))


def decode_step_ps(segments: pa.Table, lasting_ps: Floats, sequences: Ints) -> Floats:
    """What steps without prompts lasted in this run at so many sequences, linear between those seen; 0 without any."""
    pure = segments["prompt_tokens"].to_numpy() == 0
    if not pure.any():
        return np.zeros(len(sequences))
    decoding = segments["sequences"].to_numpy()[pure]
    steps = np.bincount(decoding, segments["steps"].to_numpy()[pure])
    seen = np.flatnonzero(steps)
    return np.interp(sequences, seen, np.bincount(decoding, lasting_ps[pure])[seen] / steps[seen])
