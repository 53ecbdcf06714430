"""Flags of every command that simulates: which model, device, policies and service levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from leankv.app.commands.traces import Chosen, Count

if TYPE_CHECKING:
    from leankv.simulator.config import SimulationConfig

Gib = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Milliseconds = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Policies = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Slo = Annotated[tuple[str, ...], tyro.conf.arg(metavar="METRIC:MS", help_behavior_hint="")]

POLICIES = ("fp16", "fp8", "kivi", "leankv")
GIB = 1 << 30


@dataclass(frozen=True)
class Serving:
    """How the trace is served, whatever the memory and the GPUs of a replica."""

    model: str = "llama-3.1-8b"
    """A preset (`llama-3.1-8b`, `qwen3-32b`, ...), or the path of a Hugging Face config.json."""
    device: str = "a100-80gb"
    """A GPU preset (a100-40gb, a100-80gb, h100, h200, b200, l40, l40s, a6000, rtx-4090, mi300x) or cpu."""
    policy: Policies = ()
    """A KV-cache policy, repeatable; knobs follow a colon: kivi:bits=2. Default: fp16, fp8, kivi, leankv.
    fp16+leankv: replicas take these in turn (give --replicas 2 or more, and a --router)."""
    replicas: int = 1
    """Replicas behind the router."""
    router: str = "round-robin"
    """round-robin, random, least-outstanding-tokens, least-kv-use, or by prediction: predicted-throughput,
    predicted-length, predicted-both."""
    length_accuracy: float = 0.92
    """Of routers that predict output lengths: 1 minus the mean relative error."""
    throughput_accuracy: float = 0.87
    """Of routers that predict throughput: 1 minus the mean relative error."""
    max_num_seqs: int = 256
    """Requests that run at once in a replica, at most."""
    max_num_batched_tokens: int = 2048
    """Tokens that one step computes, at most."""
    chunked_prefill: bool = True
    """Cut prompts where the token budget of a step ends."""
    max_concurrency: Count = None
    """Closed loop: at most so many requests in flight; a later one is sent when one finishes."""
    prefix_caching: bool = False
    """Share the pages of common prompt prefixes (traces with block hashes; policies that can share)."""
    step_time: Literal["roofline", "silicon"] = "roofline"
    """Source of step times: the device's figures, or measured tables (pip install 'leankv[silicon]')."""
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
    """KV pool of one GPU in GiB; default: what 90 percent of its memory leave beside weights and activations."""

    def configs(self, seed: int) -> list[SimulationConfig]:
        """One configuration a policy.

        Raises:
            InputError: an unknown name (with the nearest), a number out of range, or a policy named twice.
        """
        from leankv.serving.devices import device_named
        from leankv.serving.errors import InputError
        from leankv.serving.models import model_named
        from leankv.serving.policies.registry import policy_named
        from leankv.simulator.config import SimulationConfig
        from leankv.simulator.forecast import Accuracy

        if self.kv_memory_gib is not None and not self.kv_memory_gib > 0:
            raise InputError(f"--kv-memory-gib {self.kv_memory_gib:g} is no size; give a number above 0")
        names = self.policy or POLICIES
        if len(set(names)) < len(names):
            raise InputError(f"--policy {next(n for n in names if names.count(n) > 1)} is given twice; give it once")
        model, device, slo = model_named(self.model), device_named(self.device), parse_slo(self.slo)
        kinds = [tuple(policy_named(part) for part in name.split("+")) for name in names]
        return [
            SimulationConfig(
                model=model,
                device=device,
                policy=policies[0],
                policies=policies if len(policies) > 1 else (),
                tp=self.tp,
                replicas=self.replicas,
                router=self.router,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                chunked_prefill=self.chunked_prefill,
                kv_memory_bytes=None if self.kv_memory_gib is None else int(self.kv_memory_gib * GIB),
                step_time=self.step_time,
                step_overhead_ms=self.step_overhead_ms,
                max_concurrency=self.max_concurrency,
                prefix_caching=self.prefix_caching,
                slo=slo,
                seed=seed,
                accuracy=Accuracy(self.length_accuracy, self.throughput_accuracy),
            )
            for policies in kinds
        ]


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
