"""Commands that read an evaluation: negatives, lengths, and simulate with outputs as long as measured."""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import replace

import pytest

from leankv.app.cli import main
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.quality import Quality, load_quality, samples_table, save_quality

MODEL = ("--model", "smollm2-135m")
SMALL = ("simulate", "--trace", "gamma:rate=5,n=9")


@pytest.fixture(scope="module")
def quality(tmp_path_factory):
    """30 answered prompts: under leankv twice as long, and the first ten wrong."""
    rows = [
        {
            "policy": policy,
            "task": "answers",
            "sample_id": f"sums-{place:03}",
            "subject": "sums",
            "prompt_tokens": 20 + place,
            "output_tokens": (10 + place) * (1 if policy == "fp16" else 2),
            "score": float(policy == "fp16" or place >= 10),
            "stopped": True,
            "question": f"How much is {place} and {place}?",
            "reference": str(2 * place),
            "answer": str(2 * place) if policy == "fp16" else "I do not know",
            "kv_fp16_bytes": 100,
            "kv_payload_bytes": 40,
            "kv_page_bytes": 50,
        }
        for place in range(30)
        for policy in ("fp16", "leankv")
    ]
    kinds = {name: repr(policy_named(name)) for name in ("fp16", "leankv")}
    model = model_named("smollm2-135m")
    found = Quality(model, {}, {}, "bfloat16", 0, "quick", {"answers": {}}, kinds, samples_table(rows))
    return save_quality(found, tmp_path_factory.mktemp("quality") / "q")


def test_quality_holds_every_policy_against_the_one_named(tmp_path, made, capsys) -> None:
    folder = made.quality_folder(tmp_path / "q")
    assert main(["quality", str(folder), "--against", "leankv-r"]) == 0
    tables, _, paired = capsys.readouterr().out.partition("differences to leankv-r")
    assert "to fp16" in tables
    rows = {line.split()[0]: line.split() for line in paired.splitlines() if line.strip()}
    assert rows["leankv-r"][2:] == ["-"] * 4 and float(rows["leankv"][2].rstrip("%")) < 0
    assert main(["quality", str(folder), "--against", "leankv-x"]) == 2
    assert "leankv-r" in capsys.readouterr().err


