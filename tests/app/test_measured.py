"""Measured profiles and measured answers on the pages that compare: taken over where they fit, never invented."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from leankv.app import answers, profiles, scoreboard, sweeppanel, tunings
from leankv.app.scenario import Scenario
from leankv.serving.errors import InputError
from leankv.serving.policies.registry import policy_named

MODEL = "smollm2-135m"
FP16 = {"perplexity": {"value": 20.0, "difference": None, "difference_interval": None}}


@pytest.fixture(autouse=True)
def calm(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep starts by itself; nothing but the test's own files is offered."""
    monkeypatch.setattr(sweeppanel, "AT_ONCE", 0)
    monkeypatch.setattr("leankv.app.found.SHIPPED", leankv_home / "shipped")


@pytest.fixture
def profile(leankv_home: Path, made: Any) -> Path:
    return made.profile_folder(leankv_home / "shipped" / "cpu" / MODEL)  # type: ignore[no-any-return]


@pytest.fixture
def quality(leankv_home: Path, made: Any) -> Path:
    return made.quality_folder(leankv_home / "shipped" / "quality" / MODEL)  # type: ignore[no-any-return]


def opened(page: str, **query: object) -> AppTest:
    app = AppTest.from_string(f"from leankv.app.screens import {page}; {page}.page()", default_timeout=60)
    for name, value in {"limit": 60, **query}.items():
        app.query_params[name] = [str(item) for item in value] if isinstance(value, list) else str(value)
    app.run()
    assert not app.exception, app.exception
    return app


def captions(app: AppTest) -> str:
    return " ".join(caption.value for caption in app.caption)


def specifications(*names: str) -> dict[str, str]:
    return {name: repr(policy_named(name)) for name in names}


def test_a_profile_brings_its_model_device_and_policies(profile: Path) -> None:
    app = opened("compare", steptime="profile", rate=0.05)
    assert not app.error
    assert "**smollm2-135m** on **cpu, 2 threads**, measured 2026-11-21" in captions(app)
    board = app.dataframe[0].value
    assert set(board["Policy"]) == {"fp16", "int8", "leankv"}
    assert all(source.startswith("profile (cpu, 2 threads") for source in board["Step times"])
    assert any("badge" in block.value and "profile" in block.value for block in app.markdown)
    assert "measured by this project's engine" in captions(app)


def test_a_choice_among_the_measured_policies_is_kept_in_the_address(profile: Path) -> None:
    app = opened("compare", steptime="profile", rate=0.05, measured=["int8"])
    assert list(app.dataframe[0].value["Policy"]) == ["int8"]


def test_without_a_profile_the_page_teaches() -> None:
    app = opened("compare", steptime="profile")
    assert app.code[0].value.startswith("leankv calibrate")
    assert not app.error and not app.metric


def test_a_broken_profile_is_one_line(leankv_home: Path) -> None:
    folder = leankv_home / "shipped" / "bad"
    folder.mkdir(parents=True)
    (folder / "profile.json").write_text("{}")
    app = opened("compare", steptime="profile")
    assert len(app.error) == 1 and "profile.json" in app.error[0].value


def test_the_scenario_of_a_profile_is_as_the_command_line_has_it(profile: Path) -> None:
    config = Scenario(step_time="profile", profile=str(profile)).config("leankv")
    assert (config.model.name, config.device.name) == (MODEL, "cpu, 2 threads")
    assert config.profile is not None and config.step_time == "profile"
    before = Scenario(step_time="profile", profile=str(profile)).to_params()
    stored = profile / "profile.json"
    stored.write_text(stored.read_text() + " ")
    assert Scenario(step_time="profile", profile=str(profile)).to_params() != before


def test_measured_answers_join_the_comparison_and_warn_of_a_losing_winner(profile: Path, quality: Path) -> None:
    app = opened("compare", steptime="profile", rate=0.05, measured=["fp16", "leankv"])
    board = app.dataframe[0].value.set_index("Policy")
    stored = json.loads((quality / "quality.json").read_text())["policies"]["leankv"]["scores"]["perplexity"]
    assert board[scoreboard.LOSS]["leankv"] == pytest.approx(100 * stored["difference"])
    assert board[scoreboard.LOSS]["fp16"] == 0
    assert "perplexity changes by" in captions(app)


def test_no_answers_are_told_of_a_model_that_was_not_evaluated(quality: Path) -> None:
    app = opened("compare")
    assert "no quality was measured for llama-3.1-8b" in captions(app)
    assert "Measured: smollm2-135m" in captions(app)
    assert scoreboard.LOSS not in app.dataframe[0].value.columns


