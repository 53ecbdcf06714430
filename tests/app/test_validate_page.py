"""The Validate page and its figures, on a validation with the schema of a real one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from leankv.app import validationwords
from leankv.app.figures import holdup, parity
from leankv.serving.models import model_named
from leankv.serving.profile import Profile
from leankv.serving.scheduler import SchedulerLimits
from leankv.simulator.validation import Validation, load_validation
from leankv.traces.open import open_trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, made: object) -> Path:
    return made.validation_folder(tmp_path_factory.mktemp("validation") / "mine")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def validation(folder: Path) -> Validation:
    return load_validation(folder / "validation.json")


def opened(**query: str) -> AppTest:
    app = AppTest.from_string("from leankv.app.screens import validate; validate.page()", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_an_empty_page_teaches_the_commands(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leankv.app.found.SHIPPED", leankv_home)
    app = opened()
    assert "leankv validate --profile" in app.code[0].value
    assert not app.error


def test_the_page_judges_and_draws(leankv_home: Path, folder: Path) -> None:
    app = opened(validation=str(folder))
    assert "the simulator is off by" in app.markdown[0].value
    assert [metric.label for metric in app.metric][:3] == ["Median error", "KV pages, worst", "Pages per request"]
    assert len(app.metric) == 6
    # parity, errors, a map a load, three distributions, four regimes, the machine
    assert len(app.get("plotly_chart")) == 2 + 2 + 3 + 4 + 1
    assert any("drifted" in warning.value for warning in app.warning)


def test_one_load_can_be_chosen(leankv_home: Path, folder: Path) -> None:
    app = opened(validation=str(folder), load="low")
    assert len(app.get("plotly_chart")) == 2 + 1 + 3 + 4 + 1


def test_without_run_folders_the_figures_stay(leankv_home: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "validation.json", tmp_path)
    app = opened(validation=str(tmp_path))
    assert any("run folders of this validation are not here" in caption.value for caption in app.caption)
    assert len(app.get("plotly_chart")) == 2 + 2 + 4 + 1


def test_a_validation_of_a_job_is_offered(leankv_home: Path, folder: Path) -> None:
    shutil.copytree(folder, leankv_home / "jobs" / "abcdef123456" / "results")
    assert "job abcdef" in opened().selectbox(key="validation").options


def test_what_is_no_validation_is_one_line(leankv_home: Path, tmp_path: Path) -> None:
    (tmp_path / "validation.json").write_text(json.dumps({"schema_version": 1}))
    app = opened(validation=str(tmp_path))
    assert len(app.error) == 1 and str(tmp_path) in app.error[0].value


def test_every_figure_of_the_file_is_on_the_parity_plot(validation: Validation) -> None:
    rows = [row for row in validation.parity if row.kind == "latency"]
    chart = parity.parity(rows)
    points = [trace for trace in chart.figure.data if trace.customdata is not None]
    assert sum(len(trace.x) for trace in points) == len(rows)
    assert {trace.name for trace in points} == {row.policy for row in rows}
    assert chart.table.num_rows == len(rows)


def test_the_bands_are_where_they_say(validation: Validation) -> None:
    rows = [row for row in validation.parity if row.kind == "latency"]
    bands = [trace for trace in parity.parity(rows).figure.data if trace.fill == "toself"]
    for band, share in zip(bands, parity.BANDS, strict=True):
        assert np.allclose(np.array(band.y) / np.array(band.x), [1 - share, 1 - share, 1 + share, 1 + share])


def test_the_map_says_each_error_and_counts_as_counts(validation: Validation) -> None:
    rows = [row for row in validation.parity if row.load == "knee"]
    (trace,) = parity.error_map(rows).figure.data
    cell = next(row for row in rows if row.policy == "leankv" and row.metric == "p99_ttft_ms")
    at = list(trace.y).index("TTFT p99"), list(trace.x).index("leankv")
    assert cell.relative_error is not None
    assert trace.text[at[0]][at[1]] == f"{100 * cell.relative_error:+.1f} %"
    assert trace.text[-1][0] == "0 / 0"


@pytest.mark.parametrize(
    ("metric", "said"),
    [("median_ttft_ms", "TTFT p50"), ("p99_e2el_ms", "E2E p99"), ("peak_kv_pages", "KV pages, peak")],
)
def test_metrics_are_spoken(metric: str, said: str) -> None:
    assert parity.spoken(metric) == said


def test_words_follow_the_file(validation: Validation) -> None:
    said = validationwords.verdict(validation)
    assert f"{validation.summary['median_absolute_error']:.1%}" in said
    assert "pairs of policies are in the right order" in said
    assert "right" in validationwords.ranking(validation.ranking[0])
    assert len(validationwords.signs(validation)) == len(validation.compression_helps)
    missed = [target for target in validation.summary["targets"] if not target["holds"]]
    assert sum(line.startswith("Missed") for line in validationwords.warnings(validation)) == len(missed)


def with_repeats(validation: Validation, repeats: dict[str, int]) -> Validation:
    return replace(validation, conditions={**validation.conditions, "repeats": repeats})


@pytest.mark.parametrize(
    ("repeats", "said"),
    [
        ({"low": 3, "knee": 3}, "3 live runs of each"),
        ({"knee": 1}, "1 live run of each"),
        ({"low": 1, "knee": 3}, "live runs of each: 1 at low, 3 at knee"),
    ],
)
def test_repeats_are_told_in_words(validation: Validation, repeats: dict[str, int], said: str) -> None:
    assert f" · {said} · " in validationwords.conditions(with_repeats(validation, repeats))


def test_what_others_took_is_told_with_the_runs_that_it_cost(validation: Validation) -> None:
    (said,) = [line for line in validationwords.warnings(validation) if "Others" in line]
    assert "Others took 3% to 40% of the cores" in said
    assert said.endswith("in their place: leankv at low, repeat 2; leankv at knee, repeat 2.")
    for quiet in (None, 0.01):
        alone = replace(validation, machine=[{**row, "others": quiet, "counts": True} for row in validation.machine])
        assert not any("Others" in line for line in validationwords.warnings(alone))


def test_the_terminal_tells_how_many_runs_a_median_is_of(validation: Validation) -> None:
    from leankv.app.commands import _validation_tables as tables

    rows = [row for row in validation.parity if row.load == "low"]
    title = tables._table(validation, "low", validation.loads["low"], rows).title
    assert "median of 1 to 2, and the error" in str(title)
    mine = [row for row in rows if row.policy == "leankv"]
    assert "median of 1, " in str(tables._table(validation, "low", validation.loads["low"], mine).title)


def test_the_made_conditions_are_those_that_validate_writes(validation: Validation) -> None:
    pytest.importorskip("torch")
    from leankv.app.commands import validate
    from leankv.app.commands._validation_runs import Results

    asked = validation.conditions
    setup = SimpleNamespace(device=asked["device"], model=model_named("llama-3.1-8b"), kv_memory_bytes=1)
    profile = Profile(setup.model, {}, "float32", {}, "", {}, {})
    limits = SchedulerLimits(16, 512, True)
    plan = SimpleNamespace(
        setup=setup, trace=open_trace(limit=8), policies=(), loads=(), limits=limits, profile=profile
    )
    written = validate._conditions(plan, Results())  # type: ignore[arg-type]
    assert list(written) == list(asked)
    assert list(written["profile"]) == list(asked["profile"])


def test_what_is_left_at_each_runs_own_pace_is_told_only_where_the_pace_was_another(validation: Validation) -> None:
    def told(pace: float | None) -> list[str]:
        machine = [{**row, "pace": pace} for row in validation.machine]
        found = {**validation.summary, "paced_median_absolute_error": 0.042, "paced_worst_kv_pages_error": 0.02}
        return [
            line
            for line in validationwords.warnings(replace(validation, machine=machine, summary=found))
            if "own pace" in line
        ]

    assert told(None) == told(1.0) == []
    assert "1.40 to 1.40 times" in told(1.4)[0] and "4.2% in the median" in told(1.4)[0]


def test_a_wrong_order_is_called_wrong(validation: Validation) -> None:
    assert "**wrong**" in validationwords.ranking({**validation.ranking[0], "holds": False})


@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_has_words_and_numbers(validation: Validation, folder: Path, dark: bool) -> None:
    from leankv.serving.runs import load_run

    place = folder / "knee" / "leankv"
    live, simulated = load_run(place / "live-1"), load_run(place / "simulated")
    charts = [
        parity.parity(validation.parity, dark),
        parity.errors(validation.parity, dark),
        parity.error_map(validation.parity, dark),
        holdup.overlaid("leankv", [live.requests], simulated.requests, "ttft_ms", dark),
        *(holdup.by_regime(rows, dark) for rows in validationwords.kinds_of(validation.residuals).values()),
        holdup.drift(validation.machine, dark),
    ]
    for chart in charts:
        assert len(chart.alt) > 30
        assert chart.table.num_rows > 0
        assert chart.figure.to_json()
