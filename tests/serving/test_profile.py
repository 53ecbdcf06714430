import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from leankv.serving.errors import InputError
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import (
    HeadRetention,
    HeldOut,
    PolicyProfile,
    Profile,
    StepFit,
    load_profile,
    load_steps,
    profile_device,
    require_fits,
    save_profile,
)

FIT = StepFit(
    linear_tokens=(1, 16, 512),
    linear_s=(0.02, 0.03, 0.5),
    row_s=1e-3,
    decode_s=2e-3,
    decode_sequence_s=1e-4,
    read_s_per_byte=(1e-10, 2e-10),
    chunk_s=1e-3,
    chunk_token_s=1e-5,
    context_token_s=1e-6,
    pair_s=1e-8,
    prompt_s=4e-3,
    prompt_token_s=2e-5,
)
DEVICE = {"name": "cpu, 2 threads", "backend": "cpu", "threads": 2, "dtype": "float32", "memory_bytes": 1 << 33}


def profile_of(*policies: str) -> Profile:
    measured = {}
    for name in policies:
        policy = policy_named(name)
        measured[name] = PolicyProfile(
            specification=repr(policy),
            fit=FIT,
            held_out={"decode": HeldOut(12, 0.02, 0.05, -0.001)},
            retention=policy.retention,
            heads=HeadRetention((64,), ((((32.0, 8.0), (30.5, 9.0)),),), 3),
            memory={"peak_bytes": 123},
        )
    model = model_named("smollm2-135m")
    return Profile(model, DEVICE, "float32", {"torch": "2"}, "2026-11-21T15:00:00+00:00", measured, {"quick": True})


STEPS = pa.table({"policy": ["fp16"], "seconds": [0.5]})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    profile = profile_of("fp16", "leankv")
    save_profile(profile, STEPS, tmp_path / "new" / "profile")
    assert load_profile(tmp_path / "new" / "profile") == profile
    assert load_steps(tmp_path / "new" / "profile").to_pydict() == STEPS.to_pydict()
    stored = json.loads((tmp_path / "new" / "profile" / "profile.json").read_text())
    assert stored["schema_version"] == 1 and len(stored["config_hash"]) == 16 and stored["commit"]


def test_a_second_policy_replaces_the_files(tmp_path: Path) -> None:
    save_profile(profile_of("fp16"), STEPS, tmp_path)
    save_profile(profile_of("fp16", "int8"), STEPS, tmp_path)
    assert list(load_profile(tmp_path).policies) == ["fp16", "int8"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.json", "steps.parquet"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "cannot read"),
        ("[1]", "cannot read"),
        ('{"schema_version": 99}', "schema 99"),
        ("{}", "schema None"),
        ('{"schema_version": 1}', "lacks 'model'"),
    ],
)
def test_a_bad_profile_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "profile.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_profile(tmp_path)
    assert "\n" not in str(caught.value) and "profile.json" in str(caught.value)


def test_missing_or_broken_steps_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*steps\.parquet"):
        load_steps(tmp_path)
    (tmp_path / "steps.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="table of steps"):
        load_steps(tmp_path)


def test_a_profile_of_another_model_or_device_is_refused() -> None:
    profile = profile_of("fp16")
    require_fits(profile, replace(profile.model, name="from a folder", source="elsewhere"), DEVICE)
    with pytest.raises(InputError, match=r"of smollm2-135m, not of qwen2\.5-7b"):
        require_fits(profile, model_named("qwen2.5-7b"))
    with pytest.raises(InputError, match="measured on cpu, 2 threads, cpu, float32, not on cpu, 8 threads"):
        require_fits(profile, device={**DEVICE, "name": "cpu, 8 threads"})
    named = replace(profile, device={**DEVICE, "processor": "AMD EPYC, 2 cores"})
    require_fits(named, device=DEVICE)
    with pytest.raises(InputError, match=r"AMD EPYC, 2 cores.* not on .*Apple M3, 8 cores"):
        require_fits(named, device={**DEVICE, "processor": "Apple M3, 8 cores"})


def test_a_policy_that_was_not_measured_is_refused_with_what_was() -> None:
    profile = profile_of("fp16", "kivi")
    kivi, two_bits = policy_named("kivi"), policy_named("kivi:bits=2")
    assert profile.of("kivi", repr(kivi)) is profile.policies["kivi"]
    with pytest.raises(InputError, match="has fp16, kivi; choose one of these, or calibrate with --policy int8"):
        profile.of("int8", repr(policy_named("int8")))
    with pytest.raises(InputError, match="other knobs"):
        profile.of("kivi", repr(two_bits))


def test_the_device_keeps_a_presets_figures_under_its_own_name() -> None:
    profile = profile_of("fp16")
    cpu = profile_device(profile)
    assert (cpu.name, cpu.memory_bytes, cpu.sm) == ("cpu, 2 threads", 1 << 33, None)
    gpu = profile_device(replace(profile, device={"name": "NVIDIA H100 80GB HBM3", "backend": "cuda"}))
    assert (gpu.name, gpu.sm) == ("NVIDIA H100 80GB HBM3", 90)


def test_a_fit_adds_up_its_terms() -> None:
    assert FIT.linear(1) == 0.02
    assert FIT.linear(264) == pytest.approx(0.03 + 0.47 / 2)
    assert FIT.linear(1008) == pytest.approx(0.5 + 0.47)
    assert FIT.decode(0, (0, 0)) == 0
    assert FIT.decode(3, (1e6, 2e6)) == pytest.approx(2e-3 + 3e-4 + 1e-4 + 4e-4)
    assert FIT.chunk(10, 100) == pytest.approx(1e-3 + 1e-4 + 1e-4 + 1e-8 * (1000 + 55))
    assert FIT.prompt(100) == pytest.approx(4e-3 + 2e-3)


@pytest.mark.parametrize(
    "broken",
    [
        {"linear_tokens": (1,), "linear_s": (0.1,)},
        {"linear_tokens": (2, 3, 4)},
        {"linear_s": (0.02, 0.3, 0.01)},
        {"linear_s": (0.02, 0.6, 0.5)},
        {"row_s": -1e-9},
        {"read_s_per_byte": (-1e-12, 0.0)},
    ],
)
def test_an_unphysical_fit_is_refused(broken: dict) -> None:
    with pytest.raises(InputError, match="calibrate again"):
        replace(FIT, **broken)
