"""What a validation is going to run: profile, model, pool and the loads, found before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

    def simulation(self, policy: Policy, pace: float = 1.0) -> SimulationConfig:
        profile = self.profile if pace == 1.0 else self.profile.at_pace(pace)
        return simulation_of(self.command, profile, policy, self.setup.kv_memory_bytes)


def planned(command: Validate) -> Plan:
    """Load the profile, the trace and the model, and find the loads."""
    policies = live_policies(command.policy or POLICIES)
    profile = load_profile(command.profile or calibrated(command, 1))
    limits = SchedulerLimits(command.max_num_seqs, command.max_num_batched_tokens, command.chunked_prefill)
    trace = chosen_requests(command.trace)
    pool_gib = command.kv_memory_gib
    if pool_gib is None:
        pool_gib = pool_bytes(profile.model, trace, limits.max_num_seqs) / GIB
    setup = live_setup(command.model or profile.model.name, command.backend, pool_gib, trace, policies)
    require_fits(profile, setup.model, with_processor(setup.device))
    folders = Folders(command.output_dir)
    knee = command.knee or _knee(command, profile, policies, setup.kv_memory_bytes, trace, folders)
    loads = loads_of(command.load or tuple(LOADS), knee, trace)
    traces = {load.name: rate_scale(trace, load.rate_scale) for load in loads}
    return Plan(command, profile, setup, policies, limits, trace, loads, traces, folders)


def calibrated(command: Validate, rounds: int) -> Path:
    """Measure a profile with the limits of this validation so often, less what the folder has of it."""
    from leankv.app.commands.calibrate import Calibrate, calibrate

    assert command.output_dir is not None
    folder = command.output_dir / "profile"
    asked = Calibrate(
        output_dir=folder,
        model=command.model or Calibrate.model,
        backend=command.backend,
        policy=command.policy or POLICIES,
        max_num_seqs=command.max_num_seqs,
        max_num_batched_tokens=command.max_num_batched_tokens,
        rounds=rounds,
    )
    calibrate(asked, tell=False)
    return folder


def recalibrated(plan: Plan, rounds: int) -> Plan:
    """The plan after so many rounds of its own calibration."""
    return replace(plan, profile=load_profile(calibrated(plan.command, rounds)))


def _knee(
    command: Validate,
    profile: Profile,
    policies: Sequence[Policy],
    kv_memory_bytes: int,
    trace: Trace,
    folders: Folders,
) -> float:
    """Under fp16, or the first policy: the same rates for all, whatever their own knees.

    A profile that has grown since an earlier call says another knee, so the one that was found then stays.
    """
    chosen = next((policy for policy in policies if policy.name == BASELINE), policies[0])
    simulation = simulation_of(command, profile, chosen, kv_memory_bytes)
    asked = {**simulation.as_dict(), "profile": None, "trace": [trace.name, len(trace), trace.provenance]}
    kept = folders.knee(asked)
    if kept is None:
        kept = knee_scale(simulation, trace)
        folders.save_knee(asked, kept)
    return kept


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
