"""What a validation is going to run: profile, model, pool and the loads, found before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leankv.app.commands._deployment import GIB, parse_slo
from leankv.app.commands._validation_runs import Folders
from leankv.app.commands.run import live_policies
from leankv.app.commands.traces import chosen_requests
from leankv.backend.live_setup import LiveSetup, live_setup
from leankv.backend.processor import with_processor
from leankv.serving.paired import BASELINE
from leankv.serving.policies.base import Policy
from leankv.serving.profile import Profile, load_profile, profile_device, require_fits
from leankv.serving.scheduler import SchedulerLimits
from leankv.simulator.config import SimulationConfig
from leankv.simulator.validation_loads import LOADS, Load, knee_scale, loads_of, pool_bytes
from leankv.traces.trace import Trace
from leankv.traces.transforms import rate_scale

if TYPE_CHECKING:
    from leankv.app.commands.validate import Validate

POLICIES = ("fp16", "int8", "kivi", "leankv")


@dataclass(frozen=True, eq=False)
class Plan:
    """What is run. trace: at its own rate; traces: at each load's."""

    command: Validate
    profile: Profile
    setup: LiveSetup
    policies: Sequence[Policy]
    limits: SchedulerLimits
    trace: Trace
    loads: Sequence[Load]
    traces: Mapping[str, Trace]
    folders: Folders

    def simulation(self, policy: Policy) -> SimulationConfig:
        return simulation_of(self.command, self.profile, policy, self.setup.kv_memory_bytes)


def planned(command: Validate) -> Plan:
    """Load the profile, the trace and the model, and find the loads."""
    policies = live_policies(command.policy or POLICIES)
    profile = load_profile(command.profile or _calibrated(command))
    limits = SchedulerLimits(command.max_num_seqs, command.max_num_batched_tokens, command.chunked_prefill)
    trace = chosen_requests(command.trace)
    pool_gib = command.kv_memory_gib
    if pool_gib is None:
        pool_gib = pool_bytes(profile.model, trace, limits.max_num_seqs) / GIB
    setup = live_setup(command.model or profile.model.name, command.backend, pool_gib, trace, policies)
    require_fits(profile, setup.model, with_processor(setup.device))
    knee = command.knee or _knee(command, profile, policies, setup.kv_memory_bytes, trace)
    loads = loads_of(command.load or tuple(LOADS), knee, trace)
    traces = {load.name: rate_scale(trace, load.rate_scale) for load in loads}
    return Plan(command, profile, setup, policies, limits, trace, loads, traces, Folders(command.output_dir))


def _calibrated(command: Validate) -> Path:
    """Measure a profile with the limits of this validation, or keep the one that an earlier call measured."""
    from leankv.app.commands import calibrate

    assert command.output_dir is not None
    folder = command.output_dir / "profile"
    limits = ("--max-num-seqs", command.max_num_seqs, "--max-num-batched-tokens", command.max_num_batched_tokens)
    words = ("--model", command.model or calibrate.Calibrate.model, "--backend", command.backend, *limits)
    named = [word for name in command.policy or POLICIES for word in ("--policy", name)]
    calibrate.main([*map(str, words), *named, "--output-dir", str(folder)])
    return folder


def _knee(command: Validate, profile: Profile, policies: Sequence[Policy], kv_memory_bytes: int, trace: Trace) -> float:
    """Under fp16, or the first policy: the same rates for all, whatever their own knees."""
    chosen = next((policy for policy in policies if policy.name == BASELINE), policies[0])
    return knee_scale(simulation_of(command, profile, chosen, kv_memory_bytes), trace)


def simulation_of(command: Validate, profile: Profile, policy: Policy, kv_memory_bytes: int) -> SimulationConfig:
    """The same limits and pool as live; everything else from the profile."""
    return SimulationConfig(
        model=profile.model,
        device=profile_device(profile),
        policy=policy,
        max_num_seqs=command.max_num_seqs,
        max_num_batched_tokens=command.max_num_batched_tokens,
        chunked_prefill=command.chunked_prefill,
        kv_memory_bytes=kv_memory_bytes,
        step_time="profile",
        profile=profile,
        slo=parse_slo(command.slo),
        seed=command.trace.seed,
    )
