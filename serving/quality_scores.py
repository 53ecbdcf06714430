"""From samples to scores: means with their intervals, and paired differences to the baseline.

A sample is a window of text, a needle, a question. Intervals are 95 % ones: those of `proportions` for shares, else by
`sample_bootstrap`'s. A difference is taken sample by sample: what makes a sample hard leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, expm1, inf
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from leankv.serving.paired import BASELINE
from leankv.serving.proportions import Interval, paired_difference, wilson
from leankv.serving.sample_bootstrap import expanded_interval

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Lengths = Mapping[str, tuple[int, bool]]
GROWN = 1.5
"""An output has grown by half when it is this much longer than the baseline's of the same prompt."""


@dataclass(frozen=True)
class Metric:
    """How a task's samples make one figure.

    value: "mean" of a column, "share" of ones in a column of 0 and 1, or "perplexity" from log-probabilities. better:
    which way answers improve. difference: to the baseline, "absolute" in the metric's unit, or "relative" (0.02: 2 %
    more). least, most: what the value can be.
    """

    task: str
    column: str
    value: Literal["mean", "share", "perplexity"] = "mean"
    better: Literal["higher", "lower"] = "higher"
    difference: Literal["absolute", "relative"] = "absolute"
    least: float = -inf
    most: float = inf


METRICS: Mapping[str, Metric] = {
    "perplexity": Metric("perplexity", "log_probability_nats", "perplexity", "lower", "relative"),
    "agreement": Metric("perplexity", "agreement", least=0, most=1),
    "kl_nats": Metric("perplexity", "kl_nats", better="lower", least=0),
    "needle": Metric("needle", "score", "share"),
    "needle_log_probability_nats": Metric("needle", "log_probability_nats", most=0),
    "choice": Metric("choice", "score", "share"),
    "choice_log_probability_nats": Metric("choice", "log_probability_nats", most=0),
    "choice_agreement": Metric("choice", "agreement", "share"),
    "answers": Metric("answers", "score", "share"),
}


@dataclass(frozen=True)
class Score:
    """A figure over `n` samples. difference: to the baseline on the `paired` samples that both have.

    Intervals are None for under two samples; the difference is None for the baseline itself.
    """

    value: float
    interval: Interval | None
    n: int
    difference: float | None = None
    difference_interval: Interval | None = None
    paired: int = 0


@dataclass(frozen=True)
class OutputLengths:
    """Generated tokens with natural stopping, paired with the baseline's of the `n` prompts whose baseline stopped.

    mean_shift: mean of D = (baseline - policy)/baseline, so negative where outputs grow. grown_by_half: share of
    outputs at least half longer. unfinished: share that ran into the cap, whose true length is longer. left_out:
    prompts whose baseline ran into the cap, so that nobody knows its length.
    """

    n: int
    mean_tokens: float
    mean_shift: float
    grown_by_half: float
    grown_by_half_interval: Interval | None
    unfinished: float
    left_out: int = 0


def score(metric: Metric, samples: pa.Table, baseline: pa.Table | None) -> Score | None:
    """One metric of one policy. samples, baseline: rows of one policy and the metric's task, in any order.

    None where no sample has the metric's column.
    """
    mine = _by_sample(samples, metric)
    if not mine:
        return None
    values = np.array(list(mine.values()))
    found = Score(_figure(metric, values), _interval(metric, values), len(values))
    theirs = {} if baseline is None else _by_sample(baseline, metric)
    common = [sample for sample in mine if sample in theirs]
    if not common:
        return found
    pairs = np.array([mine[sample] for sample in common]), np.array([theirs[sample] for sample in common])
    difference, interval = _difference(metric, *pairs)
    return Score(found.value, found.interval, found.n, difference, interval, len(common))


def output_lengths(samples: pa.Table, baseline: pa.Table) -> OutputLengths | None:
    """Lengths of the rows of task "answers", paired by sample; None where no sample of both has a known length."""
    mine, theirs = lengths_of(samples), lengths_of(baseline)
    known, left_out = known_pairs(mine, theirs)
    if not known:
        return None
    lengths = np.array([mine[sample][0] for sample in known], dtype=np.float64)
    before = np.array([theirs[sample][0] for sample in known], dtype=np.float64)
    grown = lengths >= GROWN * before
    return OutputLengths(
        n=len(known),
        mean_tokens=float(lengths.mean()),
        mean_shift=float(((before - lengths) / before).mean()),
        grown_by_half=float(grown.mean()),
        grown_by_half_interval=wilson(grown.sum(), len(known)) if len(known) > 1 else None,
        unfinished=float(np.mean([not mine[sample][1] for sample in known])),
        left_out=left_out,
    )


