"""Where the error comes from: simulated against live, by regime.

Steps: the mean duration of a step, by the sequences that decode in it or the prompt tokens that it computes; the
step-time model shows here, whatever the queue did. Requests: latencies of the same requests, by their prompt's length
and by whether they waited or were preempted; admission and arrival show here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from leankv.simulator.validation_parity import number, relative_error

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.runs import Run

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
PS_PER_MS = 1e9
WAITED = 0.1
"""A request that spent more than this share of its time in the queue has waited."""
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (1, 64, 128, 256, 512, 1024, 4096, 16384)


@dataclass(frozen=True)
class Residual:
    """Means over a regime. count: live steps or requests, over all repeats. kind: "step" or "request"."""

    policy: str
    load: str
    kind: str
    regime: str
    metric: str
    count: int
    simulated: float | None
    live: float | None
    relative_error: float | None


def residuals(policy: str, load: str, simulated: Run, live: Sequence[Run]) -> list[Residual]:
    """Regimes that neither has are left out."""
    return [*_steps(policy, load, simulated, live), *_requests(policy, load, simulated, live)]


def _steps(policy: str, load: str, simulated: Run, live: Sequence[Run]) -> Iterable[Residual]:
    predicted, measured = _durations([simulated]), _durations(live)
    for regime in sorted(predicted.keys() | measured.keys(), key=_by_size):
        took, count = measured.get(regime, (None, 0))
        yield _residual(
            policy, load, "step", regime, "mean_step_ms", round(count), predicted.get(regime, (None, 0))[0], took
        )


def _durations(runs: Sequence[Run]) -> dict[str, tuple[float | None, float]]:
    """Regime -> (mean milliseconds of a step, steps)."""
    sums: dict[str, list[float]] = {}
    for run in runs:
        columns = (_column(run.segments, name) for name in ("steps", "first_gap_ps", "slope_ps"))
        steps, first, slope = columns
        lasting = (first + slope * (steps - 1) / 2) * steps / PS_PER_MS
        for sequences, prompt, count, total in zip(
            _column(run.segments, "sequences"), _column(run.segments, "prompt_tokens"), steps, lasting, strict=True
        ):
            found = sums.setdefault(_step_regime(sequences, prompt), [0.0, 0.0])
            found[0] += total
            found[1] += count
    return {regime: (total / count, count) for regime, (total, count) in sums.items() if count}


def _step_regime(sequences: float, prompt: float) -> str:
    return (
        f"prompt tokens {_bucket(prompt, TOKENS)}" if prompt else f"decode, sequences {_bucket(sequences, SEQUENCES)}"
    )


def _bucket(value: float, edges: Sequence[int]) -> str:
    at = int(np.searchsorted(edges, value, side="right")) - 1
    if at + 1 == len(edges):
        return f"{edges[at]}+"
    low, high = edges[max(at, 0)], edges[at + 1] - 1
    return f"{low}" if low == high else f"{low}-{high}"


def _by_size(regime: str) -> tuple[str, int]:
    kind, _, bucket = regime.rpartition(" ")
    return kind, int(bucket.rstrip("+").partition("-")[0])


def _requests(policy: str, load: str, simulated: Run, live: Sequence[Run]) -> Iterable[Residual]:
    """Latencies live are means over the repeats, request by request; so is what decides its regime."""
    done = np.all([_finished(run) for run in (simulated, *live)], axis=0)
    if not done.any():
        return
    prompts = _column(live[0].requests, "prompt_tokens")
    waited = _mean(live, "queue_ms") > WAITED * _mean(live, "e2el_ms")
    preempted = _mean(live, "preemptions") > 0
    regimes: list[tuple[str, Flags]] = [("did not wait", ~waited & ~preempted), ("waited", waited & ~preempted)]
    regimes.append(("preempted", preempted))
    lengths = [_bucket(each, TOKENS) for each in prompts]
    regimes += [
        (f"prompt {each}", np.array([each == mine for mine in lengths])) for each in sorted(set(lengths), key=_low)
    ]
    for regime, members in regimes:
        chosen = members & done
        for metric in ("ttft_ms", "tpot_ms", "e2el_ms") if chosen.any() else ():
            predicted, took = _mean([simulated], metric)[chosen], _mean(live, metric)[chosen]
            count = int(chosen.sum()) * len(live)
            yield _residual(policy, load, "request", regime, f"mean_{metric}", count, _middle(predicted), _middle(took))


def _residual(
    policy: str, load: str, kind: str, regime: str, metric: str, count: int, simulated: float | None, live: float | None
) -> Residual:
    return Residual(policy, load, kind, regime, metric, count, simulated, live, relative_error(simulated, live))


def _low(bucket: str) -> int:
    return int(bucket.rstrip("+").partition("-")[0])


def _finished(run: Run) -> Flags:
    return np.array(run.requests["status"].to_pylist()) == "finished"


def _mean(runs: Sequence[Run], name: str) -> Floats:
    return np.mean([_column(run.requests, name) for run in runs], axis=0)


def _middle(values: Floats) -> float | None:
    return number(np.nanmean(values)) if not np.isnan(values).all() else None


def _column(table: pa.Table, name: str) -> Floats:
    return table[name].to_numpy().astype(np.float64)
