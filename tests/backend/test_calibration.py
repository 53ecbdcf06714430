"""A calibration of a tiny model, end to end; and that what stands on the bench is what the engine would have made."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tests.backend.tiny import key_means, prompt_of, tiny_model
from tests.backend.tiny_folder import save_tiny_model

from leankv.app.cli import main
from leankv.backend.calibration.design import grid_of, point_tokens
from leankv.backend.calibration.reference import Reference, judged
from leankv.backend.calibration.rig import OUTPUT, ChunkSpec, Rig, Timed
from leankv.backend.calibration.steps import _Timing
from leankv.backend.calibration.stored import Text
from leankv.backend.capture import capture
from leankv.backend.engine import Engine
from leankv.backend.room import release_ended
from leankv.serving.errors import InputError
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import load_profile, load_steps
from leankv.serving.scheduler import SchedulerLimits
from leankv.serving.step_samples import StepSample, samples_of
from leankv.simulator.step_time.profile_fit import fit_steps, points

LIMITS = ("--max-num-seqs", "2", "--max-num-batched-tokens", "32", "--max-context", "160")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(folder)
    return folder


def calibrate(model: Path, folder: Path, *policies: str, others: Sequence[str] = ()) -> int:
    named = [word for policy in policies for word in ("--policy", policy)]
    return main(["calibrate", "--model", str(model), "--quick", *LIMITS, *named, "--output-dir", str(folder), *others])


@pytest.fixture(scope="module")
def profiled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiles") / "tiny"
    assert calibrate(tiny, folder, "fp16", "leankv") == 0
    return folder


def test_a_profile_has_steps_of_every_regime_and_what_is_kept(profiled: Path) -> None:
    profile = load_profile(profiled)
    assert list(profile.policies) == ["fp16", "leankv"]
    assert {sample.regime for sample in samples_of(load_steps(profiled))} == {"decode", "prefill", "mixed"}
    for name, policy in profile.policies.items():
        assert set(policy.held_out) <= {"decode", "prefill", "mixed"} and policy.held_out, name
        assert policy.fit.linear_s[-1] > 0 and policy.memory["kv_pool_pages"] > 0
    leankv = profile.policies["leankv"]
    assert leankv.retention is not None and leankv.retention.growth is not None and leankv.heads is not None
    assert leankv.retention.growth.whole == 64
    assert len(leankv.heads.tokens[0]) == 2 and len(leankv.heads.tokens[0][0]) == 2
    assert profile.policies["fp16"].retention is None


def test_a_later_call_keeps_what_is_finished_and_goes_on(
    tiny: Path, profiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_profile(profiled).policies["fp16"].memory
    assert calibrate(tiny, profiled, "fp16", "leankv", others=("--json", str(profiled.parent / "told.json"))) == 0
    shown = capsys.readouterr().out
    assert "fp16: kept, finished earlier" in shown and "the machine was" in shown
    assert load_profile(profiled).policies["fp16"].memory == before
    told = json.loads((profiled.parent / "told.json").read_text())
    assert told["policies"]["leankv"]["fit_in_words"] and told["policies"]["leankv"]["held_out"]
    assert calibrate(tiny, profiled, "fp16", others=("--kv-memory-gib", "0.5")) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_second_round_goes_back_through_the_policies_and_counts_as_much_as_the_first(
    tiny: Path, profiled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "twice"
    shutil.copytree(profiled, folder)
    first = samples_of(load_steps(folder))
    assert calibrate(tiny, folder, "fp16", "leankv", others=("--rounds", "2")) == 0
    profile, both = load_profile(folder), samples_of(load_steps(folder))
    assert [sample.seconds for sample in both[: len(first)]] == [sample.seconds for sample in first]
    assert list(dict.fromkeys(sample.policy for sample in both[len(first) :])) == ["leankv", "fp16"]
    assert {sample.point for sample in both[len(first) :]} == {sample.point for sample in first}
    assert {each["rounds"] for each in profile.noise.values()} == {2}
    kept = load_profile(profiled).policies["leankv"]
    assert profile.policies["leankv"].retention == kept.retention
    assert profile.policies["fp16"].fit == fit_steps(points(both))["fp16"] != fit_steps(points(first))["fp16"]
    assert calibrate(tiny, folder, "fp16", "leankv", others=("--rounds", "2")) == 0
    assert samples_of(load_steps(folder)) == both


def test_what_was_cut_off_between_the_two_files_counts_once(tiny: Path, profiled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(profiled, folder)
    before = (folder / "profile.json").read_text()
    assert calibrate(tiny, folder, "fp16", others=("--rounds", "2")) == 0
    once = len(samples_of(load_steps(folder)))
    (folder / "profile.json").write_text(before)
    assert calibrate(tiny, folder, "fp16", others=("--rounds", "2")) == 0
    assert len(samples_of(load_steps(folder))) == once == load_profile(folder).timed_steps
    first = tmp_path / "first"
    first.mkdir()
    shutil.copy(folder / "steps.parquet", first)
    (first / ".0f.profile.json").write_text("{")
    assert calibrate(tiny, first, "fp16") == 0
    assert list(load_profile(first).policies) == ["fp16"]


def test_a_full_disk_leaves_the_profile_that_was_there(
    tiny: Path, profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "full"
    shutil.copytree(profiled, folder)

    def full(*_: object, **__: object) -> None:
        raise InputError("cannot write: no space left")

    monkeypatch.setattr("leankv.serving.profile.save_profile", full)
    assert calibrate(tiny, folder, "fp16", others=("--rounds", "2", "--json", str(tmp_path / "told.json"))) == 2
    assert "no space left" in capsys.readouterr().err
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["noise"]["fp16"]["rounds"] == 1 and load_profile(folder) == load_profile(profiled)


def test_a_grid_of_another_version_is_not_gone_on_with(
    tiny: Path, profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(profiled, folder)
    monkeypatch.setattr("leankv.backend.calibration.design.QUICK_SCALES", (0.2, 0.5))
    assert calibrate(tiny, folder, "fp16", others=("--rounds", "2")) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_profile_is_what_simulate_needs(profiled: Path, tmp_path: Path) -> None:
    trace = "poisson:rate=5,n=20,prompt=40,output=8"
    path = tmp_path / "runs.json"
    asked = ["simulate", "--trace", trace, "--max-prompt", "100", "--max-output", "16", "--profile", str(profiled)]
    assert main([*asked, "--json", str(path)]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert [run["policy"] for run in runs] == ["fp16", "leankv"]
    assert all(run["summary"]["step_time_source"].startswith("profile (cpu, ") for run in runs)
    assert runs[1]["summary"]["retention_source"].startswith("measured on")


def test_a_replayed_retention_is_not_measured_and_a_policy_without_one_is_left_out(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    assert calibrate(tiny, source, "fp16") == 0
    monkeypatch.setattr("leankv.backend.calibration.policy._kept", lambda *_: pytest.fail("measured in vain"))
    others = ("--retention-from", str(source))
    assert calibrate(tiny, tmp_path / "shape", "fp16", "leankv", others=others) == 0
    assert list(load_profile(tmp_path / "shape").policies) == ["fp16"]
    assert "leankv: left out" in capsys.readouterr().out
    assert calibrate(tiny, tmp_path / "none", "leankv", others=others) == 2
    assert "no retention of any" in capsys.readouterr().err


def test_an_interrupted_calibration_leaves_what_it_finished(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leankv.backend.calibration import policy

    first = policy.time_steps

    def once(rig: Rig, *others: object) -> object:
        if rig.engine.policy.name == "int8":
            raise KeyboardInterrupt
        return first(rig, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(policy, "time_steps", once)
    assert calibrate(tiny, tmp_path / "cut", "fp16", "int8") == 130
    assert list(load_profile(tmp_path / "cut").policies) == ["fp16"]


def rig_of(policy: str) -> Rig:
    loaded = tiny_model()
    texts = [Text(tokens, capture(loaded, torch.tensor(tokens))) for tokens in (prompt_of(256, 1), prompt_of(256, 2))]
    return Rig(loaded, policy_named(policy), SchedulerLimits(4, 64), 1 << 24, 256, texts, key_means())


@pytest.mark.parametrize("policy", ["fp16", "int8", "kivi", "h2o", "snapkv:budget=40", "leankv"])
def test_a_cache_that_was_filled_holds_what_the_model_would_have_stored(policy: str) -> None:
    filled, computed = rig_of(policy), rig_of(policy)
    filled.fill([100, 50])
    computed._stored = computed._model  # type: ignore[assignment]
    computed._model.texts = {}  # type: ignore[attr-defined]
    computed.fill([100, 50])
    for one, other in ((filled, computed), (computed, filled)):
        assert [request.cached for request in one.decoding] == [100, 50]
        for mine, others in zip(one.held(one.decoding), other.held(other.decoding), strict=True):
            assert mine == pytest.approx(others, rel=0.02)
    assert filled.step() and computed.step()
    assert [request.output for request in filled.decoding] == [request.output for request in computed.decoding]


def test_the_bench_makes_the_step_that_was_asked_for() -> None:
    rig = rig_of("leankv")
    rig.fill([60, 100, 30])
    timed = rig.step()
    assert timed is not None and timed.row.decoding == 3 and timed.row.chunks == ()
    assert timed.row.attended == 60 + 100 + 30 + 3
    for chunk in (ChunkSpec(0, 20), ChunkSpec(50, 20), ChunkSpec(50, 20, last=False)):
        rig.keep(2)
        timed = rig.step((chunk,))
        assert timed is not None and timed.row.chunks == ((chunk.context, chunk.tokens),)
        assert timed.row.completed == ((chunk.context + chunk.tokens,) if chunk.last else ())
        assert len(rig.decoding) == 2
    rig.keep(0)
    assert rig.step((ChunkSpec(0, 10),) * 3).row.completed == (10, 10, 10)  # type: ignore[union-attr]
    assert rig.engine.idle
    rig.engine.cache.check_integrity()


def test_the_bench_tells_when_a_window_passes_a_block_on() -> None:
    rig = rig_of("kivi")
    rig.fill([126, 100])
    fewer = [timed.fewer for timed in (rig.step() for _ in range(4)) if timed]
    assert fewer == [0, 0, 1, 0]


def test_recordings_are_made_before_any_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(Engine, "warm_up", lambda engine, record_all=False: asked.append(record_all))
    rig_of("fp16")
    assert asked == [True]


def test_an_engine_that_ended_is_gone_before_the_next_is_made() -> None:
    engines = [weakref.ref(rig_of("leankv").engine)]
    assert engines[0]() is not None, "its scheduler refers to it, too"
    release_ended("cpu")
    assert engines[0]() is None


@pytest.mark.parametrize("rehearse", [False, True])
def test_a_point_is_rehearsed_once_where_kernels_are_compiled_on_first_use(
    rehearse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, taken = rig_of("leankv"), []
    step = rig.step

    def counted(chunks: Sequence[ChunkSpec] = ()) -> Timed | None:
        taken.append(tuple(chunks))
        return step(chunks)

    monkeypatch.setattr(rig, "step", counted)
    grid = grid_of(4, 64, 256, quick=True)
    timing = _Timing(rig, grid, Reference(rig.engine.model), 0, lambda share: None, rehearse=rehearse)
    for scene in (grid.scenes[1], grid.scenes[1]):
        timing.scene(scene)
    points = grid.scenes[1].points
    extra = [point.chunks for point in points] if rehearse else []
    assert len(timing.samples) == 2 * sum(1 if point.chunks else 2 for point in points)
    assert len(taken) == len(timing.samples) + 2 + len(extra)


@pytest.mark.parametrize("quick", [False, True])
def test_a_scenes_requests_have_tokens_for_its_rehearsals(quick: bool) -> None:
    grid = grid_of(64, 2048, 2048, quick)
    for scene in grid.scenes:
        steps = 1
        for point in scene.points:
            times = 1 + (grid.prompts if point.chunks else grid.decodes)
            beside = sum(bool(chunk.context) + (not chunk.last) for chunk in point.chunks)
            steps += times * (1 + beside)
        assert not scene.contexts or steps < OUTPUT


@pytest.mark.parametrize("limits", [(16, 512, 2048), (2, 32, 160), (64, 2048, 8192), (1, 8, 128)])
def test_a_grid_stays_within_its_limits(limits: tuple[int, int, int]) -> None:
    seqs, tokens, context = limits
    for quick in (False, True):
        grid = grid_of(*limits, quick)
        points = [point for scene in grid.scenes for point in scene.points]
        assert len({point.number for point in points}) == len(points) > 4
        for scene in grid.scenes:
            assert len(scene.contexts) <= seqs and all(0 < each < context for each in scene.contexts)
        for point in points:
            assert 0 < point_tokens(point) <= max(tokens, seqs)
            assert all(chunk.context + chunk.tokens <= context for chunk in point.chunks)
            assert point.batch + len(point.chunks) <= seqs


def steps_of(policy: str, round: int, *references_s: float, points: Sequence[int]) -> list[StepSample]:
    counts = {field.name: 0 for field in fields(StepSample)}
    made = StepSample(**{**counts, "policy": policy, "regime": "decode", "kept": True, "round": round})
    pairs = zip(references_s, points, strict=True)
    return [replace(made, reference_s=reference_s, point=point) for reference_s, point in pairs]


def test_disturbed_steps_are_dropped_unless_a_point_has_no_other() -> None:
    steps = steps_of("fp16", 0, 1.0, 1.0, 1.1, 3.0, 2.0, 1.4, 5.0, points=[0, 1, 1, 1, 2, 2, 3])
    marked, noise = judged(steps)
    assert [step.kept for step in marked] == [True, True, True, False, False, True, True]
    assert (noise["fp16"].undisturbed, noise["fp16"].lost) == (pytest.approx(4 / 7), 0.25)
    assert noise["fp16"].verdict == "too noisy"
    assert judged(steps[:-1])[1]["fp16"].verdict == "noisy"
    assert judged(steps[:3])[1]["fp16"].verdict == "quiet"


def test_rounds_and_policies_are_judged_together() -> None:
    first = steps_of("fp16", 0, 2.0, 2.0, 2.2, points=[0, 1, 2])
    second = steps_of("fp16", 1, 1.0, 1.0, 2.0, points=[0, 1, 2])
    other = steps_of("int8", 0, 2.0, 2.1, 2.0, points=[0, 1, 2])
    marked, noise = judged([*first, *second, *other])
    assert [step.kept for step in marked] == [False, False, False, True, True, True, True, True, True]
    assert noise["fp16"].steps == 6 and noise["fp16"].drift == pytest.approx(2.0) and noise["fp16"].rounds == 2
    assert noise["int8"].verdict == "too noisy", "a machine that is slow throughout is not quiet"


def test_a_machine_that_slows_down_is_taken_for_slower_and_not_the_policy() -> None:
    slow, fast = [2e-3] * 20, [1e-3] * 20
    steps = [*steps_of("fp16", 0, *fast, points=range(20)), *steps_of("int8", 0, *slow, points=range(20))]
    lasting = [replace(step, seconds=300 * step.reference_s) for step in steps]
    marked, _ = judged(lasting)
    taken = {name: {p.seconds for p in points(marked) if p.policy == name} for name in ("fp16", "int8")}
    assert min(taken["fp16"]) == pytest.approx(max(taken["int8"]))


def test_a_steady_machine_has_one_pace_and_disturbed_steps_are_dropped_all_the_same() -> None:
    steps = steps_of("fp16", 0, 1.0, 1.2, 3.0, 1.0, points=[0, 1, 1, 2])
    marked, noise = judged(steps, steady=True)
    assert [step.pace for step in marked] == [1.0] * 4
    assert [step.kept for step in marked] == [step.kept for step in judged(steps)[0]] == [True, True, False, True]
    assert noise == judged(steps)[1]


def test_one_slow_reference_is_not_the_machines_pace() -> None:
    marked, _ = judged(steps_of("fp16", 0, *[1e-3] * 10, 4e-3, *[1e-3] * 10, points=range(21)))
    assert max(step.pace for step in marked) < 1.15 and min(step.pace for step in marked) == pytest.approx(1.0)
