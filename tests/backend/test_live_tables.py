"""Live token times: what the table `segments` says of gaps is what the requests saw, to the picosecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from leankv.backend.live_request import LiveRequest
from leankv.backend.live_tables import live_requests, live_segments
from leankv.backend.step_log import StepLog, StepRow
from leankv.serving.metrics import summarise
from leankv.serving.policies.registry import policy_named

from . import tiny

if TYPE_CHECKING:
    import pyarrow as pa

MS = 10**9


def row(start_ms: float, end_ms: float, sequences: int, prompt_tokens: int = 0) -> StepRow:
    """Reported half a millisecond after its token."""
    start, end, done = (int(ms * MS) for ms in (start_ms, end_ms, end_ms + 0.5))
    nothing = dict.fromkeys(("waiting", "preemptions", "staging", "tier0", "tier1", "attended"), 0)
    return StepRow(
        start_ps=start,
        scheduled_ps=start,
        end_ps=end,
        done_ps=done,
        sequences=sequences,
        prompt_tokens=prompt_tokens,
        running=2,
        decoding=sequences,
        chunks=(),
        completed=(),
        **nothing,
    )


def gaps(segments: pa.Table) -> list[float]:
    return (segments["first_gap_ps"].to_numpy() / MS).tolist()


def test_a_gap_reaches_from_token_to_token_where_sequences_go_on() -> None:
    steps = [row(0, 10, 0, 8), row(11, 20, 2), row(22, 30, 2), row(50, 60, 0, 8), row(61, 70, 1)]
    segments = live_segments(StepLog(steps))
    assert gaps(segments) == [10, 10, 10, 10, 10]
    assert (segments["start_ps"].to_numpy() / MS).tolist() == [0, 10, 20, 50, 60]
    assert live_segments(StepLog([])).num_rows == 0


def test_mean_itl_of_a_batch_without_prompts_is_its_mean_tpot() -> None:
    requests = [LiveRequest(number, [1], 4, tiny.TO_LENGTH) for number in range(2)]
    for request in requests:
        for _ in range(4):
            request.take(1, frozenset())
        request.admitted_ps = 0
        request.first_token_ps, request.finish_ps = 10 * MS, 43 * MS
    log = StepLog([row(0, 10, 0, 2), row(11, 20, 2), row(21.5, 30, 2), row(33, 43, 2)])
    summary = summarise(live_requests(requests, {}), live_segments(log), {})
    assert summary["mean_itl_ms"] == summary["mean_tpot_ms"] == 11.0


@pytest.mark.parametrize("preempted", [False, True])
def test_the_gaps_of_an_engine_add_up_to_what_its_requests_waited(preempted: bool) -> None:
    engine = tiny.engine_of(policy_named("int8"))
    requests = [LiveRequest(i, tiny.prompt_of(20 + i, i), 6 + i, tiny.TO_LENGTH) for i in range(3)]
    for request in requests:
        engine.add(request)
        engine.step()
    if preempted:
        engine.scheduler._preempt_last()
    while not engine.idle:
        engine.step()
    segments = live_segments(engine.log)
    seen = segments["sequences"].to_numpy()
    total = np.dot(segments["first_gap_ps"].to_numpy(), seen) + sum(engine.log.preemption_gaps_ps)
    assert seen.sum() + len(engine.log.preemption_gaps_ps) == sum(len(each.output) - 1 for each in requests)
    assert total == pytest.approx(sum(each.finish_ps - each.first_token_ps for each in requests), rel=1e-12)
