"""One policy of a calibration: its steps, what it keeps, and the memory that it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leankv.backend.calibration.reference import Noise, Reference
from leankv.backend.calibration.rig import Rig
from leankv.backend.calibration.setup import Calibration
from leankv.backend.calibration.steps import Progress, time_steps
from leankv.backend.retention_report import kept_tokens, retention
from leankv.serving.policies.base import Policy
from leankv.serving.pool_plan import live_pool_pages
from leankv.serving.profile import HeadRetention
from leankv.serving.retention import Retention
from leankv.serving.step_samples import StepSample

CONTEXTS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2000, 3000, 4000, 6000, 8000)
QUICK_CONTEXTS = (32, 128, 512, 2000)
STEPS_SHARE = 0.9
"""Of the progress: step times."""


@dataclass(frozen=True)
class MeasuredPolicy:
    """What was measured of a policy; see `PolicyProfile`."""

    samples: Sequence[StepSample]
    noise: Noise
    retention: Retention | None
    heads: HeadRetention | None
    memory: dict[str, int]


def measure_policy(setup: Calibration, policy: Policy, progress: Progress) -> MeasuredPolicy:
    """Everything of one policy. Raises InputError where it does not run live or does not fit."""
    rig = Rig(
        setup.loaded,
        policy,
        setup.limits,
        setup.bench_bytes(policy),
        setup.max_context,
        setup.texts,
        setup.key_means,
    )
    reference = Reference(setup.loaded.model.device)
    steps = time_steps(rig, setup.grid, reference, lambda share: progress(STEPS_SHARE * share))
    memory = _memory(setup, policy, rig)
    kept, heads = _kept(setup, policy)
    progress(1.0)
    return MeasuredPolicy(steps.samples, steps.noise, kept, heads, memory)


def _memory(setup: Calibration, policy: Policy, rig: Rig) -> dict[str, int]:
    """Pages of the pool that a server would have, and the most memory that this process took, in bytes."""
    spec, slots = setup.model, setup.limits.max_num_seqs
    pages = live_pool_pages(
        policy, spec.head_dim, spec.layers * spec.kv_heads, setup.kv_memory_bytes, slots, setup.max_context
    )
    return {
        "kv_pool_bytes": setup.kv_memory_bytes,
        "kv_pool_pages": pages,
        "page_bytes": rig.engine.cache.page_bytes,
        "peak_bytes": _peak_bytes(setup.loaded.model.device.type),
    }


def _peak_bytes(kind: str) -> int:
    if kind == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kept(setup: Calibration, policy: Policy) -> tuple[Retention | None, HeadRetention | None]:
    if policy.retention is None:
        return None, None
    longest = setup.max_context
    wanted = QUICK_CONTEXTS if setup.quick else CONTEXTS
    contexts = (*(context for context in wanted if context < longest), longest)
    captured = [text.captured for text in setup.texts]
    source = f"measured on {setup.model.name}"
    with torch.inference_mode():
        measured = retention(policy, captured, contexts, source)
        means = [_mean_tokens(policy, captured, context) for context in contexts]
    return measured, HeadRetention(contexts, tuple(means), len(captured))


def _mean_tokens(policy: Policy, captured: Sequence[Any], context: int) -> Any:
    """[layer][KV head][tier] tokens of prompts of that length, over the texts, to a tenth."""
    kept = torch.stack([kept_tokens(policy, text, context) for text in captured]).double().mean(0)
    return tuple(tuple(tuple(round(x, 1) for x in head) for head in layer) for layer in kept.tolist())
