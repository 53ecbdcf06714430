"""Intervals over samples: they cover as often as they say for few, and are the plain ones for many."""

from __future__ import annotations

import numpy as np
import pytest

from leankv.serving.models import model_named
from leankv.serving.quality import Quality, samples_table
from leankv.serving.sample_bootstrap import PERCENTS, RESAMPLES, expanded_interval_of_mean, expansion
from leankv.serving.seeds import mean_interval
from leankv.serving.student_t import t_975


@pytest.mark.parametrize("n", [2, 4, 8, 40])
def test_it_covers_as_often_as_it_says(n: int) -> None:
    """Plain percentiles cover 51, 80, 88 and 94 % of these."""
    samples = np.random.default_rng(n).normal(5, 2, (1000, n))
    covered = np.mean([low <= 5 <= high for low, high in map(expanded_interval_of_mean, samples)])
    assert 0.92 <= covered <= 0.97


def test_of_many_it_is_the_plain_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(2, 1000)
    drawn = np.random.default_rng(1).integers(0, 1000, (RESAMPLES, 1000))
    plain = np.percentile(values[drawn].mean(axis=1), PERCENTS)
    assert expanded_interval_of_mean(values) == pytest.approx(tuple(plain), abs=0.1 * float(np.ptp(plain)))
    assert expansion(1000) == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("n", [4, 8, 30])
def test_its_width_agrees_with_students(n: int) -> None:
    values = np.random.default_rng(n).normal(0, 1, n)
    assert np.ptp(expanded_interval_of_mean(values)) == pytest.approx(np.ptp(mean_interval(list(values))), rel=0.1)


def test_the_longer_side_stays_the_longer() -> None:
    low, high = expanded_interval_of_mean(np.array([1.0, 1.1, 1.2, 9.0]))
    assert high - 3.075 > 1.2 * (3.075 - low)


def test_students_t_is_that_of_the_tables() -> None:
    """NIST's table again where the expansion takes over, and scipy's values where that is there."""
    assert t_975(1) == 12.706 and t_975(30) == 2.042
    assert [t_975(each) for each in (31, 40, 60, 100)] == pytest.approx([2.040, 2.021, 2.000, 1.984], abs=6e-4)
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 7, 30, 31, 50, 1000):
        assert t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4 if degrees <= 30 else 1e-6)


def test_of_few_windows_no_interval_leaves_what_can_be() -> None:
    """Four windows that differ much: perplexity stays above 0 and its loss above -100 %, agreement within 0 to 1."""
    rows = [
        {
            "policy": policy,
            "task": "perplexity",
            "sample_id": str(place),
            "scored_tokens": 10,
            "log_probability_nats": -10.0 * (2 if policy == "fp16" else 2 + rise),
            "agreement": agreement,
            "kl_nats": 0.0 if policy == "fp16" else kl,
            **dict.fromkeys(("kv_fp16_bytes", "kv_payload_bytes", "kv_page_bytes"), 1),
        }
        for place, (rise, agreement, kl) in enumerate([(-2, 1, 0.01), (2, 1, 3), (-3, 0.2, 0.01), (0, 1, 0.01)])
        for policy in ("fp16", "leankv")
    ]
    names = {"fp16": "", "leankv": ""}
    model = model_named("smollm2-135m")
    quality = Quality(model, {}, {}, "float32", 0, "quick", {}, names, samples_table(rows))
    scores = quality.policies["leankv"].scores
    intervals = {name: scores[name].interval for name in ("perplexity", "agreement", "kl_nats")}
    assert None not in intervals.values() and scores["perplexity"].difference_interval is not None
    assert intervals["perplexity"][0] > 0 and intervals["agreement"][1] == 1 and intervals["kl_nats"][0] == 0
    assert scores["perplexity"].difference_interval[0] > -1 and scores["perplexity"].difference_interval[1] > 5
