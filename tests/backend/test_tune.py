"""`leankv tune` on a tiny model: what is scored, what is kept, and the command from end to end."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from leankv.app.cli import main
from leankv.backend import weights
from leankv.backend.evaluation.items import Item
from leankv.backend.evaluation.tune import Meter
from leankv.backend.evaluation.tune_kept import kept_shares
from leankv.serving.policies.registry import policy_named
from leankv.serving.tuning import load_tuning

from . import tiny

MILD, HARSH = "leankv:alpha_low=0,alpha_high=0", "leankv:alpha_low=0.5,alpha_high=8"


def windows(count: int, prompt: int, scored: int) -> list[Item]:
    found = []
    for seed in range(count):
        tokens = tiny.prompt_of(prompt + 1 + scored, seed)
        found.append(Item(f"w{seed}", tokens[:prompt], tokens[prompt:], 1, compared=True))
    return found


def test_fp16_loses_nothing_and_harsher_settings_more() -> None:
    meter = Meter(tiny.tiny_model(), windows(17, 100, 3), None, [policy_named("leankv")])
    plain = meter.measure(policy_named("fp16"), (0, 0))
    assert plain.loss == 0 and plain.interval == (0, 0) and plain.nominal == 1
    mild, harsh = (meter.measure(policy_named(name), (0, 0)) for name in (MILD, HARSH))
    # Of random weights the mean may rise or fall by chance; how far windows scatter cannot hide what was done to them.
    assert np.ptp(mild.interval) < np.ptp(harsh.interval)
    assert 1 < mild.physical < mild.nominal < harsh.nominal
    for trial in (mild, harsh):
        assert trial.interval[0] <= trial.loss <= trial.interval[1]
    assert meter.measure(policy_named(HARSH), (0, 0)) == harsh


def test_kept_shares() -> None:
    """All high where nothing may be lowered; otherwise shares of a whole, the last 64 tokens always high."""
    prompts = [torch.tensor(tiny.prompt_of(256, seed)) for seed in (1, 2)]
    mild, harsh = kept_shares(tiny.tiny_model(), [policy_named(name) for name in (MILD, HARSH)], prompts)
    assert mild.shape == harsh.shape == (2, 2, 2)
    assert (mild[..., 0] == 1).all() and (mild[..., 1] == 0).all()
    assert (harsh[..., 0] >= 64 / 256).all() and (harsh.sum(-1) <= 1).all()
    assert harsh.sum() < mild.sum()


def test_the_command(tmp_path, monkeypatch, capsys) -> None:
    """Both policies under a bound that everything meets; the second time nothing is measured."""

    class Letters:
        bos_token_id = None

        def __call__(self, text, **_):
            return {"input_ids": [ord(letter) % (tiny.VOCAB - 1) + 1 for letter in text]}

    loaded = replace(tiny.tiny_model(), tokenizer=Letters())
    monkeypatch.setattr(weights, "load", lambda name, dtype: loaded)
    text = tmp_path / "story.txt"
    text.write_text("".join(f"On day {n} the ship met {n * n % 89} gulls. " for n in range(200)))
    sizes = ["--windows", "2", "--held-out", "2", "--prefix", "100", "--scored", "2", "--texts", str(text)]
    out = tmp_path / "tuned"
    command = ["tune", "--policy", "leankv", "--policy", "leankv-r", "--max-loss", "0.5", *sizes]
    command += ["--output-dir", str(out)]
    assert main(command) == 0
    assert "loss, held out" in capsys.readouterr().out
    first = load_tuning(out / "tune.json")
    assert [each["policy"] for each in first["found"]] == ["leankv", "leankv-r"]
    for each in first["found"]:
        assert each["held_in"]["loss"] <= 0.5 and each["held_out"]["physical"] > 1
        shares = {kind: np.array(values) for kind, values in first["kept"][each["spec"]].items()}
        assert set(shares) == {"essays", "code"} and all(share.shape == (2, 2, 2) for share in shares.values())
    monkeypatch.setattr(Meter, "measure", lambda *_: pytest.fail("measured again"))
    assert main(command) == 0
    second = json.loads((out / "tune.json").read_text())
    assert second["found"] == first["found"] and second["trials"] == first["trials"]


@pytest.mark.parametrize("flags", [["--windows", "1"], ["--prefix", "3"], ["--max-loss", "0"], ["--policy", "fp8"]])
def test_bad_input_is_told(flags, capsys) -> None:
    assert main(["tune", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
