"""A calibration's profile in its folder, as far as it has come; a later call with the same settings goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leankv.backend.calibration.policy import MeasuredPolicy
    from leankv.backend.calibration.setup import Calibration
    from leankv.serving.policies.base import Policy
    from leankv.serving.profile import PolicyProfile, Profile
    from leankv.serving.step_fit import StepFit
    from leankv.serving.step_samples import StepSample


class Book:
    """Every `add` judges and fits the steps of all policies and rounds together, and writes the profile."""

    def __init__(self, folder: Path, profile: Profile, samples: Sequence[StepSample]) -> None:
        self.folder, self.profile, self.samples = folder, profile, list(samples)

    def rounds(self, policy: Policy) -> int:
        """How often the policy is measured. Raises InputError where it was, with other knobs."""
        if policy.name not in self.profile.policies:
            return 0
        self.profile.of(policy.name, repr(policy))
        return int(self.profile.noise[policy.name]["rounds"])

    def add(self, policy: Policy, measured: MeasuredPolicy) -> None:
        """Take in what one round of a policy has measured. Raises InputError where the folder cannot be written; the
        book is then as before.
        """
        from leankv.backend.calibration.reference import judged
        from leankv.serving.profile import save_profile
        from leankv.serving.step_samples import samples_table
        from leankv.simulator.step_time.profile_fit import fit_steps, held_out, points

        on_gpu = self.profile.device.get("backend") == "cuda"
        samples, noise = judged([*self.samples, *measured.samples], steady=on_gpu)
        timed = points(samples)
        every = {name: _move_every(name) for name in {point.policy for point in timed}}
        fits, errors = fit_steps(timed, every), held_out(timed)
        new = _policy_profile(policy, measured, fits[policy.name], self.profile.policies.get(policy.name))
        policies = {**self.profile.policies, policy.name: new}
        profile = replace(
            self.profile,
            policies={
                name: replace(each, fit=fits[name], held_out=errors.get(name, {})) for name, each in policies.items()
            },
            noise={name: each.to_dict() for name, each in noise.items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            timed_steps=len(samples),
        )
        save_profile(profile, samples_table(samples), self.folder)
        self.profile, self.samples = profile, samples


def opened_book(folder: Path, setup: Calibration, settings: Mapping[str, Any]) -> Book:
    """A new book, or the one that an earlier call with these settings left.

    Raises InputError where the folder holds something else.
    """
    from leankv.backend.reference import versions
    from leankv.serving.errors import InputError
    from leankv.serving.profile import Profile, load_profile, load_steps, require_fits
    from leankv.serving.step_samples import samples_of

    if _untouched(folder):
        dtype = str(setup.device["dtype"])
        return Book(folder, Profile(setup.model, setup.device, dtype, versions(), "", {}, settings, {}), ())
    profile = load_profile(folder)
    require_fits(profile, setup.model, setup.device)
    if dict(profile.settings) != dict(settings):
        raise InputError(f"{folder} holds a profile of other settings; name another --output-dir or remove it")
    return Book(folder, profile, samples_of(load_steps(folder))[: profile.timed_steps])


def _untouched(folder: Path) -> bool:
    """Whether there is nothing but what a call leaves that was killed before its first profile."""
    from leankv.serving.profile import STEPS_FILE

    if not folder.is_dir():
        return True
    return all(path.name == STEPS_FILE or path.name.startswith(".") for path in folder.iterdir())


def _policy_profile(
    policy: Policy, measured: MeasuredPolicy, fit: StepFit, earlier: PolicyProfile | None
) -> PolicyProfile:
    """`earlier`: of the rounds before, which alone measured what a policy keeps."""
    from leankv.serving.profile import PolicyProfile

    if earlier is not None:
        return replace(earlier, fit=fit)
    return PolicyProfile(repr(policy), fit, {}, measured.retention, measured.heads, measured.memory)


def _move_every(name: str) -> int:
    from leankv.backend.calibration.steps import move_every
    from leankv.serving.policies.registry import policy_named

    return move_every(policy_named(name))
