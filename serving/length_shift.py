"""How much longer outputs get under a policy: the same prompts, answered until the text ends by itself.

D = (L_fp16 - L_policy) / L_fp16 by prompt, as in Rethinking KV Cache Compression (MLSys 2025, arXiv 2503.24000):
negative where the output grew, -0.5 where it grew by half. Only prompts whose fp16 output ended inside the cap are
kept, the others' lengths are not known. That selects prompts whose fp16 answer is short, some of them by luck that the
policy does not share: growth is overstated. Where the policy's output ran into the cap, the cap counts: growth is
understated.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError, unknown_name
from leankv.serving.paired import BASELINE
from leankv.serving.proportions import Interval, wilson
from leankv.serving.quality_scores import GROWN, Lengths, known_pairs, lengths_of, of_policy
from leankv.serving.sample_bootstrap import expanded_interval

if TYPE_CHECKING:
    import pyarrow as pa

TASK = "answers"
Floats = npt.NDArray[np.float64]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class PairedLengths:
    """Output tokens int64[n] of the same prompts. left_out: prompts whose baseline ran into the cap.

    capped: bool[n], whether the policy's output ran into it.
    """

    sample_ids: tuple[str, ...]
    policy: npt.NDArray[np.int64]
    baseline: npt.NDArray[np.int64]
    capped: npt.NDArray[np.bool_]
    left_out: int

    @property
    def shifts(self) -> Floats:
        """D by prompt."""
        found: Floats = (self.baseline - self.policy) / self.baseline
        return found


@dataclass(frozen=True)
class Shift:
    """A policy's distribution of D. Intervals are 95 % (None for a single prompt): Wilson's for the share, else by
    `sample_bootstrap`, of no width where every prompt has the same ratio.

    quantiles: of D, by QUANTILES. grown_by_half: share of outputs at least half longer. shrunk: the mirror image, the
    share at most 2/3 as long; lengths that only vary have as many of both. total_ratio: sum of L_policy over sum of
    L_fp16, what the simulator's outputs are scaled by on average. mean_ratio: of L_policy / L_fp16, so 1 - mean; above
    1 where lengths only vary. capped: share that ran into the cap, longer in truth.
    """

    policy: str
    n: int
    left_out: int
    mean: float
    mean_interval: Interval | None
    quantiles: tuple[float, ...]
    grown_by_half: float
    grown_by_half_interval: Interval | None
    shrunk: float
    shrunk_interval: Interval | None
    total_ratio: float
    total_ratio_interval: Interval | None
    mean_ratio: float
    mean_ratio_interval: Interval | None
    capped: float


def paired_lengths(samples: pa.Table, policy: str) -> PairedLengths:
    """The output lengths of a policy and of fp16.

    samples: a table of `quality.COLUMNS`. Raises InputError: a policy without generated answers, or no prompt with a
    known length.
    """
    mine, theirs = _lengths(samples, policy), _lengths(samples, BASELINE)
    known, left_out = known_pairs(mine, theirs)
    if not known:
        raise InputError(
            f"no prompt that both {policy} and {BASELINE} answered to the end; evaluate the task {TASK} with a higher "
            "cap on output tokens"
        )
    return PairedLengths(
        tuple(known),
        np.array([max(1, mine[sample][0]) for sample in known], dtype=np.int64),
        np.array([theirs[sample][0] for sample in known], dtype=np.int64),
        np.array([not mine[sample][1] for sample in known]),
        left_out,
    )


def shift(policy: str, lengths: PairedLengths) -> Shift:
    """The figures of one policy's paired lengths."""
    d = lengths.shifts
    ratios = lengths.policy / lengths.baseline
    grown, shrunk = ratios >= GROWN, ratios <= 1 / GROWN
    interval = ratio_interval(ratios, np.ones(len(d)))
    return Shift(
        policy,
        len(d),
        lengths.left_out,
        float(d.mean()),
        # The mean of D is 1 less the mean ratio.
        None if interval is None else (1 - interval[1], 1 - interval[0]),
        tuple(np.quantile(d, QUANTILES).tolist()),
        float(grown.mean()),
        wilson(grown.sum(), len(d)) if len(d) > 1 else None,
        float(shrunk.mean()),
        wilson(shrunk.sum(), len(d)) if len(d) > 1 else None,
        float(lengths.policy.sum() / lengths.baseline.sum()),
        ratio_interval(lengths.policy.astype(float), lengths.baseline.astype(float)),
        float(ratios.mean()),
        interval,
        float(lengths.capped.mean()),
    )


def _lengths(samples: pa.Table, policy: str) -> Lengths:
    rows = of_policy(samples, policy, TASK)
    if not len(rows):
        raise unknown_name(f"policy with samples of task {TASK}", policy, _answered(samples))
    return lengths_of(rows)


def _answered(samples: pa.Table) -> list[str]:
    rows = zip(samples["policy"].to_pylist(), samples["task"].to_pylist(), strict=True)
    return list(dict.fromkeys(policy for policy, task in rows if task == TASK))


def ratio_interval(above: Floats, below: Floats) -> Interval | None:
    """Of the ratio of two sums of what is positive, 95 %, resampled by pairs; None for a single one."""
    n = len(above)
    if n < 2:
        return None
    low, high = expanded_interval(lambda drawn: np.log(drawn @ above / (drawn @ below)), n)
    return exp(low), exp(high)
