"""Run in a child process under Triton's interpreter: the decode step's decision and score update."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from caches import SmallCache
from five_cases import FIVE_CASES, sums
from read_back import NoReadBack

from leankv.kernels.decode_rules import APPEND, DEMOTE, DecodeRule, StepInputs
from leankv.kernels.decode_step import plan_step
from leankv.kernels.scores import update_scores
from leankv.serving.formats import K4V2, K8V4
from leankv.serving.pages import layout_of

ROWS = 10


def _cache(bookkeeping: int) -> SmallCache:
    draw = random.Random(bookkeeping)
    layouts = tuple(layout_of(f, 64, bookkeeping=bookkeeping) for f in (K8V4, K4V2))
    rows: list[list[list[tuple[int, float]]]] = []
    for _ in range(ROWS):
        ids = draw.sample(range(300), draw.randint(0, 120))
        cut = draw.randint(0, len(ids))
        tokens = [(i, draw.choice([0.0, draw.random() * (0.3 if bookkeeping == 8 else 0.01)])) for i in ids]
        rows.append([tokens[:cut], tokens[cut:]])
    return SmallCache(layouts, rows, pages=100)


def _inputs() -> StepInputs:
    whole = [torch.full((ROWS + 1,), value, dtype=torch.int32) for value in (300, 250, 20, 40)]
    low, high = torch.full((ROWS + 1,), 0.5), torch.full((ROWS + 1,), 1.5)
    rows = torch.tensor([*range(ROWS), -1], dtype=torch.int32)
    return StepInputs(rows, whole[0], whole[1], low, high, whole[2], whole[3])


def at_a_threshold() -> None:
    """At p = 16 pruned below 1/32, low below 1/8; each token was seen by eight queries, so sums are exact."""
    layouts = tuple(layout_of(f, 64) for f in (K8V4, K4V2))
    cache = SmallCache(layouts, [[[(3, 1.0)], []], [[(3, 0.25)], []], [[(3, 0.5)], [(1, 0.25)]]])
    whole = [torch.full((3,), value, dtype=torch.int32) for value in (16, 12, 0, 4)]
    step = StepInputs(torch.arange(3).int(), *whole[:2], torch.full((3,), 0.5), torch.full((3,), 2.0), *whole[2:])
    rule = DecodeRule("thresholds", score_window=4)
    plan = plan_step(cache.pool, cache.tables, layouts, rule, step, path="triton")
    assert plan.case.tolist() == [APPEND, DEMOTE, DEMOTE]


def five_cases() -> None:
    layouts, n = tuple(layout_of(f, 64) for f in (K8V4, K4V2)), len(FIVE_CASES)
    cache = SmallCache(layouts, [[sums(high, 20, 12), sums(low, 20, 12)] for high, low, *_ in FIVE_CASES])
    whole = [torch.full((n,), value, dtype=torch.int32) for value in (20, 12, 0, 4)]
    step = StepInputs(torch.arange(n).int(), *whole[:2], torch.full((n,), 0.5), torch.full((n,), 2.0), *whole[2:])
    plan = plan_step(cache.pool, cache.tables, layouts, DecodeRule("thresholds", score_window=4), step, path="triton")
    found = zip(plan.case.tolist(), plan.place.tolist(), plan.spare.tolist(), plan.wanted.tolist(), strict=True)
    for plan_of_row, (high, low, *expected) in zip(found, FIVE_CASES, strict=True):
        assert list(plan_of_row) == expected, (high, low, plan_of_row)


def main() -> None:
    five_cases()
    at_a_threshold()
    for bookkeeping in (8, 5):
        cache, step = _cache(bookkeeping), _inputs()
        for rule in (DecodeRule("append"), DecodeRule("ring", sink=4), DecodeRule("heavy"), DecodeRule("thresholds")):
            asked = (cache.pool, cache.tables, cache.layouts, rule, step)
            reference = plan_step(*asked, path="reference")
            with NoReadBack():
                kernel = plan_step(*asked, path="triton")
            for name in ("case", "place", "spare", "wanted"):
                found, wanted = getattr(kernel, name)[:ROWS], getattr(reference, name)[:ROWS]
                assert torch.equal(found, wanted), (bookkeeping, rule.kind, name, found, wanted)
        gains = torch.rand(ROWS + 1, 300, generator=torch.Generator().manual_seed(3))
        pools = []
        for path in ("triton", "reference", "torch"):
            pool = cache.pool.clone()
            update_scores(pool, cache.tables, cache.layouts, step, gains, path=path)  # type: ignore[arg-type]
            assert not torch.equal(pool, cache.pool)
            pools.append(pool.view(torch.float16 if bookkeeping == 5 else torch.float32).nan_to_num())
        for other in pools[1:]:
            assert torch.allclose(pools[0].float(), other.float(), rtol=1e-3 if bookkeeping == 5 else 1e-6), bookkeeping


if __name__ == "__main__":
    main()
