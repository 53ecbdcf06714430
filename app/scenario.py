"""What a visitor asks: which traffic, on which model and GPU, under which policies, judged by which service levels.

A scenario is plain values, so that it fits into a URL, into a job's row, and into the key of a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leankv.serving.devices import DeviceSpec
    from leankv.serving.models import ModelSpec
    from leankv.serving.profile import Profile
    from leankv.simulator.config import SimulationConfig
    from leankv.traces.trace import Trace

GIB = 1 << 30


@dataclass(frozen=True)
class Scenario:
    """One comparison. `limit` 0 takes the whole trace, `kv_memory_gib` 0 what the GPU has left beside the weights.

    With `step_time` "profile" the folder `profile` says which model on which device; `model` and `device` do not count.
    """

    trace: str = "azure-conv-2023-like"
    rate_scale: float = 1.0
    limit: int = 1500
    model: str = "llama-3.1-8b"
    device: str = "l40s"
    policies: tuple[str, ...] = ("fp16", "fp8", "kivi", "leankv")
    ttft_ms: float = 1000.0
    tpot_ms: float = 50.0
    tp: int = 1
    replicas: int = 1
    router: str = "round-robin"
    kv_memory_gib: float = 0.0
    step_time: str = "roofline"
    profile: str = ""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True
    prefix_caching: bool = False
    seed: int = 0

    def config(self, policy: str) -> SimulationConfig:
        """The simulator's configuration for one policy of this scenario. Raises InputError where a name is unknown."""
        from leankv.serving.policies.registry import policy_named
        from leankv.simulator.config import SimulationConfig

        model, device, profile = self.place()
        return SimulationConfig(
            model=model,
            device=device,
            profile=profile,
            policy=policy_named(policy),
            tp=self.tp,
            replicas=self.replicas,
            router=self.router,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            chunked_prefill=self.chunked_prefill,
            kv_memory_bytes=int(self.kv_memory_gib * GIB) or None,
            step_time=self.step_time,
            prefix_caching=self.prefix_caching,
            slo={"ttft": self.ttft_ms, "tpot": self.tpot_ms},
            seed=self.seed,
        )

    def place(self) -> tuple[ModelSpec, DeviceSpec, Profile | None]:
        """The model and the device, from the profile where step times come from one."""
        from leankv.serving.devices import device_named
        from leankv.serving.models import model_named
        from leankv.serving.profile import load_profile, profile_device

        if self.step_time != "profile":
            return model_named(self.model), device_named(self.device), None
        profile = load_profile(self.profile)
        return profile.model, profile_device(profile), profile

    @property
    def versions(self) -> dict[str, str]:
        """What else the answer follows from: the state of the trace's and of the profile's file, and the code."""
        return {
            "trace_version": file_version(self.trace),
            "profile_version": file_version(f"{self.profile}/profile.json") if self.profile else "",
            "code_version": code_version(),
        }

    def to_params(self) -> dict[str, Any]:
        """As JSON values, with its versions."""
        return {**asdict(self), "policies": list(self.policies), **self.versions}

    @staticmethod
    def from_params(params: Mapping[str, Any]) -> Scenario:
        """The inverse of `to_params`; other names in `params` are ignored."""
        known = {field.name: params[field.name] for field in fields(Scenario) if field.name in params}
        return replace(Scenario(**known), policies=tuple(params["policies"]))


def file_version(spec: str) -> str:
    """What changes when the file at this path changes; empty where there is none, as for a named trace."""
    path = Path(spec).expanduser()
    if not path.exists():
        return ""
    found = path.stat()
    return f"{found.st_size}:{found.st_mtime_ns}"


@cache
def code_version() -> str:
    """The commit, or the package's version, as this process found it."""
    from leankv.serving.runs import commit

    return commit()


def traffic(opened: Trace, rate_scale: float, limit: int) -> Trace:
    """The trace as the scenario sends it: first `limit` requests (0: all), arriving `rate_scale` times as fast."""
    from leankv.traces import transforms

    limited = transforms.limit(opened, limit) if limit else opened
    return transforms.rate_scale(limited, rate_scale)
