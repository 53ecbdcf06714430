"""Hand-made results with the schemas of real ones, so that pages are tested without a model."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.app.commands._validation_runs import LiveRun, Results
from leankv.serving.devices import device_named
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.runs import Run, save_run
from leankv.serving.scheduler import SchedulerLimits
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import simulate
from leankv.simulator.validation import save_validation, validated
from leankv.traces.open import open_trace

if TYPE_CHECKING:
    from leankv.serving.models import ModelSpec
    from leankv.traces.trace import Trace

CREATED = "2026-11-21T12:00:00+00:00"
LOADS = {"low": 1.0, "knee": 2.0}
REPEATS = 2


@cache
def served(policy: str, rate: float, overhead_ms: float) -> Run:
    """One run; another overhead stands for another machine than the simulator knows."""
    from leankv.traces.transforms import rate_scale

    trace: Trace = rate_scale(open_trace(limit=80), rate)
    device = device_named("l40s")
    config = SimulationConfig(
        model=model_named("llama-3.1-8b"), device=device, policy=policy_named(policy), step_overhead_ms=overhead_ms
    )
    return simulate(config, trace)


def validation_folder(folder: Path, policies: tuple[str, ...] = ("fp16", "int8", "leankv"), runs: bool = True) -> Path:
    """A folder as `leankv validate` leaves it: two loads, two repeats, "live" runs on a slightly slower machine.

    Beside the last policy's second run others took so much of the cores that it does not count.
    """
    results = Results()
    for load, rate in LOADS.items():
        for policy in policies:
            results.simulated[load, policy] = served(policy, rate, 0.7)
            for repeat in range(REPEATS):
                others = 0.4 if (policy, repeat) == (policies[-1], 1) else 0.03
                results.add(LiveRun(load, policy_named(policy), repeat), _live(policy, rate, repeat, others))
            if runs:
                _save(results, load, policy, folder / load / policy)
    loads = {load: {"rate_scale": rate, "offered_rps": 4 * rate} for load, rate in LOADS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    conditions = validation_conditions(policies, {load: results.repeats(load) for load in LOADS})
    save_validation(validated(conditions, loads, results.cases(), results.machine(None)), folder / "validation.json")
    return folder


def _live(policy: str, rate: float, repeat: int, others: float) -> Run:
    run = served(policy, rate, 1.5 + 0.3 * repeat)
    machine = {"others": others, "before": 1.0, "after": 1.02 + 0.2 * repeat}
    return replace(run, source="live", summary={**run.summary, "machine": machine})


def _save(results: Results, load: str, policy: str, folder: Path) -> None:
    save_run(results.simulated[load, policy], folder / "simulated")
    for repeat, run in results.live[load, policy].items():
        save_run(run, folder / f"live-{repeat + 1}")


def validation_conditions(policies: tuple[str, ...], repeats: dict[str, int]) -> dict[str, Any]:
    """As `leankv validate` writes them; a test holds the keys to its own."""
    return {
        "device": {"name": "cpu, 2 threads", "backend": "cpu", "dtype": "float32"},
        "model": asdict(model_named("llama-3.1-8b")),
        "trace": {"name": "azure-conv-2023-like", "requests": 80},
        "policies": list(policies),
        "repeats": repeats,
        **asdict(SchedulerLimits(16, 512, True)),
        "kv_memory_bytes": 1 << 30,
        "versions": {},
        "profile": {"device": {}, "created": CREATED, "contents": "0" * 16, "versions": {}},
    }


# policy: (bytes of FP16 over payload, over pages, loss of log-probability a token, share of tasks right, output growth)
ANSWERS = {
    "fp16": (1.0, 0.97, 0.0, 0.9, 1.0),
    "int8": (2.0, 1.78, 0.002, 0.9, 1.02),
    "int4": (4.0, 3.2, 1.1, 0.2, 2.2),
    "kivi:bits=4": (3.6, 2.9, 0.012, 0.85, 1.1),
    "leankv": (4.4, 3.1, 0.008, 0.85, 1.15),
    "leankv-r": (6.0, 4.4, 0.04, 0.75, 1.4),
}
CONTEXTS, DEPTHS = (256, 512, 1024), (0.1, 0.5, 0.9)


def quality_folder(folder: Path) -> Path:
    """A folder as `leankv evaluate` leaves it, with 40 samples a task and policy."""
    from leankv.serving.quality import Quality, samples_table, save_quality

    model = model_named("smollm2-135m")
    rows = [row for policy in ANSWERS for row in _samples(policy)]
    specifications = {policy: repr(policy_named(policy)) for policy in ANSWERS}
    device = {"name": "cpu, 2 threads", "backend": "cpu"}
    quality = Quality(model, device, {}, "float32", 0, "quick", {}, specifications, samples_table(rows))
    return save_quality(quality, folder)


def _samples(policy: str) -> list[dict[str, object]]:
    import numpy as np

    nominal, physical, loss, right, growth = ANSWERS[policy]
    random = np.random.default_rng(7)  # the same for all, as the samples are
    plain = 1_000_000
    size = {"kv_fp16_bytes": plain, "kv_payload_bytes": int(plain / nominal), "kv_page_bytes": int(plain / physical)}
    rows: list[dict[str, object]] = []
    for n in range(40):
        hard, luck, tokens = random.normal(2.5, 0.3), random.uniform(), int(random.integers(20, 120))
        common = {"policy": policy, "sample_id": str(n), "subject": "text", "prompt_tokens": 256, **size}
        agreement = 1 - loss / 2
        text = {"log_probability_nats": -64 * (hard + loss * (0.5 + luck)), "scored_tokens": 64, "agreement": agreement}
        score = {"score": float(luck < right)}
        place = {"context_tokens": CONTEXTS[n % 3], "depth": DEPTHS[n // 3 % 3]}
        said = {"question": f"What is {n} + {n}?", "reference": str(2 * n), "answer": f"{2 * n + (luck >= right)}"}
        rows.append({**common, "task": "perplexity", **text, "kl_nats": loss / 3})
        rows.append({**common, "task": "needle", **score, **place, **said})
        rows.append({**common, "task": "choice", **score, **said})
        length = {"output_tokens": max(1, int(tokens * (1 + (growth - 1) * 2 * luck))), "stopped": True}
        rows.append({**common, "task": "answers", **score, **said, **length})
    return rows


MEASURED = ("fp16", "int8", "leankv")


def profile_folder(folder: Path) -> Path:
    """A folder as `leankv calibrate` leaves it, of SmolLM2's shape on two threads."""
    import pyarrow as pa

    from leankv.serving.profile import HeadRetention, HeldOut, PolicyProfile, Profile, StepFit, save_profile

    model = model_named("smollm2-135m")
    fit = StepFit((1, 64, 512), (0.02, 0.12, 0.9), 1e-4, 1e-3, 2e-4, (1e-10, 2e-10), 1e-3, 1e-5, 1e-7, 1e-9, 1e-3, 1e-6)
    heads = HeadRetention((256, 512), (_kept(model, 128), _kept(model, 200)), 4)
    policies = {
        name: PolicyProfile(
            repr(policy_named(name)),
            fit,
            {"decode": HeldOut(20, 0.03, 0.08, 0.01), "prefill": HeldOut(20, 0.02, 0.05, -0.01)},
            policy_named(name).retention,
            heads if name == "leankv" else None,
        )
        for name in MEASURED
    }
    device = {"name": "cpu, 2 threads", "backend": "cpu", "dtype": "float32", "memory_bytes": 16 << 30}
    settings = {"max_num_seqs": 16, "max_num_batched_tokens": 512}
    profile = Profile(model, device, "float32", {"torch": "2.13"}, CREATED, policies, settings)
    return save_profile(profile, pa.table({"seconds": [0.1]}), folder)


def _kept(model: ModelSpec, tokens: float) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Later layers keep less, head 0 more."""
    return tuple(
        tuple((tokens * (1 - layer / 60), tokens * (head == 0) / 4) for head in range(model.kv_heads))
        for layer in range(model.layers)
    )
