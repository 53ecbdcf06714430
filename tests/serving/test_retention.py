import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.policies.published import SIGNIFICANCE_BELOW, retention_by_mass, retention_by_threshold
from leankv.serving.policies.registry import registry
from leankv.serving.retention import Retention

MEASURED = Retention.from_shares(
    (64, 1024, 8192),
    ((1.0, 0.0), (0.3, 0.6), (0.2, 0.55)),
    spread=0.1,
    source="measured on smollm2-135m",
    slack_pages=0.8,
)


def test_tokens_follow_the_shares_and_the_last_slope_continues() -> None:
    assert MEASURED.tokens(0, 0) == 0
    assert MEASURED.tokens(0, 32) == pytest.approx(32)
    assert MEASURED.tokens(0, 1024) == pytest.approx(0.3 * 1024, abs=0.01)
    assert MEASURED.tokens(1, 8192) == pytest.approx(0.55 * 8192, abs=0.01)
    slope = (0.2 * 8192 - 0.3 * 1024) / (8192 - 1024)
    assert MEASURED.tokens(0, 16_384) == pytest.approx(0.2 * 8192 + slope * 8192, abs=0.02)


@given(st.integers(0, 1 << 20), st.integers(1, 1000), st.integers(0, 1))
def test_a_jump_is_the_sum_of_its_steps_exactly(start: int, steps: int, tier: int) -> None:
    inside = [knot for knot in MEASURED.contexts if start < knot < start + steps]
    if not inside:
        step = MEASURED.tokens(tier, start + 1) - MEASURED.tokens(tier, start)
        assert MEASURED.tokens(tier, start + steps) == MEASURED.tokens(tier, start) + steps * step


@given(st.floats(0, 20), st.floats(0, 20), st.integers(1, 256))
def test_any_thresholds_give_a_retention(first: float, second: float, window: int) -> None:
    low, high = sorted((first, second))
    retention = retention_by_threshold(high, low, window)
    assert retention.tokens(0, window) == window
    kept = retention.tokens(0, 100_000) + retention.tokens(1, 100_000)
    assert window <= kept <= 100_000
    assert kept >= sum(retention_by_threshold(high, min(high, low * 2), window).tokens(t, 100_000) for t in (0, 1)) - 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_any_masses_give_a_retention(first: float, second: float) -> None:
    prune, low = sorted((first, second))
    retention = retention_by_mass(prune, low, 64)
    assert 64 <= retention.tokens(0, 4096) + retention.tokens(1, 4096) <= 4096


def test_published_points_are_met() -> None:
    for alpha, below in SIGNIFICANCE_BELOW:
        high, low = (retention_by_threshold(alpha, 0.0, 64).tokens(tier, 1088) for tier in (0, 1))
        assert (high - 64) / 1024 == pytest.approx(1 - below, abs=1e-3)
        assert low / 1024 == pytest.approx(below, abs=1e-3)


def test_a_profile_stores_and_replaces_it() -> None:
    stored = json.loads(json.dumps(MEASURED.to_dict()))
    assert Retention.from_dict(stored) == MEASURED
    policy = replace(registry["leankv"], retention=MEASURED)
    measured, published = (MemoryModel(each, model_named("smollm2-135m")) for each in (policy, registry["leankv"]))
    assert policy.held_tokens(8192, 8192) == pytest.approx((0.2 * 8192, 0.55 * 8192), abs=0.01)
    high, low = measured.pages_by_tier(8192, 8192)
    tokens_high, tokens_low = measured.tokens_per_page
    assert high == pytest.approx(90 * (0.2 * 8192 / tokens_high + 0.8), abs=1)
    assert low == pytest.approx(90 * (0.55 * 8192 / tokens_low + 0.8), abs=1)
    assert measured.pages(8192, 8192) != published.pages(8192, 8192)


def test_a_retention_of_another_policy_is_refused() -> None:
    one_tier = Retention((0, 64), ((0.0,), (64.0,)), 0.0, "measured on smollm2-135m")
    with pytest.raises(InputError, match="'leankv' has 2 tiers"):
        replace(registry["leankv"], retention=one_tier)


@pytest.mark.parametrize(
    ("contexts", "kept", "message"),
    [
        ((0,), ((0.0,),), "two knots or more"),
        ((64, 128), ((64.0,), (128.0,)), "the first at 0 tokens"),
        ((0, 64, 64), ((0.0,), (32.0,), (32.0,)), "sort the knots"),
        ((0, 64, 128), ((0.0,), (32.0,), (31.0,)), "shrinks before 128"),
        ((0, 64), ((0.0, 0.0), (40.0, 30.0)), "more kept than the 64"),
    ],
)
def test_impossible_curves_are_refused(
    contexts: tuple[int, ...], kept: tuple[tuple[float, ...], ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Retention(contexts, kept, 0.0, "literature")
