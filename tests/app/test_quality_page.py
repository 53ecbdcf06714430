"""The Quality page, its figures and its words, on an evaluation with the schema of a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from leankv.app import pairwords, qualitywords
from leankv.app.figures import quality as figures
from leankv.app.figures.pair import by_window
from leankv.serving.quality import Quality, load_quality, samples_table
from leankv.serving.quality_scores import OutputLengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, made: object) -> Path:
    return made.quality_folder(tmp_path_factory.mktemp("quality") / "mine")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def quality(folder: Path) -> Quality:
    return load_quality(folder)


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships with the project is another subject: a profile of the same model adds a chart."""
    monkeypatch.setattr("leankv.app.found.SHIPPED", tmp_path_factory.mktemp("shipped"))


def opened(**query: str | list[str]) -> AppTest:
    app = AppTest.from_string("from leankv.app.screens import quality; quality.page()", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_an_empty_page_teaches_the_command(leankv_home: Path) -> None:
    assert "leankv evaluate" in opened().code[0].value


def test_the_page_judges_and_draws(leankv_home: Path, folder: Path) -> None:
    app = opened(quality=str(folder))
    assert app.markdown[0].value.startswith("**leankv compresses most within 1%")
    assert "int4 breaks the model" in app.markdown[0].value
    # frontier, one against another, four tasks, two needle maps, negative samples, growth
    assert len(app.get("plotly_chart")) == 1 + 1 + 4 + 2 + 1 + 1
    assert list(app.dataframe[1].value["Policy"]) == ["fp16", "int8", "kivi:bits=4", "leankv", "int4", "leankv-r"]


def test_another_metric_and_policy_can_be_chosen(leankv_home: Path, folder: Path) -> None:
    app = opened(quality=str(folder), by="Needles found", show="int4")
    assert any(block.value == "**int4**" for block in app.markdown)


def test_any_two_policies_are_held_against_each_other(leankv_home: Path, folder: Path) -> None:
    app = opened(quality=str(folder), one="int4", other="int8")
    (said,) = (block.value for block in app.markdown if block.value.startswith("**int4 loses more than int8: +"))
    assert "higher on 40 of them" in said and "**not of a size**" in said
    assert any("two different" in block.value for block in opened(quality=str(folder), one="int4", other="int4").info)


def test_leankv_is_first_held_against_another_method_of_its_size(quality: Quality) -> None:
    ratios = {name: each.physical_ratio for name, each in quality.policies.items()}
    first, other = pairwords.nearest(quality) or ("", "")
    assert first == "leankv" and other in set(ratios) - {"fp16", "leankv", "leankv-r"}
    assert abs(ratios[other] - ratios["leankv"]) == min(
        abs(ratios[name] - ratios["leankv"]) for name in ratios if name not in ("fp16", "leankv", "leankv-r")
    )
    assert pairwords.nearest(without(quality, "int8", ("perplexity",))) is not None


def test_policies_that_scored_nothing_together_are_told_so(quality: Quality) -> None:
    bare = without(quality, "int8", ("perplexity",))
    assert "No text was scored under both" in pairwords.verdict(bare, "int8", "leankv")
    assert not pairwords.losses(bare, "int8", "leankv")
    assert "Perplexity (%)" not in pairwords.table(bare, "int8", "leankv")["Metric"].to_pylist()


def test_the_same_answers_cannot_be_told_apart(quality: Quality) -> None:
    rows = quality.samples.to_pylist()
    copied = [{**row, "policy": "int4"} for row in rows if row["policy"] == "int8"]
    twins = replace(quality, samples=samples_table([row for row in rows if row["policy"] != "int4"] + copied))
    assert "int4 cannot be told from int8: +0.0%" in pairwords.verdict(twins, "int4", "int8")


def test_what_is_no_evaluation_is_one_line(leankv_home: Path, tmp_path: Path) -> None:
    app = opened(quality=str(tmp_path))
    assert len(app.error) == 1 and str(tmp_path) in app.error[0].value


def test_points_are_paired_differences_and_the_baseline_is_zero(quality: Quality) -> None:
    points = {point.policy: point for point in qualitywords.points(quality, "perplexity")}
    assert points["fp16"].value == 0
    score = quality.policies["leankv"].scores["perplexity"]
    assert score.difference is not None and points["leankv"].value == pytest.approx(100 * score.difference)
    assert {name for name, point in points.items() if point.on_frontier} == {"fp16", "int8", "leankv", "leankv-r"}


def test_a_task_is_drawn_at_the_compression_of_its_own_samples(quality: Quality) -> None:
    """Needles ask of longer contexts than windows of text do, so they compress more."""
    import pyarrow as pa

    needles = [task == "needle" for task in quality.samples["task"].to_pylist()]
    place = quality.samples.column_names.index("kv_page_bytes")
    held = quality.samples["kv_page_bytes"].to_pylist()
    halved = pa.array([size // 2 if is_needle else size for size, is_needle in zip(held, needles, strict=True)])
    denser = replace(quality, samples=quality.samples.set_column(place, "kv_page_bytes", halved))
    before, after = ({p.policy: p.ratio for p in qualitywords.points(each, "needle")} for each in (quality, denser))
    assert after["leankv"] == pytest.approx(2 * before["leankv"], rel=1e-4)
    assert qualitywords.points(denser, "perplexity") == qualitywords.points(quality, "perplexity")


def test_perplexity_that_hides_lost_needles_is_warned_of(quality: Quality) -> None:
    def found(policy: str, needle: float) -> Quality:
        rows = quality.samples.to_pylist()
        kept = [row for row in rows if row["policy"] == "leankv" or row["policy"] == "fp16"]
        for row in kept:
            if row["task"] == "needle":
                row["score"] = needle if row["policy"] == policy else 1.0
        return replace(quality, samples=samples_table(kept))

    hidden = [line for line in qualitywords.warnings(found("leankv", 0.0)) if "needles" in line]
    assert hidden == ["Perplexity hides lost needles: leankv finds 0%. fp16 finds 100%."]
    assert not any("needles" in line for line in qualitywords.warnings(found("leankv", 1.0)))


@given(st.dictionaries(st.text("abc", min_size=1), st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1))
def test_the_frontier_is_what_nobody_beats(places: dict[str, tuple[int, int]]) -> None:
    best = qualitywords.on_frontier(places, less_is_better=True)
    assert best
    for name, (ratio, loss) in places.items():
        others = [place for other, place in places.items() if other != name]
        beaten = any(r >= ratio and e <= loss and (r, e) != (ratio, loss) for r, e in others)
        assert (name in best) != beaten
    mirrored = {name: (ratio, -loss) for name, (ratio, loss) in places.items()}
    assert qualitywords.on_frontier(mirrored, less_is_better=False) == best


def test_a_collapsed_policy_stands_at_the_edge_with_its_figure(quality: Quality) -> None:
    axis = qualitywords.AXES["perplexity"][0]
    chart = figures.frontier(qualitywords.points(quality, "perplexity"), axis)
    (trace,) = [trace for trace in chart.figure.data if trace.name == "int4"]
    assert trace.y[0] == axis.cut
    assert trace.text[0].startswith("+19") and trace.error_y.array is None
    assert chart.figure.layout.yaxis.autorange == "reversed"


def test_the_frontiers_marks_are_numbered_as_the_legend_is(quality: Quality) -> None:
    found = qualitywords.points(quality, "perplexity")
    chart = figures.frontier(found, qualitywords.AXES["perplexity"][0])
    numbered = {trace.name: trace.text[0] for trace in chart.figure.data if trace.name[0].isdigit()}
    assert numbered == {"1 fp16": "1", "2 int8": "2", "3 leankv": "3", "4 leankv-r": "4"}
    assert sum(point.on_frontier for point in found) == 4


def test_needles_are_counted_by_place(quality: Quality) -> None:
    samples = quality.of("leankv", "needle")
    chart = figures.needles("leankv", samples)
    (trace,) = chart.figure.data
    assert np.shape(trace.z) == (3, 3)
    assert sum(chart.table["of"].to_pylist()) == 40
    assert sum(chart.table["found"].to_pylist()) == pytest.approx(sum(samples["score"].to_pylist()))


def test_outputs_are_paired_with_the_same_prompts(quality: Quality) -> None:
    ratios = qualitywords.length_ratios(quality, list(quality.policies))
    assert "fp16" not in ratios and len(ratios["int4"]) == 40
    lengths = quality.policies["int4"].output_lengths
    assert lengths is not None
    assert np.mean(np.array(ratios["int4"]) >= 1.5) == pytest.approx(lengths.grown_by_half)


def test_kept_shares_by_head() -> None:
    chart = figures.kept_by_head(np.array([[0.2, 1.0], [0.5, 0.0]]), "essays")
    assert chart.figure.data[0].z.tolist() == [[20, 100], [50, 0]]
    assert "least 0% in layer 1, head 1" in chart.alt


def test_what_was_not_measured_is_not_told(quality: Quality) -> None:
    import pyarrow.compute as pc

    needles = replace(quality, samples=quality.samples.filter(pc.equal(quality.samples["task"], "needle")))
    assert qualitywords.metrics(needles) == ["needle"]
    assert "not measured" in qualitywords.verdict(needles)
    assert qualitywords.table(needles)["Perplexity"].null_count == len(needles.policies)
    assert qualitywords.length_ratios(needles, list(needles.policies)) == {}


def lengths(quality: Quality) -> dict[str, OutputLengths]:
    found = {name: policy.output_lengths for name, policy in quality.policies.items()}
    return {name: each for name, each in found.items() if each is not None}


def test_policies_with_fewer_windows_are_off_the_line_and_out_of_the_verdict(
    leankv_home: Path, quality: Quality, tmp_path: Path
) -> None:
    """leankv was scored on the first eight windows of forty: what it loses there is not what int8 loses on all."""
    from leankv.serving.quality import save_quality

    rows = quality.samples.to_pylist()
    few = [
        row
        for row in rows
        if not (row["policy"] == "leankv" and row["task"] == "perplexity" and int(row["sample_id"]) >= 8)
    ]
    mixed = replace(quality, samples=samples_table(few))
    points = {point.policy: point for point in qualitywords.points(mixed, "perplexity")}
    assert {name for name, point in points.items() if point.on_frontier} == {"fp16", "int8", "kivi:bits=4", "leankv-r"}
    assert points["leankv"].samples == 8 and points["int8"].samples == 40
    named = "Scored on fewer than 40 windows, so neither on the line nor ranked: leankv (8)."
    verdict = qualitywords.verdict(mixed)
    assert verdict.endswith(named) and "leankv compresses" not in verdict
    table = qualitywords.table(mixed).to_pylist()
    assert {row["Policy"]: row["Windows"] for row in table}["leankv"] == 8
    assert any("8 to 40, by policy, windows" in line for line in qualitywords.warnings(mixed))
    app = opened(quality=str(save_quality(mixed, tmp_path / "mixed")))
    assert named in [caption.value for caption in app.caption]
    assert qualitywords.fewer_words(mixed, "needle") is None and qualitywords.fewer(quality, "perplexity") == {}


def test_growth_is_told_with_how_many_its_interval_and_what_was_cut_off(quality: Quality) -> None:
    """Every tenth fp16 answer and every fourth of int4's ran into the cap."""
    rows = quality.samples.to_pylist()
    for row in rows:
        if row["task"] == "answers":
            place = int(row["sample_id"])
            row["stopped"] = not (
                place % 10 == 0 if row["policy"] == "fp16" else row["policy"] == "int4" and place < 10
            )
    cut = replace(quality, samples=samples_table(rows))
    found = lengths(cut)["int4"]
    assert (found.n, found.left_out, found.unfinished) == (36, 4, 0.25) and found.grown_by_half_interval
    row = next(row for row in qualitywords.table(cut).to_pylist() if row["Policy"] == "int4")
    assert (row["Prompts"], row["Left out"], row["Cut off (%)"]) == (36, 4, 25)
    low, high = (100 * end for end in found.grown_by_half_interval)
    assert row["95 % of grown"] == f"{low:.0f} to {high:.0f}"
    words = qualitywords.length_words(cut)
    assert words.startswith("36 prompts a policy; 4 more left out") and words.endswith("understated: int4 25%.")
    chart = figures.growth(qualitywords.length_ratios(cut, ["int4"]), lengths(cut))
    assert f"of 36 ({low:.0f}% to {high:.0f}%)" in chart.alt and chart.table["cut off"].to_pylist() == [0.25]


def test_what_was_evaluated_is_told_as_it_was(quality: Quality) -> None:
    """40 windows are not the quick preset's 16."""
    quick = {"prefix_tokens": 512, "scored_tokens": 32, "windows": 16}
    told = qualitywords.conditions(replace(quality, settings={"perplexity": quick}))
    assert "preset quick;" in told and "40 windows of 512 tokens of prompt and 32 scored" in told
    told = qualitywords.conditions(replace(quality, settings={"perplexity": {**quick, "prefix_tokens": 1024}}))
    assert "preset quick, changed;" in told and "40 windows of 1,024 tokens" in told
    assert "preset quick;" in qualitywords.conditions(quality)


@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_has_words_and_numbers(quality: Quality, dark: bool) -> None:
    charts = [
        *(
            draw(qualitywords.points(quality, metric), axis, dark)
            for draw in (figures.frontier, figures.by_policy)
            for metric, (axis, _) in qualitywords.AXES.items()
        ),
        figures.needles("leankv", quality.of("leankv", "needle"), dark),
        figures.growth(qualitywords.length_ratios(quality, ["leankv"]), lengths(quality), dark),
        figures.kept_by_head(np.ones((1, 1)), "code", dark),
    ]
    for chart in charts:
        assert len(chart.alt) > 30
        assert chart.table.num_rows > 0
        assert chart.figure.to_json()


def test_windows_are_drawn_from_the_least_loss_to_the_most() -> None:
    chart = by_window({"a": 0.5, "b": -0.25, "c": 0.0}, "leankv", "kivi")
    assert list(chart.figure.data[0].y) == [-0.25, 0.0, 0.5]
    assert "higher loss on 1 of 3 windows" in chart.alt and chart.table["window"].to_pylist() == ["b", "c", "a"]


def test_negative_samples_are_shown_with_every_answer(leankv_home: Path, folder: Path) -> None:
    from leankv.serving.negative_samples import counts, negative_samples

    found = load_quality(folder).samples
    samples = negative_samples(found, ["int4"], 0.1)
    benign = sum(each.benign for each in counts(found, ["int4"], [0.1]))
    answers = [sample for sample in samples if sample.task == "answers"]
    app = opened(quality=str(folder), set="int4", sample=f"answers {answers[0].sample_id}")
    said = f"**{len(samples)} of {benign} samples that fp16 does well on fail under it.**"
    assert said in [block.value for block in app.markdown]
    shown = [code.value for code in app.code]
    assert [answers[0].question, answers[0].reference] == shown[:2]
    assert answers[0].baseline.answer in shown and answers[0].answers["int4"].answer in shown


def without(quality: Quality, policy: str, tasks: tuple[str, ...]) -> Quality:
    pairs = zip(quality.samples["policy"].to_pylist(), quality.samples["task"].to_pylist(), strict=True)
    return replace(quality, samples=quality.samples.filter([not (p == policy and t in tasks) for p, t in pairs]))


def test_a_task_that_a_policy_was_not_given_is_said_and_still_compared(
    leankv_home: Path, quality: Quality, tmp_path: Path
) -> None:
    from leankv.serving.quality import save_quality

    folder = save_quality(without(quality, "int8", ("needle", "choice", "answers")), tmp_path / "less")
    app = opened(quality=str(folder), set=["int4", "int8"])
    assert "needle: not given to int8, so not asked of them." in [caption.value for caption in app.caption]
    assert any("fail under all that were given it" in block.value for block in app.markdown)
    nothing = without(quality, "fp16", ("perplexity", "needle", "choice", "answers"))
    rows = [*nothing.samples.to_pylist(), {**quality.of("fp16", "needle").to_pylist()[0], "sample_id": "alone"}]
    folder = save_quality(replace(quality, samples=samples_table(rows)), tmp_path / "none")
    app = opened(quality=str(folder), set="int8")
    assert not app.success and any("nothing is known" in info.value for info in app.info)


def test_more_is_lost_where_less_counts_as_wrong(quality: Quality) -> None:
    from leankv.app.figures.negatives import TOGETHER, by_theta
    from leankv.serving.negative_samples import counts

    chart = by_theta(counts(quality.samples, ["int4", "leankv"], (0.05, 0.5)), 0.05)
    names = [trace.name.partition(", of ") for trace in chart.figure.data]
    assert all(0 < int(benign) < 4 * 40 for _, _, benign in names)
    lines = {name: list(trace.y) for (name, *_), trace in zip(names, chart.figure.data, strict=True)}
    assert f"int4 {lines['int4'][0]} of " in chart.alt
    assert set(lines) == {"int4", "leankv", TOGETHER}
    assert lines["int4"][0] >= lines["int4"][1]
    assert lines[TOGETHER][0] <= min(lines["int4"][0], lines["leankv"][0])
