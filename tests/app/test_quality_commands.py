"""Commands that read an evaluation: negatives, lengths, and simulate with outputs as long as measured."""

from __future__ import annotations

import json

import pytest

from leankv.app.cli import main
from leankv.serving.models import model_named
from leankv.serving.quality import Quality, samples_table, save_quality


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
    kinds = {"fp16": "fp16", "leankv": "leankv"}
    model = model_named("smollm2-135m")
    found = Quality(model, {}, {}, "bfloat16", 0, "quick", {"answers": {}}, kinds, samples_table(rows))
    return save_quality(found, tmp_path_factory.mktemp("quality") / "q")


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
    assert found["mean_ratio"] == 2 and found["grown_by_half"] == 1 and found["n"] == 30


def test_simulate_with_and_without(quality, tmp_path) -> None:
    """leankv's outputs double, fp16's stay; the figures without are those of a run without the flag."""
    command = ["simulate", "--trace", "gamma:rate=5,n=50,prompt=constant:100,output=constant:40", "--replicas", "2"]
    policies = ["--policy", "fp16", "--policy", "leankv", "--policy", "fp16+leankv"]
    summaries = {}
    for name, more in (("with", ["--length-shift", str(quality)]), ("without", [])):
        assert main([*command, *policies, *more, "--json", str(tmp_path / name)]) == 0
        runs = json.loads((tmp_path / name).read_text())["runs"]
        summaries[name] = {run["policy"]: run["summary"] for run in runs}
    shifts = {policy: summary.pop("with_length_shift") for policy, summary in summaries["with"].items()}
    assert summaries["with"] == summaries["without"]
    assert [shifts[name]["mean_ratio"] for name in ("fp16", "leankv", "fp16+leankv")] == [1.0, 2.0, 1.5]
    assert shifts["fp16"]["mean_e2el_ms"] == summaries["without"]["fp16"]["mean_e2el_ms"]
    doubled = shifts["leankv"]["mean_e2el_ms"] / summaries["without"]["leankv"]["mean_e2el_ms"]
    assert 1.7 < doubled < 2.3


def test_a_policy_without_lengths_is_named(quality, capsys) -> None:
    assert main(["simulate", "--trace", "gamma:rate=5,n=9", "--policy", "kivi", "--length-shift", str(quality)]) == 2
    assert "kivi" in capsys.readouterr().err