def known_pairs(mine: Lengths, theirs: Lengths) -> tuple[list[str], int]:
    """Samples of both whose baseline (`theirs`) ended by itself, and how many of both are left out since it did not."""
    common = [sample for sample in mine if sample in theirs]
    known = [sample for sample in common if theirs[sample][1] and theirs[sample][0] > 0]
    return known, len(common) - len(known)


def lengths_of(samples: pa.Table) -> Lengths:
    """Output tokens, and whether the text ended by itself, by sample of one policy; other tasks' rows are left out."""
    rows = (samples[name].to_pylist() for name in ("sample_id", "output_tokens", "stopped"))
    return {sample: (tokens, stopped) for sample, tokens, stopped in zip(*rows, strict=True) if stopped is not None}


def ratios(samples: pa.Table) -> tuple[float, float]:
    """Nominal and physical compression over all rows: FP16 bytes over payload bytes, and over bytes of pages held."""
    plain, payload, pages = (
        float(samples[f"kv_{part}_bytes"].to_numpy().sum()) for part in ("fp16", "payload", "page")
    )
    return plain / payload, plain / pages


def of_policy(samples: pa.Table, policy: str, task: str | None = None) -> pa.Table:
    """The rows of one policy, and of one task where named."""
    import pyarrow.compute as pc

    chosen = pc.equal(samples["policy"], policy)
    return samples.filter(chosen if task is None else pc.and_(chosen, pc.equal(samples["task"], task)))


def score_all(samples: pa.Table, policy: str, against: str = BASELINE) -> dict[str, Score]:
    """Every metric that the policy's samples have, held against another policy's where that was measured."""
    found: dict[str, Score] = {}
    for name, metric in METRICS.items():
        mine = of_policy(samples, policy, metric.task)
        baseline = None if policy == against else of_policy(samples, against, metric.task)
        one = score(metric, mine, baseline) if len(mine) else None
        if one is not None:
            found[name] = one
    return found


def window_losses(samples: pa.Table, policy: str, against: str) -> dict[str, float]:
    """How much more a token costs under `policy` than under `against`, in nats, by window that both scored."""
    metric = METRICS["perplexity"]
    mine, theirs = (_by_sample(of_policy(samples, name, metric.task), metric) for name in (policy, against))
    return {
        window: theirs[window][0] / theirs[window][1] - nats / tokens
        for window, (nats, tokens) in mine.items()
        if window in theirs
    }


def _by_sample(samples: pa.Table, metric: Metric) -> dict[str, tuple[float, ...]]:
    """The metric's column by sample, with the tokens that it was summed over where it is a sum; nulls left out."""
    columns: list[list[Any]] = [samples["sample_id"].to_pylist(), samples[metric.column].to_pylist()]
    if metric.value == "perplexity":
        columns.append(samples["scored_tokens"].to_pylist())
    return {row[0]: tuple(map(float, row[1:])) for row in zip(*columns, strict=True) if row[1] is not None}


def _figure(metric: Metric, values: Floats) -> float:
    return float(_resampled(metric, values, np.ones((1, len(values))))[0])


def _resampled(metric: Metric, values: Floats, drawn: Floats) -> Floats:
    """The figure of each resample: values [n, columns], drawn [resamples, n] how often each sample is in it."""
    sums = drawn @ values
    if metric.value == "perplexity":
        figures: Floats = np.exp(-sums[:, 0] / sums[:, 1])
        return figures
    means: Floats = sums[:, 0] / drawn.sum(1)
    return means


def _interval(metric: Metric, values: Floats) -> Interval | None:
    if len(values) < 2:
        return None
    if metric.value == "share":
        return wilson(values.sum(), len(values))
    if metric.value == "perplexity":
        low, high = expanded_interval(lambda drawn: np.log(_resampled(metric, values, drawn)), len(values))
        return exp(low), exp(high)
    low, high = expanded_interval(lambda drawn: _resampled(metric, values, drawn), len(values))
    return max(metric.least, low), min(metric.most, high)


def _difference(metric: Metric, mine: Floats, theirs: Floats) -> tuple[float, Interval | None]:
    def between(drawn: Floats) -> Floats:
        one, other = _resampled(metric, mine, drawn), _resampled(metric, theirs, drawn)
        return one / other - 1 if metric.difference == "relative" else one - other

    whole = float(between(np.ones((1, len(mine))))[0])
    if len(mine) < 2:
        return whole, None
    if metric.value == "share":
        return whole, paired_difference(mine[:, 0], theirs[:, 0])
    if metric.difference == "relative":
        low, high = expanded_interval(lambda drawn: np.log1p(between(drawn)), len(mine))
        return whole, (expm1(low), expm1(high))
    return whole, expanded_interval(between, len(mine))
