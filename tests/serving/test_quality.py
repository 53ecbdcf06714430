"""Quality files: scores that follow from samples, intervals that cover, files that come back as they were."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leankv.serving.errors import InputError
from leankv.serving.length_shift import paired_lengths, shift
from leankv.serving.models import model_named
from leankv.serving.quality import QUALITY_FILE, SAMPLES_FILE, Quality, load_quality, samples_table, save_quality
from leankv.serving.quality_scores import METRICS, score, score_all, window_losses

BYTES = {"kv_fp16_bytes": 1200, "kv_payload_bytes": 600, "kv_page_bytes": 800}


def window(policy: str, sample: int, nats: float, **others: Any) -> dict[str, Any]:
    row = {"policy": policy, "task": "perplexity", "sample_id": f"w{sample}", "scored_tokens": 10, **BYTES}
    return {**row, "log_probability_nats": -10 * nats, "score": math.exp(-nats), **others}


def answer(policy: str, sample: int, tokens: int, right: bool, stopped: bool = True) -> dict[str, Any]:
    row = {"policy": policy, "task": "answers", "sample_id": f"a{sample}", "output_tokens": tokens, **BYTES}
    return {**row, "score": float(right), "stopped": stopped, "kv_page_bytes": 300}


def quality(rows: list[dict[str, Any]]) -> Quality:
    names = {row["policy"]: f"all of {row['policy']}" for row in rows}
    return Quality(
        model_named("llama-3-8b"), {"name": "cpu"}, {"torch": "2"}, "float32", 0, "quick",
        {"perplexity": {"windows": 20}}, names, samples_table(rows),
    )  # fmt: skip


def some_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    hard = rng.normal(3, 0.5, 30)
    rows = [window("fp16", i, each) for i, each in enumerate(hard)]
    rows += [window("leankv", i, each + 0.02, agreement=0.9, kl_nats=0.1) for i, each in enumerate(hard)]
    rows += [answer("fp16", i, 10, i < 6) for i in range(8)]
    rows += [answer("leankv", i, 10 + 5 * (i < 2), i < 4, stopped=i > 0) for i in range(8)]
    return rows


def test_a_constant_loss_has_a_paired_interval_of_no_width_though_texts_differ() -> None:
    found = quality(some_rows()).policies["leankv"].scores["perplexity"]
    assert found.difference == pytest.approx(math.exp(0.02) - 1)
    assert found.difference_interval == pytest.approx((math.exp(0.02) - 1,) * 2)
    assert found.interval is not None and found.interval[1] / found.interval[0] > 1.2
    assert found.interval[0] < found.value < found.interval[1]


def test_perplexity_weighs_windows_by_their_tokens() -> None:
    rows = [window("fp16", 0, 1.0), {**window("fp16", 1, 4.0), "scored_tokens": 30, "log_probability_nats": -120.0}]
    found = quality(rows).policies["fp16"]
    assert found.scores["perplexity"].value == pytest.approx(math.exp(130 / 40))
    assert found.scores["perplexity"].difference is None


def test_scores_lengths_and_ratios_of_a_policy() -> None:
    found = quality(some_rows()).policies["leankv"]
    assert found.scores["answers"].value == 0.5 and found.scores["answers"].difference == -0.25
    assert found.scores["agreement"].value == pytest.approx(0.9) and "needle" not in found.scores
    lengths = found.output_lengths
    assert lengths is not None and (lengths.grown_by_half, lengths.unfinished) == (0.25, 0.125)
    assert lengths.mean_shift == pytest.approx(-0.125)
    assert (found.nominal_ratio, found.physical_ratio) == (2.0, 1.5)
    assert found.task_ratios["answers"] == (2.0, 4.0)


def test_prompts_whose_baseline_was_cut_off_have_no_known_length() -> None:
    """As `leankv lengths` counts: the third prompt's true length under fp16 is unknown, so nothing is said of it."""
    rows = [answer("fp16", i, 10, True, stopped=i != 2) for i in range(4)]
    rows += [answer("leankv", i, 20 if i < 2 else 10, True, stopped=i != 3) for i in range(4)]
    one = quality(rows)
    found, paired = one.policies["leankv"].output_lengths, shift("leankv", paired_lengths(one.samples, "leankv"))
    assert found is not None and (found.n, found.left_out) == (3, 1) == (paired.n, paired.left_out)
    assert found.grown_by_half == pytest.approx(2 / 3) == paired.grown_by_half
    assert found.mean_shift == paired.mean and found.unfinished == paired.capped == pytest.approx(1 / 3)
    assert found.grown_by_half_interval == paired.grown_by_half_interval
    unknown = quality([answer(policy, 0, 10, True, stopped=False) for policy in ("fp16", "leankv")])
    assert unknown.policies["leankv"].output_lengths is None


