"""What one simulation needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from leankv.serving.devices import DeviceSpec
from leankv.serving.errors import InputError
from leankv.serving.models import ModelSpec
from leankv.serving.policies.base import Policy
from leankv.serving.profile import Profile, require_fits
from leankv.simulator.forecast import Accuracy


@dataclass(frozen=True)
class SimulationConfig:
    """One policy on one deployment.

    `tp` GPUs hold one replica. `kv_memory_bytes` caps the KV pool of one GPU; without it the pool is what
    `memory_utilization` of the GPU's memory leaves beside the weights and the activations of a full step.
    `slo` maps "ttft", "tpot", "e2el" to milliseconds. `per_step` runs the slow oracle in place of the jumping engine.
    `max_concurrency` closes the loop: at most so many requests in flight. `step_overhead_ms` replaces the host's time
    of a step that the GPU waits for (default: `step_time.overhead.STEP_S`). `policies`: what the replicas serve, in
    turn, where they differ; `policy` is then the first of them. `accuracy`: of routers that predict. `profile`: where
    step times and retention come from, with `step_time` "profile".

    `late_counts`: pages are known one step late and preempted requests replayed, as in this project's live engine; off,
    as in engines that count on the host. `kv_pages`: pages of the pool, in place of what its bytes hold.
    """

    model: ModelSpec
    device: DeviceSpec
    policy: Policy
    tp: int = 1
    replicas: int = 1
    router: str = "round-robin"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True
    kv_memory_bytes: int | None = None
    memory_utilization: float = 0.9
    step_time: str = "roofline"
    step_overhead_ms: float | None = None
    max_concurrency: int | None = None
    prefix_caching: bool = False
    slo: Mapping[str, float] = field(default_factory=dict)
    profile: Profile | None = None
    seed: int = 0
    per_step: bool = False
    policies: tuple[Policy, ...] = ()
    accuracy: Accuracy = field(default_factory=Accuracy)
    late_counts: bool = False
    kv_pages: int | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "replicas", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("max_concurrency", "kv_pages"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise InputError(f"{name} is {given}: give at least 1")
        if not 0 < self.memory_utilization <= 1:
            raise InputError(f"memory_utilization is {self.memory_utilization}: give a share above 0, at most 1")
        if self.kv_memory_bytes is not None and self.kv_memory_bytes <= 0:
            raise InputError(f"kv_memory_bytes is {self.kv_memory_bytes}: give a positive size")
        if self.step_overhead_ms is not None and not 0 <= self.step_overhead_ms < inf:
            raise InputError(f"step_overhead_ms is {self.step_overhead_ms}: give milliseconds, 0 or more")
        self._check_policies()
        self._check_profile()
        unknown = set(self.slo) - {"ttft", "tpot", "e2el"}
        if unknown:
            raise InputError(f"unknown SLO {sorted(unknown)[0]!r}: choose from ttft, tpot, e2el (in ms)")

    def _check_policies(self) -> None:
        if not self.policies:
            return
        if self.replicas < len(self.policies):
            raise InputError(
                f"{self.policy_name} are {len(self.policies)} policies for {self.replicas} "
                f"{'replica' if self.replicas == 1 else 'replicas'}; give --replicas {len(self.policies)} or more"
            )
        if self.prefix_caching:
            raise InputError(f"{self.policy_name}: prefix caching needs one policy; drop --prefix-caching")

    def _check_profile(self) -> None:
        if (self.profile is not None) != (self.step_time == "profile"):
            raise InputError("step times from a profile need the profile: give --profile DIR, or another --step-time")
        if self.profile is None:
            return
        require_fits(self.profile, self.model)
        if self.step_overhead_ms is not None:
            raise InputError("--step-overhead-ms: a profile's steps were measured with it; leave it out")

    @property
    def policy_name(self) -> str:
        """The policy's name, or of several `a+b`."""
        return "+".join(policy.name for policy in self.policies or (self.policy,))

    @property
    def gpus(self) -> int:
        return self.tp * self.replicas

    def kv_bytes(self) -> int:
        """Bytes of one GPU's KV pool. Raises InputError where weights leave no room."""
        weights = self.model.weight_bytes / self.tp
        if self.kv_memory_bytes is not None:
            if weights + self.kv_memory_bytes > self.device.memory_bytes:
                raise InputError(
                    f"{self.model.name} does not fit: {weights / 2**30:.1f} GiB of weights per GPU with tp={self.tp}, "
                    f"{self.kv_memory_bytes / 2**30:.1f} GiB of KV pool, {self.device.memory_bytes / 2**30:.1f} GiB "
                    f"on {self.device.name}; lower --kv-memory-gib, raise --tp or choose a larger --device"
                )
            return self.kv_memory_bytes
        budget = self.device.memory_bytes * self.memory_utilization
        left = int(budget - weights - self._activation_bytes())
        if left <= 0:
            raise InputError(
                f"{self.model.name} does not fit: {weights / 2**30:.1f} GiB of weights per GPU with tp={self.tp}, "
                f"{budget / 2**30:.1f} GiB usable on {self.device.name}; raise --tp or choose a larger --device"
            )
        return left

    def as_dict(self) -> dict[str, Any]:
        """What `config.json` holds: specifications in full, so that a run can be repeated from its folder."""
        named = {"model": asdict(self.model), "device": asdict(self.device), "policy": self.policy_name}
        policies = self.policies or (self.policy,)
        named["policies"] = [policy.name for policy in policies]
        specification = " + ".join(map(repr, policies))
        plain = asdict(replace(self, profile=None, step_time="roofline")) | {"step_time": self.step_time}
        profile = None if self.profile is None else self.profile.identity
        return {**plain, **named, "profile": profile, "gpus": self.gpus, "specification": specification}

    def _activation_bytes(self) -> float:
        """Activations of a full step: the widest of MLP and logits, in 16 bits, twice (input and output)."""
        widest = max(self.model.intermediate, self.model.hidden * 4) / self.tp
        return 2 * 2 * (self.max_num_batched_tokens * widest + self.max_num_seqs * self.model.vocab)
