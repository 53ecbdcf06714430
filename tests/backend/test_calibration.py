"""A calibration of a tiny model, end to end; and that what stands on the bench is what the engine would have made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.backend.tiny import key_means, prompt_of, tiny_model
from tests.backend.tiny_folder import save_tiny_model

from leankv.app.cli import main
from leankv.backend.calibration.design import grid_of, point_tokens
from leankv.backend.calibration.reference import kept_of, noise_of
from leankv.backend.calibration.rig import ChunkSpec, Rig
from leankv.backend.calibration.stored import Text
from leankv.backend.capture import capture
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import load_profile, load_steps
from leankv.serving.scheduler import SchedulerLimits
from leankv.serving.step_samples import samples_of

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
    assert both[: len(first)] == first
    assert list(dict.fromkeys(sample.policy for sample in both[len(first) :])) == ["leankv", "fp16"]
    assert {sample.point for sample in both[len(first) :]} == {sample.point for sample in first}
    assert {each["rounds"] for each in profile.noise.values()} == {2}
    kept = load_profile(profiled).policies["leankv"]
    assert profile.policies["leankv"].retention == kept.retention and profile.policies["leankv"].fit != kept.fit
    assert calibrate(tiny, folder, "fp16", "leankv", others=("--rounds", "2")) == 0
    assert samples_of(load_steps(folder)) == both


def test_a_profile_is_what_simulate_needs(profiled: Path, tmp_path: Path) -> None:
    trace = "poisson:rate=5,n=20,prompt=40,output=8"
    path = tmp_path / "runs.json"
    asked = ["simulate", "--trace", trace, "--max-prompt", "100", "--max-output", "16", "--profile", str(profiled)]
    assert main([*asked, "--json", str(path)]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert [run["policy"] for run in runs] == ["fp16", "leankv"]
    assert all(run["summary"]["step_time_source"].startswith("profile (cpu, ") for run in runs)
    assert runs[1]["summary"]["retention_source"].startswith("measured on")


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


def test_disturbed_steps_are_dropped_unless_a_point_has_no_other() -> None:
    references, points = [1.0, 1.1, 3.0, 2.0, 1.4, 5.0], [1, 1, 1, 2, 2, 3]
    assert kept_of(references, points) == [True, True, False, False, True, True]
    noise = noise_of(references, points)
    assert (noise.undisturbed, noise.lost, noise.verdict) == (0.5, pytest.approx(1 / 3), "too noisy")
    assert noise_of([1.0, 1.1, 3.0, 2.0, 1.4], points[:5]).verdict == "noisy"
    assert noise_of([1.0] * 10, list(range(10))).verdict == "quiet"
