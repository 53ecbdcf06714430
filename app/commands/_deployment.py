"""Flags of every command that simulates: which model, device, policies and service levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from leankv.app.commands.traces import Chosen, Count, File

if TYPE_CHECKING:
    from leankv.serving.devices import DeviceSpec
    from leankv.serving.models import ModelSpec
    from leankv.serving.profile import Profile
    from leankv.simulator.config import SimulationConfig

Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Source = Annotated[Literal["roofline", "silicon", "profile"] | None, tyro.conf.arg(help_behavior_hint="")]
Gib = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Milliseconds = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Share = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Policies = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Slo = Annotated[tuple[str, ...], tyro.conf.arg(metavar="METRIC:MS", help_behavior_hint="")]

MODEL, DEVICE = "llama-3.1-8b", "a100-80gb"
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 256, 2048
POLICIES = ("fp16", "fp8", "kivi", "leankv")
GIB = 1 << 30


@dataclass(frozen=True)
class Serving:
    """How the trace is served, whatever the memory and the GPUs of a replica."""

    model: Name = None
    """A preset (`llama-3.1-8b`, `qwen3-32b`, ...), or the path of a Hugging Face config.json. Default: the profile's,
    else llama-3.1-8b."""
    device: Name = None
    """A GPU preset (a100-40gb, a100-80gb, h100, h200, b200, l40, l40s, a6000, rtx-4090, mi300x) or cpu. Default: the
    profile's, else a100-80gb."""
    profile: File = None
    """A folder that `leankv calibrate` wrote: step times and retention as measured there, for the policies measured."""
    policy: Policies = ()
    """A KV-cache policy, repeatable; knobs follow a colon: kivi:bits=2. Default: the profile's, else fp16, fp8, kivi,
    leankv.
    fp16+leankv: replicas take these in turn (give --replicas 2 or more, and a --router)."""
    replicas: int = 1
    """Replicas behind the router."""
    router: str = "round-robin"
    """round-robin, random, least-outstanding-tokens, least-kv-use, or by prediction: predicted-throughput,
    predicted-length, predicted-both."""
    length_accuracy: Share = None
    """Of routers that predict output lengths: 1 minus the mean relative error. Default: with simulate --length-shift
    as measured there, else 0.92."""
    throughput_accuracy: float = 0.87
    """Of routers that predict throughput: 1 minus the mean relative error."""
    max_num_seqs: Count = None
    """Requests that run at once in a replica, at most. Default: as far as the profile was measured, else 256."""
    max_num_batched_tokens: Count = None
    """Tokens that one step computes, at most. Default: as far as the profile was measured, else 2048."""
    chunked_prefill: bool = True
    """Cut prompts where the token budget of a step ends."""
    max_concurrency: Count = None
    """Closed loop: at most so many requests in flight; a later one is sent when one finishes."""
    prefix_caching: bool = False
    """Share the pages of common prompt prefixes (traces with block hashes; policies that can share)."""
    step_time: Source = None
    """Source of step times: the device's figures (roofline), measured tables (silicon: pip install 'leankv[silicon]'),
    or a profile. Default: the profile where one is given, else roofline."""
    step_overhead_ms: Milliseconds = None
    """Host time of a step that the GPU waits for, in ms; default: 0.71, measured on vLLM's engine loop."""
    slo: Slo = ("ttft:1000", "tpot:50")
    """Service levels in ms, as in --slo ttft:500 tpot:50; goodput counts requests that meet all."""


