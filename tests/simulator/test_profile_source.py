from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator.made_profile import FIT, KEPT, made_profile

from leankv.serving.errors import InputError
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import Profile, profile_device
from leankv.serving.runs import Run
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import simulate
from leankv.traces.trace import Trace


def trace_of(prompts: list[int], outputs: list[int], gap_s: float = 0.2) -> Trace:
    arrivals = (np.arange(len(prompts)) * gap_s * 1e12).astype(np.int64)
    return Trace("made", arrivals, np.array(prompts, np.int32), np.array(outputs, np.int32))


def config_of(policy: str, profile: Profile | None = None, **others: object) -> SimulationConfig:
    chosen = profile or made_profile()
    common = {"model": chosen.model, "device": profile_device(chosen), "step_time": "profile", "profile": chosen}
    limits = {"max_num_seqs": 16, "max_num_batched_tokens": 512, "kv_memory_bytes": 1 << 28}
    return SimulationConfig(policy=policy_named(policy), **{**common, **limits, **others})


def run_of(policy: str, trace: Trace, **others: object) -> Run:
    return simulate(config_of(policy, **others), trace)


def test_one_request_takes_what_the_fit_says() -> None:
    run = run_of("fp16", trace_of([100], [3]))
    first_s = FIT.linear(100) + FIT.row_s + FIT.chunk(100, 0) + FIT.prompt(100)
    assert run.summary["mean_ttft_ms"] == pytest.approx(first_s * 1e3, rel=1e-5)
    bytes_a_token = 4 * 30 * 3 * 64
    decoded = [FIT.linear(1) + FIT.row_s + FIT.decode(1, (bytes_a_token * context, 0)) for context in (101, 102)]
    assert run.summary["mean_tpot_ms"] == pytest.approx(sum(decoded) / 2 * 1e3, rel=1e-6)


def test_short_prompts_pay_what_a_chunk_and_a_prompt_cost_at_least() -> None:
    run = run_of("fp16", trace_of([2], [1]))
    first_s = FIT.linear(2) + FIT.row_s + FIT.chunk(2, 0) + FIT.prompt(2)
    assert run.summary["mean_ttft_ms"] == pytest.approx(first_s * 1e3, rel=1e-5)


def test_sources_are_named_and_retention_is_the_measured_one() -> None:
    run = run_of("leankv", trace_of([500, 40], [20, 5]))
    assert run.summary["step_time_source"] == "profile (cpu, 2 threads, 2026-11-21)"
    assert run.summary["retention_source"] == KEPT.source
    assert run.config["profile"]["created"] == "2026-11-21T15:00:00+00:00"
    assert run.config["device"]["name"] == "cpu, 2 threads"
    assert run_of("fp16", trace_of([40], [5])).summary["retention_source"] == "exact"


def test_runs_from_different_profiles_are_told_apart() -> None:
    one, other = made_profile("fp16"), made_profile("fp16")
    dearer = {"fp16": replace(other.policies["fp16"], fit=replace(FIT, row_s=2e-3))}
    other = replace(other, policies=dearer)
    assert config_of("fp16", one).as_dict() != config_of("fp16", other).as_dict()


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 60)), min_size=1, max_size=25),
    st.floats(0.0, 0.5),
    st.sampled_from(["fp16", "int8", "kivi", "leankv"]),
)
@settings(max_examples=25, deadline=None)
def test_jumps_and_single_steps_agree_to_the_bit(lengths: list[tuple[int, int]], gap_s: float, policy: str) -> None:
    trace = trace_of([prompt for prompt, _ in lengths], [output for _, output in lengths], gap_s)
    jumped, stepped = (run_of(policy, trace, per_step=slow) for slow in (False, True))
    for column in ("first_token_ps", "finish_ps", "admitted_ps"):
        assert jumped.requests[column].to_pylist() == stepped.requests[column].to_pylist()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"model": model_named("qwen2.5-7b")}, r"profile is of smollm2-135m, not of qwen2\.5-7b"),
        ({"step_time": "roofline"}, "give --profile DIR"),
        ({"step_overhead_ms": 1.0}, "leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(others: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of("fp16", **others)


@pytest.mark.parametrize(
    ("policy", "others", "message"),
    [
        ("fp8", {}, "policy fp8 was not measured: the profile of smollm2-135m has fp16, int8, kivi, leankv"),
        ("leankv:alpha_low=0.5", {}, "policy leankv:alpha_low=0.5 was not measured"),
        ("fp16", {"tp": 3}, "measured on one device"),
    ],
)
def test_what_was_not_measured_is_refused(policy: str, others: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_of(policy, trace_of([40], [5]), **others)
