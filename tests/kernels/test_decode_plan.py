"""The decode step's decision: LeanKV's five cases, H2O's and StreamingLLM's, against their definitions."""

from __future__ import annotations

import random

import pytest
import torch

from leankv.kernels.decode_rules import APPEND, DEMOTE, OVERWRITE, DecodeRule, StepInputs
from leankv.kernels.decode_step import plan_step
from leankv.serving.formats import K4V2, K8V4
from leankv.serving.pages import layout_of

from .caches import SmallCache
from .five_cases import FIVE_CASES, sums

LAYOUTS = (layout_of(K8V4, 64), layout_of(K4V2, 64))
THRESHOLDS = DecodeRule("thresholds", score_window=4)


def inputs(rows, position, prompt, alpha=(0.5, 2.0), capacity=0, recent=4) -> StepInputs:  # type: ignore[no-untyped-def]
    n = len(rows)
    whole = [torch.full((n,), value, dtype=torch.int32) for value in (position, prompt, capacity, recent)]
    low, high = (torch.full((n,), value) for value in alpha)
    return StepInputs(torch.tensor(rows).int(), whole[0], whole[1], low, high, whole[2], whole[3])


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize(
    ("high", "low", "case", "place", "spare", "wanted"),
    FIVE_CASES,
)
def test_five_cases(path, high, low, case, place, spare, wanted) -> None:  # type: ignore[no-untyped-def]
    cache = SmallCache(LAYOUTS, [[sums(high, 20, 12), sums(low, 20, 12)]])
    plan = plan_step(cache.pool, cache.tables, LAYOUTS, THRESHOLDS, inputs([0], 20, 12), path=path)
    found = (int(plan.case), int(plan.place), int(plan.spare), plan.wanted[0].tolist())
    assert found == (case, place, spare, wanted)


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize(
    ("high", "low", "case"),
    [({3: 0.125}, {}, APPEND), ({3: 0.03125}, {}, DEMOTE), ({3: 0.0625}, {1: 0.03125}, DEMOTE)],
)
def test_a_token_at_a_threshold_is_not_below_it(path, high, low, case) -> None:  # type: ignore[no-untyped-def]
    # p = 16: pruned below 1/32, low below 1/8, both exact; the tokens were seen by eight queries.
    held = [[(i, mean * 8) for i, mean in each.items()] for each in (high, low)]
    cache = SmallCache(LAYOUTS, [held])
    plan = plan_step(cache.pool, cache.tables, LAYOUTS, THRESHOLDS, inputs([0], 16, 12), path=path)
    assert int(plan.case) == case


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_h2o_drops_the_smallest_sum_outside_the_window_once_full(path) -> None:  # type: ignore[no-untyped-def]
    held = [(2, 5.0), (15, 0.4), (7, 0.5), (17, 0.0), (18, 0.0), (19, 0.0)]
    cache = SmallCache(LAYOUTS[:1], [[held], [held[:5]]])
    step = inputs([0, 1], 20, 12, capacity=6)
    plan = plan_step(cache.pool, cache.tables, LAYOUTS[:1], DecodeRule("heavy"), step, path=path)
    assert plan.case.tolist() == [OVERWRITE, APPEND]
    assert plan.place.tolist() == [1, 5]
    assert plan.wanted.tolist() == [[6, 0], [6, 0]]


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_streaming_overwrites_the_oldest_but_the_sinks(path) -> None:  # type: ignore[no-untyped-def]
    layout = layout_of(K8V4, 64, bookkeeping=0)
    cache = SmallCache((layout,), [[[(i, 0.0) for i in range(6)]]])
    rule, places = DecodeRule("ring", sink=2), []
    for position in range(6, 12):
        plan = plan_step(cache.pool, cache.tables, (layout,), rule, inputs([0], position, 6, capacity=6), path=path)
        places.append((int(plan.case), int(plan.place)))
    assert places == [(OVERWRITE, place) for place in (2, 3, 4, 5, 2, 3)]


@pytest.mark.parametrize("bookkeeping", [5, 8])
def test_vectorised_agrees_with_the_reference_over_random_caches(bookkeeping: int) -> None:
    draw = random.Random(bookkeeping)
    layouts = (layout_of(K8V4, 64, bookkeeping=bookkeeping), layout_of(K4V2, 64, bookkeeping=bookkeeping))
    rows = []
    for _ in range(40):
        ids = draw.sample(range(300), draw.randint(0, 120))
        cut = draw.randint(0, len(ids))
        tokens = [(i, draw.choice([0.0, draw.random() * 0.3])) for i in ids]
        rows.append([tokens[:cut], tokens[cut:]])
    cache = SmallCache(layouts, rows, pages=400)
    for rule in (THRESHOLDS, DecodeRule("heavy")):
        step = inputs([*range(40), -1], 300, 250, capacity=30, recent=40)
        plans = [plan_step(cache.pool, cache.tables, layouts, rule, step, path=p) for p in ("reference", "torch")]  # type: ignore[arg-type]
        for name in ("case", "place", "spare", "wanted"):
            assert torch.equal(getattr(plans[0], name)[:40], getattr(plans[1], name)[:40]), (rule.kind, name)
        assert len(set(plans[0].case.tolist())) > 1