def test_all_right_of_a_dozen_is_not_certainty() -> None:
    rows = [answer(policy, i, 5, True) for i in range(12) for policy in ("fp16", "leankv")]
    found = quality(rows).policies["leankv"].scores["answers"]
    assert found.interval is not None and found.interval[0] == pytest.approx(0.7575, abs=1e-4)
    assert found.interval[1] == 1 and found.difference == 0
    assert found.difference_interval == pytest.approx((-0.2425, 0.2425), abs=1e-4)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        rows = [answer("fp16", i, 5, bool(right)) for i, right in enumerate(rng.random(60) < 0.4)]
        found = score(METRICS["answers"], samples_table(rows), None)
        assert found is not None and found.interval is not None
        covered += found.interval[0] <= 0.4 <= found.interval[1]
    assert 178 <= covered <= 200


def test_only_samples_of_both_are_paired() -> None:
    rows = [window("fp16", i, 2.0) for i in range(5)] + [window("kivi", i, 2.5) for i in range(3, 9)]
    found = quality(rows).policies["kivi"].scores["perplexity"]
    assert (found.n, found.paired) == (6, 2)
    assert found.difference == pytest.approx(math.exp(0.5) - 1)


def test_two_policies_are_paired_with_each_other_as_each_is_with_fp16() -> None:
    random = np.random.default_rng(3)
    rows = [window(name, n, float(random.normal(100, 20))) for n in range(12) for name in ("fp16", "leankv", "kivi")]
    samples = quality(rows).samples
    one, other = score_all(samples, "leankv", "kivi")["perplexity"], score_all(samples, "kivi", "leankv")["perplexity"]
    assert one.difference is not None and other.difference is not None
    assert one.difference_interval is not None and other.difference_interval is not None
    assert (1 + one.difference) * (1 + other.difference) == pytest.approx(1)
    low, high = other.difference_interval
    assert [1 / (1 + end) - 1 for end in (high, low)] == pytest.approx(one.difference_interval, rel=0.05)
    losses = window_losses(samples, "leankv", "kivi")
    # All windows have as many tokens, so the mean of their losses is the perplexities' ratio.
    assert math.exp(np.mean(list(losses.values()))) - 1 == pytest.approx(one.difference)
    assert {window: -loss for window, loss in window_losses(samples, "kivi", "leankv").items()} == pytest.approx(losses)
    assert score_all(samples, "kivi", "kivi")["perplexity"].difference is None


def test_a_folder_comes_back_as_it_was_and_twice_is_the_same_bytes(tmp_path: Path) -> None:
    one = quality(some_rows())
    save_quality(one, tmp_path / "a")
    save_quality(one, tmp_path / "b")
    for name in (QUALITY_FILE, SAMPLES_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    back = load_quality(tmp_path / "a")
    assert back.samples.equals(one.samples) and back.policies == one.policies and back.model == one.model
    stored = json.loads((tmp_path / "a" / QUALITY_FILE).read_text())["policies"]["leankv"]
    assert stored["scores"]["perplexity"]["difference"] == back.policies["leankv"].scores["perplexity"].difference


def test_unreadable_folders_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a quality file"):
        load_quality(tmp_path)
    save_quality(quality(some_rows()), tmp_path)
    (tmp_path / SAMPLES_FILE).write_bytes(b"half")
    with pytest.raises(InputError, match="not a table of samples"):
        load_quality(tmp_path)
    (tmp_path / QUALITY_FILE).write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="schema 99"):
        load_quality(tmp_path)


@pytest.mark.parametrize("written", ["[]", "null", '"abc"', '{"schema_version": "x"}', '{"schema_version": 1}'])
def test_what_is_json_but_no_quality_file_is_told(written: str, tmp_path: Path) -> None:
    save_quality(quality(some_rows()), tmp_path)
    (tmp_path / QUALITY_FILE).write_text(written)
    with pytest.raises(InputError, match="not a quality file"):
        load_quality(tmp_path)


def test_parts_of_another_kind_are_told(tmp_path: Path) -> None:
    folder = save_quality(quality(some_rows()), tmp_path)
    content = json.loads((folder / QUALITY_FILE).read_text())
    (folder / QUALITY_FILE).write_text(json.dumps({**content, "device": 3}))
    with pytest.raises(InputError, match="its device is no object"):
        load_quality(folder)
    (folder / QUALITY_FILE).write_text(json.dumps(content))
    samples = pq.read_table(folder / SAMPLES_FILE)
    place = samples.column_names.index("score")
    for other in (pa.array(["0.5"] * len(samples)), pa.array([[0.5]] * len(samples))):
        pq.write_table(samples.set_column(place, "score", other), folder / SAMPLES_FILE)
        with pytest.raises(InputError, match="no column 'score' of double"):
            load_quality(folder)
    pq.write_table(samples.drop_columns(["score"]), folder / SAMPLES_FILE)
    with pytest.raises(InputError, match="no column 'score' of double"):
        load_quality(folder)