def test_negatives(quality, tmp_path, capsys) -> None:
    out = tmp_path / "negatives.json"
    assert main(["negatives", str(quality), "--theta", "0.1", "--show", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "How much is 0 and 0?" in printed and "I do not know" in printed
    written = json.loads(out.read_text())
    assert [count["negative"] for count in written["counts"]] == [10]
    assert [sample["sample_id"] for sample in written["samples"]] == [f"sums-{place:03}" for place in range(10)]


def test_lengths(quality, tmp_path, capsys) -> None:
    out = tmp_path / "lengths.json"
    assert main(["lengths", str(quality), "--no-predictor", "--json", str(out)]) == 0
    assert "100.0 %" in capsys.readouterr().out
    (found,) = json.loads(out.read_text())["shifts"]
    assert found["total_ratio"] == 2 and found["grown_by_half"] == 1 and found["shrunk"] == 0 and found["n"] == 30


def changed(quality, folder, change):
    """The same evaluation with other rows."""
    found = load_quality(quality)
    return save_quality(replace(found, samples=samples_table(change(found.samples.to_pylist()))), folder)


def test_too_few_prompts_for_the_predictor_are_told_and_no_failure(quality, tmp_path, capsys) -> None:
    few = changed(quality, tmp_path / "few", lambda rows: [row for row in rows if row["sample_id"] < "sums-012"])
    assert main(["lengths", str(few), "--json", str(tmp_path / "few.json")]) == 0
    assert "no length predictor: 12 prompts" in capsys.readouterr().out
    written = json.loads((tmp_path / "few.json").read_text())
    assert written["predictor"] is None and written["shifts"][0]["n"] == 12


def test_without_scikit_learn_the_shifts_are_told(quality, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    assert main(["lengths", str(quality)]) == 0
    assert "no length predictor: the length predictor needs scikit-learn" in capsys.readouterr().out


def test_a_policy_without_answers_is_left_out_and_named(quality, tmp_path, capsys) -> None:
    def with_kivi(rows):
        return [*rows, {**rows[0], "policy": "kivi", "task": "needle", "stopped": None}]

    more = changed(quality, tmp_path / "more", with_kivi)
    assert main(["lengths", str(more), "--no-predictor"]) == 0
    shown = capsys.readouterr().out
    assert "left out: kivi: the task answers was not evaluated" in shown and "100.0 %" in shown
    none = changed(quality, tmp_path / "none", lambda rows: [{**row, "task": "needle"} for row in rows])
    assert main(["lengths", str(none), "--no-predictor"]) == 2
    assert "no output lengths to compare" in capsys.readouterr().err


def test_taught_folders_hold_one_size_of_sample() -> None:
    """Every example that is typed after another must not be refused by the folder that the other left."""
    from leankv.app.commands import evaluate, lengths
    from leankv.app.screens.quality import TEACHING

    for text in (evaluate.ABOUT, lengths.ABOUT, TEACHING):
        sizes: dict[str, set[tuple[str, ...]]] = {}
        for line in (line.split("#")[0].split() for line in text.splitlines() if "leankv evaluate" in line):
            about = tuple(line[line.index(flag) + 1] if flag in line else "" for flag in ("--preset", "--model"))
            sizes.setdefault(line[line.index("--output-dir") + 1], set()).add(about)
        assert all(len(each) == 1 for each in sizes.values()), sizes


def test_simulate_with_and_without(quality, tmp_path) -> None:
    """leankv's outputs double, fp16's stay; the figures without are those of a run without the flag."""
    command = ["simulate", "--trace", "gamma:rate=5,n=50,prompt=constant:100,output=constant:40", "--replicas", "2"]
    policies = [*MODEL, "--policy", "fp16", "--policy", "leankv", "--policy", "fp16+leankv"]
    summaries = {}
    for name, more in (("with", ["--length-shift", str(quality)]), ("without", [])):
        assert main([*command, *policies, *more, "--json", str(tmp_path / name)]) == 0
        runs = json.loads((tmp_path / name).read_text())["runs"]
        summaries[name] = {run["policy"]: run["summary"] for run in runs}
    shifts = {policy: summary.pop("with_length_shift") for policy, summary in summaries["with"].items()}
    assert summaries["with"] == summaries["without"]
    assert [shifts[name]["output_ratio"] for name in ("fp16", "leankv", "fp16+leankv")] == [1.0, 2.0, 1.5]
    assert [list(shifts[name]["measured"]) for name in ("fp16", "leankv", "fp16+leankv")] == [
        [],
        ["leankv"],
        ["leankv"],
    ]
    told = shifts["leankv"]["measured"]["leankv"]
    assert told.pop("total_ratio_interval") == pytest.approx([2.0, 2.0])
    assert told == {"pairs": 30, "total_ratio": 2.0, "source": f"{quality}: leankv"}
    assert shifts["fp16"]["mean_e2el_ms"] == summaries["without"]["fp16"]["mean_e2el_ms"]
    doubled = shifts["leankv"]["mean_e2el_ms"] / summaries["without"]["leankv"]["mean_e2el_ms"]
    assert 1.7 < doubled < 2.3


def test_the_ratio_of_a_mix_is_of_what_its_router_served(quality, tmp_path, capsys) -> None:
    """Predicted lengths send more to fp16, whose answers are half as long: fewer tokens than taking turns."""
    out = tmp_path / "out.json"
    command = ["simulate", "--trace", "gamma:rate=5,n=50,prompt=constant:100,output=constant:40", "--replicas", "2"]
    more = ["--policy", "fp16+leankv", "--router", "predicted-length", "--length-accuracy", "1"]
    assert main([*command, *MODEL, *more, "--length-shift", str(quality), "--json", str(out)]) == 0
    assert re.search(r"prompts that both lengths were measured on +│ +30 │", capsys.readouterr().out)
    summary = json.loads(out.read_text())["runs"][0]["summary"]["with_length_shift"]
    assert 1.0 <= summary["output_ratio"] < 1.4


def routed(folder, out, *more: str) -> float:
    """The length accuracy of a simulation with a router that predicts."""
    command = [*SMALL, *MODEL, "--policy", "fp16", "--replicas", "2", "--router", "predicted-length", *more]
    assert main([*command, "--length-shift", str(folder), "--output-dir", str(out)]) == 0
    return json.loads((out / "fp16" / "config.json").read_text())["config"]["accuracy"]["length"]


def test_routers_predict_lengths_as_well_as_was_measured(quality, tmp_path, capsys) -> None:
    pytest.importorskip("sklearn")
    from leankv.backend.evaluation.length_predictor import evaluate_predictor

    measured = evaluate_predictor(load_quality(quality).samples)
    found = routed(quality, tmp_path / "measured")
    assert found == max(measured.accuracy, measured.median, measured.median_by_kind) != 0.92
    assert f"length accuracy {found:.3f}, that of the forest, held out on 30 prompts" in capsys.readouterr().out
    assert routed(quality, tmp_path / "given", "--length-accuracy", "0.8") == 0.8
    assert "length accuracy 0.8, as given" in capsys.readouterr().out


def test_without_a_measured_accuracy_the_default_is_used_and_told(quality, tmp_path, monkeypatch, capsys) -> None:
    few = changed(quality, tmp_path / "few", lambda rows: [row for row in rows if row["sample_id"] < "sums-012"])
    assert routed(few, tmp_path / "too-few") == 0.92
    assert re.search("length accuracy 0.92, the default; .*12 prompts", capsys.readouterr().out)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    assert routed(quality, tmp_path / "no-forest") == 0.92
    assert re.search("length accuracy 0.92, the default; .*needs scikit-learn", capsys.readouterr().out)


def test_routers_that_predict_nothing_need_no_accuracy(quality, capsys) -> None:
    assert main([*SMALL, *MODEL, "--policy", "fp16", "--length-shift", str(quality)]) == 0
    assert "length accuracy" not in capsys.readouterr().out


def test_lengths_that_nobody_can_predict_are_refused(quality, tmp_path, capsys) -> None:
    """One token or 500, by chance: every guess is wrong by more than the whole length."""
    pytest.importorskip("sklearn")

    def by_chance(rows):
        draw = random.Random(0)
        return [{**row, "output_tokens": draw.choice((1, 500))} for row in rows]

    folder = changed(quality, tmp_path / "chance", by_chance)
    command = [*SMALL, *MODEL, "--policy", "fp16", "--replicas", "2", "--router", "predicted-both"]
    assert main([*command, "--length-shift", str(folder)]) == 2
    assert "tells a router nothing; give --length-accuracy" in capsys.readouterr().err


def test_a_policy_without_lengths_is_named(quality, capsys) -> None:
    assert main([*SMALL, *MODEL, "--policy", "kivi", "--length-shift", str(quality)]) == 2
    assert "kivi" in capsys.readouterr().err


def test_lengths_of_another_model_or_other_knobs_are_refused(quality, tmp_path, capsys) -> None:
    """Lengths that were carried over would be invented."""
    assert main([*SMALL, "--policy", "leankv", "--length-shift", str(quality)]) == 2
    said = capsys.readouterr().err
    assert "measured on smollm2-135m, not on llama-3.1-8b" in said and len(said.strip().splitlines()) == 1
    found = load_quality(quality)
    other = {**found.specifications, "leankv": repr(policy_named("leankv:alpha_high=2"))}
    changed_knobs = save_quality(replace(found, specifications=other), tmp_path / "knobs")
    assert main([*SMALL, *MODEL, "--policy", "leankv", "--length-shift", str(changed_knobs)]) == 2
    assert "leankv had other knobs" in capsys.readouterr().err
    moved = save_quality(replace(found, model=replace(found.model, name="/models/smollm2-135m")), tmp_path / "moved")
    assert main([*SMALL, *MODEL, "--policy", "leankv", "--length-shift", str(moved)]) == 0
