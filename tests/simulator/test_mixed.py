"""Replicas of different policies behind one router: jumps equal steps; requests take on their replica's lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leankv.serving.devices import device_named
from leankv.serving.errors import InputError
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.simulator.config import SimulationConfig
from leankv.simulator.forecast import Accuracy, predictions
from leankv.simulator.mixed import simulate_mixed
from leankv.simulator.routing import ROUTERS
from leankv.simulator.run import simulate
from leankv.traces.open import open_trace
from leankv.traces.trace import Trace

POLICIES = ("fp16", "leankv", "kivi")


def config(router: str = "predicted-both", names: tuple[str, ...] = POLICIES, **changed) -> SimulationConfig:
    policies = tuple(policy_named(name) for name in names)
    fixed = {"replicas": len(names), "max_num_seqs": 16, "kv_memory_bytes": 1 << 28, **changed}
    mix = policies if len(policies) > 1 else ()
    model, device = model_named("qwen2.5-0.5b"), device_named("l40")
    return SimulationConfig(model, device, policies[0], router=router, policies=mix, **fixed)


def trace(seed: int = 0) -> Trace:
    return open_trace("gamma:rate=60,cv=2,n=120,prompt=lognormal:200:0.6,output=lognormal:60:0.5", seed=seed)


def longer(base: Trace, factor: float) -> Trace:
    return replace(base, output_tokens=np.maximum(1, (base.output_tokens * factor).astype(np.int32)))


@pytest.mark.parametrize("concurrency", [None, 9])
@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_jumps_equal_steps(router: str, concurrency: int | None) -> None:
    base = trace()
    traces = [base, longer(base, 1.5), longer(base, 1.2)]
    jumped, stepped = (
        simulate_mixed(config(router, max_concurrency=concurrency, per_step=per_step), traces)
        for per_step in (False, True)
    )
    assert jumped.requests.equals(stepped.requests)


def test_a_request_gets_the_answer_of_its_replica() -> None:
    base = trace()
    traces = [base, longer(base, 2.0), longer(base, 3.0)]
    run = simulate_mixed(config("round-robin"), traces)
    replica, outputs = run.requests["replica"].to_numpy(), run.requests["output_tokens"].to_numpy()
    expected = np.choose(replica, [each.output_tokens for each in traces])
    assert (outputs == expected).all()
    assert sum(each["completed"] for each in run.summary["by_policy"].values()) == len(base)


def test_equal_policies_in_a_mix_are_one_policy() -> None:
    """Two replicas that both serve leankv, told in both ways."""
    mixed = simulate(config("least-kv-use", ("leankv", "leankv")), trace())
    plain = simulate(config("least-kv-use", ("leankv",), replicas=2), trace())
    assert mixed.requests.equals(plain.requests)
    for key in ("physical_ratio", "nominal_ratio", "peak_kv_gib", "mean_e2el_ms"):
        assert mixed.summary[key] == pytest.approx(plain.summary[key])


def test_a_perfect_length_predictor_avoids_longer_answers() -> None:
    """Where one policy's answers are five times as long, predicting that beats taking turns."""
    base = trace()
    traces = [base, longer(base, 5.0)]
    exact = Accuracy(1.0, 1.0)
    latency = {
        router: simulate_mixed(config(router, ("fp16", "leankv"), accuracy=exact), traces).summary["mean_e2el_ms"]
        for router in ("round-robin", "predicted-length", "predicted-both")
    }
    assert latency["predicted-both"] < 0.9 * latency["round-robin"]
    assert latency["predicted-length"] < latency["round-robin"]


@pytest.mark.parametrize("accuracy", [0.01, 0.3, 0.5, 0.7, 0.9, 0.92, 1.0])
def test_errors_are_as_large_as_stated(accuracy: float) -> None:
    outputs = np.full(200_000, 1000)
    found = predictions(outputs, Accuracy(accuracy, accuracy), (3, 0))
    for errors in (np.array(found.tokens) / 1000 - 1, np.array(found.slowness) - 1):
        assert np.abs(errors).mean() == pytest.approx(1 - accuracy, abs=0.01)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(InputError, match="--replicas 3"):
        config(replicas=2)
    with pytest.raises(InputError, match="prefix caching"):
        config(prefix_caching=True)
    with pytest.raises(InputError, match="accuracy"):
        Accuracy(length=0.0)