def test_answers_are_matched_by_the_policys_knobs(quality: Path) -> None:
    asked = specifications("kivi", "kivi:bits=4", "kivi:bits=4,residual=64", "leankv", "leankv:alpha_high=1", "fp8")
    mix = f"{asked['leankv']} + {asked['fp8']}"
    found = answers.measured(MODEL, {**asked, "leankv+fp8": mix})
    assert found is not None
    assert {"kivi:bits=4", "leankv", "leankv:alpha_high=1"} == set(found.scores)
    assert answers.knobs(asked["kivi"]) == answers.knobs(repr(policy_named("kivi:bits=2")))
    assert answers.measured("llama-3.1-8b", specifications("leankv")) is None


def test_a_winner_that_loses_answers_is_warned_of(quality: Path) -> None:
    found = answers.measured(MODEL, specifications("fp16", "int4", "int8"))
    assert found is not None
    said = answers.warning(found, "int4")
    assert said and said.startswith("int4 wins, but loses answers: perplexity rises by")
    assert answers.warning(found, "int8") is None
    assert answers.warning(found, "leankv") is None
    assert answers.warning(None, "int4") is None


def with_scores(found: answers.Answers, policy: str, **scores: Any) -> answers.Answers:
    return replace(found, scores={**found.scores, policy: {**found.scores[policy], **scores}})


def test_a_winner_that_loses_needles_or_answers_beyond_chance_is_warned_of(quality: Path) -> None:
    found = answers.measured(MODEL, specifications("fp16", "int8"))
    assert found is not None and answers.warning(found, "int8") is None
    for metric, told in (("needle", "needles found"), ("answers", "answers right")):
        lost = {"value": 0.17, "difference": -0.83, "difference_interval": [-0.95, -0.6]}
        said = answers.warning(with_scores(found, "int8", **{metric: lost}), "int8")
        assert said == f"int8 wins, but loses answers: 17% of {told}, not 100%. See the Quality page."
        chance = {"value": 0.9, "difference": -0.1, "difference_interval": [-0.3, 0.02]}
        assert answers.warning(with_scores(found, "int8", **{metric: chance}), "int8") is None


def test_what_rests_on_perplexity_alone_says_so(quality: Path) -> None:
    found = answers.measured(MODEL, specifications("fp16", "int8"))
    assert found is not None
    said = answers.sentence(found, MODEL, "int8", [])
    assert "% of needles found" in said and "not measured" not in said
    alone = replace(found, scores={"int8": {"perplexity": found.scores["int8"]["perplexity"]}})
    assert answers.sentence(alone, MODEL, "int8", []).endswith("Needles and answers were not measured.")


