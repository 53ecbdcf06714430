"""One policy of a calibration: its steps, what it keeps, and the memory that it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from leankv.backend.calibration.reference import Reference
from leankv.backend.calibration.retained import GENERATED, QUICK_GENERATED, decode_growth, head_retention
from leankv.backend.calibration.rig import Rig
from leankv.backend.calibration.setup import Calibration
from leankv.backend.calibration.steps import Progress, time_steps
from leankv.backend.retention_report import retention
from leankv.backend.room import release_ended
from leankv.serving.policies.base import Policy
from leankv.serving.pool_plan import live_pool_pages
from leankv.serving.profile import HeadRetention
from leankv.serving.retention import Retention
from leankv.serving.step_samples import StepSample

CONTEXTS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2000, 3000, 4000, 6000, 8000)
QUICK_CONTEXTS = (32, 128, 512, 2000)
STEPS_SHARE = 0.8
"""Of the progress: step times."""


@dataclass(frozen=True)
class MeasuredPolicy:
    """What was measured of a policy; see `PolicyProfile`."""

    samples: Sequence[StepSample]
    retention: Retention | None
    heads: HeadRetention | None
    memory: dict[str, int]


def measure_policy(
    setup: Calibration, policy: Policy, number: int, progress: Progress, retained: bool = True
) -> MeasuredPolicy:
    """Everything of one policy; in a round after the first (`number` above 0), its steps alone once more.

    retained: whether what it keeps is measured, too. Raises InputError where it does not run live or does not fit.
    """
    _begin(setup.loaded.model.device.type)
    rig = Rig(
        setup.loaded,
        policy,
        setup.limits,
        setup.bench_bytes(policy),
        setup.max_context,
        setup.texts,
        setup.key_means,
    )
    reference = Reference(setup.loaded.model)
    steps = time_steps(rig, setup.grid, reference, number, lambda share: progress(STEPS_SHARE * share))
    memory = _memory(setup, policy, rig)
    kept, heads = None, None
    if retained and not number:
        kept, heads = _kept(setup, policy, lambda share: progress(STEPS_SHARE + (1 - STEPS_SHARE) * share))
    progress(1.0)
    return MeasuredPolicy(steps, kept, heads, memory)


def _begin(kind: str) -> None:
    """The peak is to be this policy's, and none of what an earlier one held."""
    release_ended(kind)
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _memory(setup: Calibration, policy: Policy, rig: Rig) -> dict[str, int]:
    """Pages of the pool that a server would have, and the most memory that this process took beside the captured texts,
    which a server does not hold, in bytes.
    """
    spec, slots = setup.model, setup.limits.max_num_seqs
    pages = live_pool_pages(
        policy, spec.head_dim, spec.layers * spec.kv_heads, setup.kv_memory_bytes, slots, setup.max_context
    )
    return {
        "kv_pool_bytes": setup.kv_memory_bytes,
        "kv_pool_pages": pages,
        "page_bytes": rig.engine.cache.page_bytes,
        "peak_bytes": _peak_bytes(setup.loaded.model.device.type) - sum(text.captured.nbytes for text in setup.texts),
    }


def _peak_bytes(kind: str) -> int:
    if kind == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kept(setup: Calibration, policy: Policy, progress: Progress) -> tuple[Retention | None, HeadRetention | None]:
    if policy.retention is None:
        return None, None
    longest = setup.max_context
    wanted = QUICK_CONTEXTS if setup.quick else CONTEXTS
    contexts = (*(context for context in wanted if context < longest), longest)
    texts, source = [text.captured for text in setup.texts], f"measured on {setup.model.name}"
    generated = QUICK_GENERATED if setup.quick else GENERATED
    growth = decode_growth(policy, texts, setup.key_means, contexts, generated, progress)
    with torch.inference_mode():
        on_host = [text.on_host() for text in texts]
        measured = retention(policy, on_host, contexts, source)
        return replace(measured, growth=growth), head_retention(policy, on_host, contexts)
