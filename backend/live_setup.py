"""What a live run needs before its clock starts: the model on its device, memory for the cache, prompts, mean keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.key_means import key_means_of
from leankv.backend.live_request import Sampling
from leankv.backend.live_run import LiveConfig
from leankv.backend.prompts import prompts_of
from leankv.backend.room import GIB, free_bytes, memory_told, require_room_for_model
from leankv.backend.texts import essays, windows
from leankv.backend.weights import Loaded, load
from leankv.serving.errors import InputError
from leankv.serving.models import ModelSpec, model_of_config
from leankv.serving.policies.base import Policy
from leankv.serving.scheduler import SchedulerLimits

if TYPE_CHECKING:
    from leankv.traces.trace import Trace

DEFAULT_CPU_BYTES = GIB
GPU_SHARE = 0.75
MEANS_TOKENS = 512


@dataclass(frozen=True, eq=False)
class LiveSetup:
    """prompts: by request of the trace. key_means: where some policy centres keys."""

    loaded: Loaded
    model: ModelSpec
    device: Mapping[str, Any]
    kv_memory_bytes: int
    prompts: Sequence[Sequence[int]]
    key_means: KeyMeans | None

    def config(
        self, policy: Policy, limits: SchedulerLimits, sampling: Sampling, slo: Mapping[str, float]
    ) -> LiveConfig:
        """The configuration of one policy's run."""
        return LiveConfig(self.model, self.device, policy, limits, self.kv_memory_bytes, sampling, slo)


def live_setup(
    model: str, backend: str, kv_memory_gib: float | None, trace: Trace, policies: Sequence[Policy]
) -> LiveSetup:
    """Load everything. backend: "auto", "cpu" or "cuda".

    Raises InputError: no such model or GPU, a model or pool that does not fit, a text package that is missing.
    """
    device = device_named(backend)
    loaded = loaded_on(model, device)
    spec = model_of_config(loaded.model.config.to_dict(), loaded.name, loaded.source)
    pool = pool_bytes(device, kv_memory_gib)
    texts = essays()
    prompts = prompts_of(texts, loaded.tokenizer, trace.prompt_tokens.tolist())
    centred = any("centred" in policy.key_transform for policy in policies)
    means = key_means_of(loaded, windows(texts, loaded.tokenizer, MEANS_TOKENS, 1)[0]) if centred else None
    return LiveSetup(loaded, spec, described(loaded, device), pool, prompts, means)


def device_named(backend: str) -> str:
    """The device that a choice means: cpu or cuda. Raises InputError where there is no GPU for cuda."""
    if backend == "cuda" and not torch.cuda.is_available():
        raise InputError("--backend cuda: this machine has no GPU that torch can use; use --backend cpu")
    if backend == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return backend


def loaded_on(model: str, device: str, dtype: str | None = None) -> Loaded:
    """The model; see `weights.load`. Raises InputError where it does not fit."""
    require_room_for_model(model, device)
    where = "the GPU; choose a smaller model or --backend cpu" if device == "cuda" else "memory; choose a smaller model"
    with memory_told(f"{model} does not fit {where}, or free memory"):
        return load(model, dtype, device)


def pool_bytes(device: str, asked_gib: float | None) -> int:
    if asked_gib is not None and asked_gib <= 0:
        raise InputError(f"--kv-memory-gib is {asked_gib:g}: give a positive size")
    free = free_bytes(device)
    if asked_gib is None:
        return DEFAULT_CPU_BYTES if device == "cpu" or free is None else int(free * GPU_SHARE)
    if free is not None and asked_gib * GIB > free:
        raise InputError(
            f"--kv-memory-gib {asked_gib:g}: {free / GIB:.1f} GiB are free beside the model; lower it or free memory"
        )
    return int(asked_gib * GIB)


def described(loaded: Loaded, device: str) -> dict[str, Any]:
    """Where a model runs, in words."""
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    if device == "cuda":
        return {"name": torch.cuda.get_device_name(), "backend": "cuda", "dtype": dtype}
    threads = torch.get_num_threads()
    return {"name": f"cpu, {threads} threads", "backend": "cpu", "threads": threads, "dtype": dtype}
