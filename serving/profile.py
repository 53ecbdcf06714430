"""What was measured of one model on one device: step times with their fit, retention, memory, noise.

A profile is a folder: `profile.json`, and `steps.parquet` with a row for every step that was timed. It is written after
each policy, so a calibration that was cut short leaves what it had finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.devices import DEVICES, DeviceSpec
from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.serving.models import ModelSpec
from leankv.serving.retention import Retention
from leankv.serving.runs import commit, config_hash
from leankv.serving.step_fit import StepFit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "HeadRetention",
    "HeldOut",
    "PolicyProfile",
    "Profile",
    "StepFit",
    "device_preset",
    "load_profile",
    "load_steps",
    "profile_device",
    "require_fits",
    "save_profile",
]

SCHEMA_VERSION = 1
PROFILE_FILE, STEPS_FILE = "profile.json", "steps.parquet"
WHERE = ("name", "processor", "backend", "dtype")
STORED = ("device", "dtype", "versions", "created", "settings", "noise", "timed_steps")
AGAIN = "name a folder that calibrate wrote, or run leankv calibrate again"


@dataclass(frozen=True)
class HeldOut:
    """Relative errors of a fit on `points` steps of one regime that it has not seen.

    median and p90 of absolute values; bias: the mean with its sign, above 0 where the fit is too slow.
    """

    points: int
    median: float
    p90: float
    bias: float


@dataclass(frozen=True)
class HeadRetention:
    """Mean tokens kept of prompts of `contexts` tokens, by [context][layer][KV head][tier]; `texts` were averaged."""

    contexts: tuple[int, ...]
    tokens: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]
    texts: int


@dataclass(frozen=True)
class PolicyProfile:
    """One policy. specification: with all its knobs, in full; retention: as measured, where the scores decide.

    held_out: by regime (decode, prefill, mixed). memory: peak and pool, in bytes, as measured under this policy.
    """

    specification: str
    fit: StepFit
    held_out: Mapping[str, HeldOut]
    retention: Retention | None = None
    heads: HeadRetention | None = None
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A calibration. device: where it ran, in words (name, backend, threads, dtype), and memory_bytes.

    policies: by name. settings: what was asked, so that a rerun can go on. noise: how disturbed the machine was.
    created: ISO 8601, UTC. timed_steps: rows of `steps.parquet` that it speaks of.
    """

    model: ModelSpec
    device: Mapping[str, Any]
    dtype: str
    versions: Mapping[str, str]
    created: str
    policies: Mapping[str, PolicyProfile]
    settings: Mapping[str, Any] = field(default_factory=dict)
    noise: Mapping[str, Any] = field(default_factory=dict)
    timed_steps: int = 0

    @property
    def source(self) -> str:
        """How outputs name it."""
        return f"profile ({self.device['name']}, {self.created[:10]})"

    @property
    def identity(self) -> dict[str, Any]:
        """What a run's configuration says of it: enough to tell it from every other."""
        fits = {name: policy.fit.to_dict() for name, policy in self.policies.items()}
        kept = {name: policy.retention.to_dict() for name, policy in self.policies.items() if policy.retention}
        described = {"device": dict(self.device), "created": self.created}
        return {**described, "contents": config_hash({"fits": fits, "retention": kept})}

    @property
    def usual_reference_s(self) -> float | None:
        """How long the reference took at the pace that the fits speak of; None in profiles of earlier versions."""
        return next((told["usual_s"] for told in self.noise.values() if "usual_s" in told), None)

    def at_pace(self, pace: float) -> Profile:
        """What it would be on this machine while everything takes `pace` times as long."""
        slower = {name: replace(each, fit=each.fit.slower(pace)) for name, each in self.policies.items()}
        return replace(self, policies=slower)

    def of(self, policy: str, specification: str) -> PolicyProfile:
        """What was measured of a policy. Raises InputError where it was not, or with other knobs."""
        found = self.policies.get(policy)
        if found is None:
            raise InputError(
                f"policy {policy} was not measured: the profile of {self.model.name} has {', '.join(self.policies)}; "
                f"choose one of these, or calibrate with --policy {policy}"
            )
        if _knobs(found.specification) != _knobs(specification):
            raise InputError(f"policy {policy} was measured with other knobs; calibrate again with --policy {policy}")
        return found


