import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.made_growth import GROWTH, KEPT, measured_leankv

from leankv.serving.decode_growth import DecodeGrowth
from leankv.serving.errors import InputError
from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.retention import Retention

MEMORY = MemoryModel(measured_leankv(), model_named("smollm2-135m"))


def test_measured_points_are_met() -> None:
    """90 heads; what was measured is given back, at prompts and in between as the line says."""
    for prompt, tokens, pages in zip(GROWTH.prompts, GROWTH.tokens, GROWTH.pages, strict=True):
        for generated, held, in_pages in zip(GROWTH.generated, tokens, pages, strict=True):
            context = prompt + generated
            assert MEMORY.policy.held_tokens(prompt, context, 30, 3) == pytest.approx(held, abs=1e-3)
            assert MEMORY.pages_by_tier(prompt, context) == pytest.approx([90 * each for each in in_pages], abs=1)
    assert MEMORY.policy.held_tokens(128, 128 + 40, 30, 3)[0] == pytest.approx((86.6 + 117.8) / 2, abs=1e-3)


def test_the_window_is_held_whole_in_exact_pages() -> None:
    a_page = MEMORY.tokens_per_page[0]
    for context in range(1, 65):
        assert MEMORY.pages_by_tier(1, context) == (90 * -(-context // a_page), 0)
    assert MEMORY.pages(5, 80) == MEMORY.pages(64, 80)


def test_the_last_slopes_go_on() -> None:
    slope = (117.8 - 86.6) / 48
    assert GROWTH.at("tokens", 0, 128, 128 + 200) == pytest.approx(117.8 + slope * 136, abs=1e-2)
    far = GROWTH.at("tokens", 1, 4000, 4000)
    assert far == pytest.approx(1143.8 + (4000 - 1900) * (1143.8 - 325.6) / (1900 - 512), rel=1e-6)


@given(st.integers(1, 4000), st.integers(0, 500), st.integers(1, 300))
def test_a_jump_is_the_sum_of_its_steps_exactly(prompt: int, before: int, steps: int) -> None:
    bends = MEMORY.breakpoints(prompt)
    start = max(prompt, 64) + before
    if any(start < bend < start + steps for bend in bends):
        return
    for tier in (0, 1):
        curve = MEMORY.policy.groups(30, 3)[0].curves[tier]
        assert curve is not None
        step = curve.at(prompt, start + 1) - curve.at(prompt, start)
        assert curve.at(prompt, start + steps) == curve.at(prompt, start) + steps * step


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 2000)), min_size=1, max_size=30))
def test_arrays_agree_with_numbers(cases: list[tuple[int, int]]) -> None:
    prompts = np.array([prompt for prompt, _ in cases], dtype=np.int64)
    contexts = prompts + np.array([generated for _, generated in cases], dtype=np.int64)
    pairs = list(zip(prompts.tolist(), contexts.tolist(), strict=True))
    assert MEMORY.pages_array(prompts, contexts).tolist() == [MEMORY.pages(*pair) for pair in pairs]
    for tier in (0, 1):
        curve = MEMORY.policy.groups(30, 3)[0].curves[tier]
        assert curve is not None
        assert curve.at_array(prompts, contexts).tolist() == [curve.at(*pair) for pair in pairs]


@given(st.integers(1, 3000), st.integers(0, 400), st.integers(1, 300))
def test_pages_never_shrink_and_growth_is_bounded(prompt: int, before: int, tokens: int) -> None:
    start, end = (MEMORY.pages(prompt, prompt + before + more) for more in (0, tokens))
    assert start <= end <= start + MEMORY.growth_bound(tokens, prompt)
    assert MEMORY.growth_bound(tokens, prompt) <= MEMORY.growth_bound(tokens)
    counts = [MEMORY.pages(prompt, prompt + before + step) for step in range(80)]
    assert all(0 <= after - one <= MEMORY.growth_bound(1, prompt) for one, after in pairwise(counts))


@given(st.integers(1, 3000), st.integers(0, 1000))
def test_pages_hold_the_tokens(prompt: int, generated: int) -> None:
    held = MEMORY.policy.held_tokens(prompt, prompt + generated, 30, 3)
    by_tier = MEMORY.pages_by_tier(prompt, prompt + generated)
    for pages, tokens, capacity in zip(by_tier, held, MEMORY.tokens_per_page, strict=True):
        assert pages * capacity >= 90 * tokens * (1 - 1e-6)


def test_a_profile_stores_it() -> None:
    retention = replace(KEPT, growth=GROWTH)
    assert Retention.from_dict(json.loads(json.dumps(retention.to_dict()))) == retention


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"whole": 32}, "do not rise from 32"),
        ({"generated": (0, 64, 16)}, "do not rise from 0"),
        ({"prompts": (64, 128, 512)}, "does not fit its knots"),
        ({"pages": tuple(tuple(reversed(row)) for row in GROWTH.pages)}, "shrinks"),
    ],
)
def test_impossible_tables_are_refused(broken: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(GROWTH, **broken)


def test_growth_is_read_back_as_tuples() -> None:
    assert DecodeGrowth.from_dict(json.loads(json.dumps(GROWTH.to_dict()))) == GROWTH