def test_a_winner_that_was_not_measured_gets_no_green_badge(
    profile: Path, quality: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 is in every evaluation, so that some policy was measured says nothing."""
    shown = {}
    for best in ("fp16", "leankv"):
        monkeypatch.setattr("leankv.app.narrative.leader", lambda rows, best=best: best)
        monkeypatch.setattr(answers, "measured", lambda *_: answers.Answers(quality, "mine", {"fp16": FP16}))
        app = opened("compare", steptime="profile", rate=0.05, measured=["fp16", "leankv"])
        shown[best] = next(block.value for block in app.markdown if "badge" in block.value)
    assert "answers: measured" in shown["fp16"] and "answers: not measured" in shown["leankv"]


def test_the_table_leaves_a_policy_that_was_not_measured_empty(quality: Path, sample: SimpleNamespace) -> None:
    found = answers.measured(MODEL, specifications("int8"))
    table = scoreboard.table({"int8": sample.summary(), "h2o": sample.summary()}, found)
    rows = {row["Policy"]: row for row in table.to_pylist()}
    assert rows["h2o"][scoreboard.LOSS] is None and rows["int8"][scoreboard.LOSS] is not None


def test_the_profile_behind_a_validation_is_told_in_words(profile: Path, leankv_home: Path, made: Any) -> None:
    folder = made.validation_folder(leankv_home / "mine", runs=False)
    app = opened("validate", validation=str(folder))
    assert any("linear layers and the host's work" in block.value for block in app.markdown)
    found = profiles.of_date(made.CREATED)
    assert found is not None and found.model.name == MODEL


def test_what_each_head_keeps_is_drawn_from_the_models_profile(profile: Path, quality: Path) -> None:
    app = opened("quality")
    assert any("What each head keeps" in header.value for header in app.header)
    assert app.selectbox(key="heads").options == ["leankv"]


def save_tuned(folder: Path, physical: float = 3.0, **about: Any) -> None:
    from leankv.serving.tuning import TUNE_FILE, save_tuning

    figures = {"loss": 0.008, "interval": [0.001, 0.015], "nominal": 4.0, "physical": physical}
    spec = "leankv:alpha_low=0.02,alpha_high=1"
    found = {"policy": "leankv", "bound": 0.01, "spec": spec, "held_in": figures, "held_out": figures}
    kept = {spec: {"essays": [[[0.5, 0.1]], [[0.2, 0.2]]], "code": [[[0.4, 0.1]], [[0.1, 0.0]]]}}
    save_tuning({"model": MODEL, "found": [found], "kept": kept, **about}, folder / TUNE_FILE)


def tuned_ratio(app: AppTest) -> float:
    (frame,) = (frame.value for frame in app.dataframe if "Setting" in frame.value.columns)
    return float(frame["Compression, physical"][0])


def test_a_tuning_is_told_with_its_heads_by_kind_of_text(leankv_home: Path, quality: Path) -> None:
    save_tuned(leankv_home / "shipped" / "tuned")
    app = opened("quality")
    rows = [frame.value for frame in app.dataframe if "Setting" in frame.value.columns]
    assert list(rows[0]["Loss, held out"]) == ["+0.80% (+0.10% to +1.50%)"]
    assert "Kept of essays 50%, of code 30%. Heads differ most in layer 1, head 0: 40% and 10%" in captions(app)


def test_every_tuning_of_the_model_can_be_chosen_newest_first(leankv_home: Path, quality: Path) -> None:
    """And no newer one hides another; those of other models and files of no use are not offered."""
    for age, (job, physical) in enumerate({"newer1": 5.0, "older2": 4.0}.items()):
        folder = leankv_home / "jobs" / job / "results"
        save_tuned(folder, physical)
        os.utime(folder / "tune.json", (1e9 - age, 1e9 - age))
    save_tuned(leankv_home / "shipped" / "tuned")
    save_tuned(leankv_home / "jobs" / "other3" / "results", model="another")
    (leankv_home / "shipped" / "broken").mkdir()
    (leankv_home / "shipped" / "broken" / "tune.json").write_text("{}")
    app = opened("quality")
    assert app.selectbox(key="tuning").options == ["job newer1", "job older2", "tuned"]
    assert tuned_ratio(app) == 5.0
    app.selectbox(key="tuning").select("job older2").run()
    assert tuned_ratio(app) == 4.0 and not app.error


def test_a_tunings_folder_can_be_named_and_is_told_with_its_settings(leankv_home: Path, quality: Path) -> None:
    save_tuned(leankv_home / "shipped" / "tuned")
    searched = {"windows": 26, "held_out": 16, "prefix_tokens": 768, "scored_tokens": 32, "judge": "upper"}
    device = {"device": {"name": "cpu, 1 threads"}, "dtype": "float32"}
    mine = leankv_home / "mine"
    save_tuned(mine, 7.0, settings={**searched, "texts": ["book.txt"]}, **device)
    app = opened("quality", tuning=mine)
    assert tuned_ratio(app) == 7.0
    said = captions(app)
    assert f"`{mine}` · leankv · 10 windows searched, 16 held out" in said
    assert "each 768 tokens of prompt and 32 scored, of book.txt · bounds hold for the upper end" in said
    assert f"measured {datetime.now(UTC):%Y-%m-%d} on cpu, 1 threads (float32)" in said
    save_tuned(mine, model="another")
    assert "holds a tuning of another" in opened("quality", tuning=mine).error[0].value


@pytest.mark.parametrize("model", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_the_tunings_that_ship_are_read_and_name_policies_that_can_be_run(repository: Path, model: str) -> None:
    """A grid's end is a knob of the policy that was found."""
    from leankv.serving.tuning import load_tuning

    shipped = repository / "profiles" / "tuning" / model
    found = load_tuning(shipped / "tune.json")["found"]
    assert found
    for each in found:
        assert policy_named(each["spec"]).name == each["spec"] and each["spec"].startswith(each["policy"])
        assert all(knob in each["spec"] for knob in each["at_end"])
    assert "windows searched" in tunings.conditions(tunings.opened(shipped, model), shipped)


@pytest.mark.parametrize("found", ["[{}]", "3", "null"])
def test_a_file_that_is_no_tuning_is_told(found: str, tmp_path: Path) -> None:
    from leankv.serving.tuning import load_tuning

    (tmp_path / "tune.json").write_text(f'{{"schema_version": 1, "kept": {{}}, "found": {found}}}')
    with pytest.raises(InputError, match="not a result of tune"):
        load_tuning(tmp_path / "tune.json")


def test_an_older_file_tells_the_highest_levels_that_it_tried(tmp_path: Path) -> None:
    from leankv.serving.tuning import ended_at_the_grid, load_tuning

    trials = ["leankv:alpha_low=0.02,alpha_high=1", "leankv:alpha_low=0.01,alpha_high=8", "leankv-r:prune=1,low_mass=1"]
    save_tuned(tmp_path, trials={spec: {} for spec in trials})
    found = load_tuning(tmp_path / "tune.json")["found"]
    assert found[0]["at_end"] == ["alpha_low=0.02"]
    assert ended_at_the_grid(found)[0].startswith("leankv at 1 %: the search ended at alpha_low=0.02, the highest")