def save_profile(profile: Profile, steps: pa.Table, folder: str | Path) -> Path:
    """Write both files, replacing older ones; the steps first, so that `profile.json` speaks of what is there.

    steps: a row a timed step, earlier ones first; rows beyond `timed_steps` are of a call that was cut off. Raises
    InputError where the folder cannot be written.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    stamp = {"schema_version": SCHEMA_VERSION, "config_hash": config_hash(dict(profile.settings)), "commit": commit()}
    with atomic_write(folder / STEPS_FILE) as beside:
        described = steps.replace_schema_metadata({key: str(value) for key, value in stamp.items()})
        pq.write_table(described, beside, compression="zstd")
    content = {**stamp, **asdict(profile)}
    content["policies"] = {name: _policy_dict(each) for name, each in profile.policies.items()}
    with atomic_write(folder / PROFILE_FILE) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def load_profile(folder: str | Path) -> Profile:
    """Read a profile.

    Raises InputError: no such file, not a profile's, without one of its entries, of another schema.
    """
    path = Path(folder) / PROFILE_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = content.get("schema_version")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read {path}: not a profile; {AGAIN}") from error
    if schema != SCHEMA_VERSION:
        raise InputError(f"{path} has schema {schema}, this version reads {SCHEMA_VERSION}; {AGAIN}")
    try:
        return Profile(
            model=ModelSpec(**content["model"]),
            policies={name: _policy_of(each) for name, each in content["policies"].items()},
            **{name: content[name] for name in STORED},
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} lacks {error}; {AGAIN}") from error


def load_steps(folder: str | Path) -> pa.Table:
    """The timed steps of a profile. Raises InputError where they are missing or unreadable."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / STEPS_FILE
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {path}: not a profile's table of steps; {AGAIN}") from error


def require_fits(profile: Profile, model: ModelSpec | None = None, device: Mapping[str, Any] | None = None) -> None:
    """Raise InputError for a profile of another model's shape, or of another device than the one in words."""
    if model is not None and _shape(model) != _shape(profile.model):
        raise InputError(
            f"the profile is of {profile.model.name}, not of {model.name}; name that --model, or calibrate this one"
        )
    if device is None:
        return
    for name in WHERE:
        if name in device and device[name] != profile.device.get(name):
            raise InputError(
                f"the profile was measured on {_in_words(profile.device)}, not on {_in_words(device)}; calibrate here"
            )


def device_preset(profile: Profile) -> DeviceSpec:
    """The preset whose name is among the words of the measured device's, cpu where none is."""
    words = str(profile.device["name"]).lower().replace("-", " ").split()
    return next((each for key, each in DEVICES.items() if key.split("-")[0] in words), DEVICES["cpu"])


def profile_device(profile: Profile) -> DeviceSpec:
    """The device as the simulator needs it: a preset's figures under the measured name and memory."""
    name, preset = str(profile.device["name"]), device_preset(profile)
    return replace(preset, name=name, memory_bytes=int(profile.device.get("memory_bytes", preset.memory_bytes)))


def _shape(model: ModelSpec) -> ModelSpec:
    """A model without what names it: the same model may come from a preset, a folder or a file."""
    return replace(model, name="", source="", max_context=0)


def _in_words(device: Mapping[str, Any]) -> str:
    return ", ".join(str(device[name]) for name in WHERE if name in device)


def _knobs(specification: str) -> str:
    """A policy's specification up to its retention, which a measurement replaces."""
    return specification.partition(", retention=")[0]


def _policy_dict(policy: PolicyProfile) -> dict[str, Any]:
    retention = policy.retention.to_dict() if policy.retention else None
    return {**asdict(policy), "fit": policy.fit.to_dict(), "retention": retention}


def _policy_of(stored: Mapping[str, Any]) -> PolicyProfile:
    heads, retention = stored["heads"], stored["retention"]
    return PolicyProfile(
        specification=stored["specification"],
        fit=StepFit.from_dict(stored["fit"]),
        held_out={regime: HeldOut(**each) for regime, each in stored["held_out"].items()},
        retention=Retention.from_dict(retention) if retention else None,
        heads=HeadRetention(tuple(heads["contexts"]), _tuples(heads["tokens"]), heads["texts"]) if heads else None,
        memory=stored["memory"],
    )


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested
