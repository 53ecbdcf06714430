"""Every policy under the live engine's late page counts, in too little memory: jumps against steps, nothing lost."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from tests.simulator.test_policies_jump import MODEL, column, traces

from leankv.serving.devices import device_named
from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.policies.budgets import KeepAll
from leankv.serving.policies.registry import registry
from leankv.serving.runs import Run
from leankv.simulator.config import SimulationConfig
from leankv.simulator.late_pages import LatePages
from leankv.simulator.run import assemble, deploy, event_loop

CHUNKED, WHOLE = (True, 512), (False, 4096)


@cache
def run(policy: str, chunked: bool, batched: int, per_step: bool) -> tuple[Run, int]:
    """The run, and how many tokens came after a preemption."""
    trace = traces()["long answers"]
    config = SimulationConfig(
        model_named(MODEL),
        device_named("l40"),
        registry[policy],
        max_num_seqs=32,
        max_num_batched_tokens=batched,
        chunked_prefill=chunked,
        kv_pages=tight_pages(policy),
        late_counts=True,
        per_step=per_step,
    )
    deployment = deploy(config)
    outcome = event_loop(deployment, trace).run()
    gaps = sum(len(replica.engine.log.preemption_gaps_ps) for replica in outcome.replicas)
    return assemble(deployment, trace, outcome), gaps


def tight_pages(policy: str) -> int:
    """The largest request's bound and a third more."""
    late = LatePages(MemoryModel(registry[policy], model_named(MODEL)))
    trace = traces()["long answers"]
    prompts, outputs = trace.prompt_tokens.astype(np.int64), trace.output_tokens.astype(np.int64)
    needs = np.maximum(late.prefill_pages_array(prompts), late.pages_array(prompts, prompts + outputs))
    return int(1.33 * needs.max())


every = pytest.mark.parametrize(
    ("policy", "mode"), [(policy, mode) for policy in registry for mode in (CHUNKED, WHOLE)]
)


@every
def test_jumps_and_steps_agree_to_the_bit(policy: str, mode: tuple[bool, int]) -> None:
    (jumped, _), (stepped, _) = (run(policy, *mode, per_step) for per_step in (False, True))
    assert jumped.requests.equals(stepped.requests)
    assert jumped.segments.num_rows < stepped.segments.num_rows
    assert totals(jumped) == totals(stepped)


def totals(found: Run) -> tuple[int, int, int]:
    """Steps, tokens decoded and tokens computed beside them."""
    steps, sequences, prompts = (column(found.segments, name) for name in ("steps", "sequences", "prompt_tokens"))
    return int(steps.sum()), int((steps * sequences).sum()), int((steps * prompts).sum())


@every
def test_every_token_is_given_once_and_pages_fit(policy: str, mode: tuple[bool, int]) -> None:
    found, gaps = run(policy, *mode, False)
    requests, segments, states = found.requests, found.segments, found.timeline
    assert set(requests["status"].to_pylist()) == {"finished"}
    decoded = int((column(segments, "steps") * column(segments, "sequences")).sum())
    assert decoded + gaps + len(requests) == column(requests, "output_tokens").sum()
    used = column(states, "kv_pages_used")
    assert ((used >= 0) & (used <= column(states, "kv_pages_capacity"))).all() and used[-1] == 0
    replayed = column(segments, "prompt_tokens") * column(segments, "steps")
    preempted = int(column(requests, "preemptions").sum())
    assert replayed.sum() >= column(requests, "prompt_tokens").sum()
    if not preempted:
        assert replayed.sum() == column(requests, "prompt_tokens").sum() and gaps == 0


@every
def test_inter_token_latencies_fill_the_time_from_first_to_last_token(policy: str, mode: tuple[bool, int]) -> None:
    found, _ = run(policy, *mode, False)
    requests = found.requests
    decoding_ms = (column(requests, "finish_ps") - column(requests, "first_token_ps")).sum() / 1e9
    gaps = (column(requests, "output_tokens") - 1).sum()
    assert found.summary["mean_itl_ms"] * gaps == pytest.approx(decoding_ms, rel=1e-6)


@pytest.mark.parametrize("policy", ["fp16", "int4", "kivi", "snapkv", "leankv", "leankv-r"])
def test_memory_was_tight_enough_to_take_caches_away(policy: str) -> None:
    found, gaps = run(policy, *CHUNKED, False)
    assert gaps > 0
    pure = column(found.segments, "steps") > 1
    replays = int(column(found.segments, "prompt_tokens")[pure].sum())
    assert (replays > 0) == (not isinstance(registry[policy].budget, KeepAll))