@dataclass(frozen=True)
class Deployment(Serving):
    """Where and how the trace is served."""

    tp: int = 1
    """GPUs that hold one replica (tensor parallel)."""
    kv_memory_gib: Gib = None
    """KV pool of one GPU in GiB; default: the profile's, else what 90 percent of its memory leave beside weights and
    activations."""

    def configs(self, seed: int) -> list[SimulationConfig]:
        """One configuration a policy.

        Raises:
            InputError: an unknown name (with the nearest), a number out of range, or a policy named twice.
        """
        from leankv.serving.errors import InputError
        from leankv.serving.policies.registry import policies_named
        from leankv.serving.profile import load_profile
        from leankv.simulator.config import SimulationConfig
        from leankv.simulator.forecast import LENGTH_ACCURACY, Accuracy

        if self.kv_memory_gib is not None and not self.kv_memory_gib > 0:
            raise InputError(f"--kv-memory-gib {self.kv_memory_gib:g} is no size; give a number above 0")
        profile = None if self.profile is None else load_profile(self.profile)
        names = self.policy or (tuple(profile.policies) if profile else POLICIES)
        if len(set(names)) < len(names):
            raise InputError(f"--policy {next(n for n in names if names.count(n) > 1)} is given twice; give it once")
        model, device, slo = self._model(profile), self._device(profile), parse_slo(self.slo)
        measured = profile.settings if profile else {}
        pool = int(self.kv_memory_gib * GIB) if self.kv_memory_gib else measured.get("kv_memory_bytes")
        length_accuracy = LENGTH_ACCURACY if self.length_accuracy is None else self.length_accuracy
        kinds = [policies_named(name) for name in names]
        return [
            SimulationConfig(
                model=model,
                device=device,
                policy=policies[0],
                policies=policies if len(policies) > 1 else (),
                tp=self.tp,
                replicas=self.replicas,
                router=self.router,
                max_num_seqs=_first(self.max_num_seqs, measured.get("max_num_seqs"), MAX_NUM_SEQS),
                max_num_batched_tokens=_first(
                    self.max_num_batched_tokens, measured.get("max_num_batched_tokens"), MAX_NUM_BATCHED_TOKENS
                ),
                chunked_prefill=self.chunked_prefill,
                kv_memory_bytes=pool,
                step_time=self.step_time or ("profile" if profile else "roofline"),
                profile=profile,
                step_overhead_ms=self.step_overhead_ms,
                max_concurrency=self.max_concurrency,
                prefix_caching=self.prefix_caching,
                slo=slo,
                seed=seed,
                accuracy=Accuracy(length_accuracy, self.throughput_accuracy),
            )
            for policies in kinds
        ]

    def _model(self, profile: Profile | None) -> ModelSpec:
        """The model asked for, the profile's, or the default. That a profile is of the model, its user checks."""
        from leankv.serving.models import model_named

        if profile is not None and self.model in (None, profile.model.name):
            return profile.model
        return model_named(self.model or MODEL)

    def _device(self, profile: Profile | None) -> DeviceSpec:
        """The device asked for, the profile's, or the default. Raises InputError where a profile is of another."""
        from leankv.serving.devices import device_named
        from leankv.serving.errors import InputError
        from leankv.serving.profile import device_preset, profile_device

        if profile is None:
            return device_named(self.device or DEVICE)
        if self.device not in (None, profile.device["name"]) and device_named(self.device) != device_preset(profile):
            raise InputError(f"--device {self.device}: the profile is of {profile.device['name']}; leave --device out")
        return profile_device(profile)


def _first(*values: int | None) -> int:
    """The first that is given."""
    return next(value for value in values if value is not None)


def parse_slo(words: tuple[str, ...]) -> dict[str, float]:
    """("ttft:500", "tpot:50") as {"ttft": 500.0, "tpot": 50.0}. Raises InputError for anything else."""
    from leankv.serving.errors import InputError

    bounds: dict[str, float] = {}
    for word in words:
        metric, colon, bound = word.partition(":")
        if metric in bounds:
            raise InputError(f"--slo {metric} is given twice; give it once")
        try:
            bounds[metric] = float(bound)
        except ValueError:
            colon = ""
        if not colon or metric not in ("ttft", "tpot", "e2el") or not bounds[metric] > 0:
            raise InputError(f"--slo {word} cannot be read; write METRIC:MS with ttft, tpot or e2el, as in ttft:500")
    return bounds


__all__ = ["Chosen", "Deployment", "parse_slo"]
