"""`leankv tune` on a tiny model: what is scored, what is kept, and the command from end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from leankv.app.cli import main
from leankv.app.commands._tune_tables import print_found
from leankv.app.headpanel import missed, tuned
from leankv.backend import key_means, live_setup
from leankv.backend.evaluation.follow import follow
from leankv.backend.evaluation.items import Item
from leankv.backend.evaluation.tune import Meter, Trials
from leankv.backend.evaluation.tune_kept import kept_shares
from leankv.backend.evaluation.tune_search import Trial
from leankv.backend.texts import essays
from leankv.backend.texts import windows as token_windows
from leankv.serving.errors import InputError
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


def test_the_loss_is_that_of_a_scored_token() -> None:
    """The first token after the prompt is fed and not scored, so it must not dilute the others."""
    items, loaded = windows(5, 100, 3), tiny.tiny_model()

    def nats(policy: str) -> float:
        outcomes = follow(loaded, policy_named(policy), items, None, {})
        assert all(len(outcome.log_probabilities) == 3 for outcome in outcomes)
        return -sum(sum(outcome.log_probabilities) for outcome in outcomes) / (5 * 3)

    trial = Meter(loaded, items, None, [policy_named(HARSH)]).measure(policy_named(HARSH), (0.5, 8))
    assert trial.loss == pytest.approx(math.exp(nats(HARSH) - nats("fp16")) - 1, rel=1e-6)


def test_windows_longer_than_the_model_reads_are_refused() -> None:
    with pytest.raises(InputError, match="a sample takes 515 tokens, tiny reads 512"):
        Meter(tiny.tiny_model(), windows(2, 511, 3), None, [policy_named("leankv")])


def test_what_does_not_hold_on_other_text_is_flagged(capsys) -> None:
    within = {"loss": 0.008, "interval": [0.001, 0.015], "nominal": 4.0, "physical": 3.0}
    beyond = {**within, "loss": 0.02}
    found = [
        {
            "policy": "leankv",
            "bound": 0.01,
            "spec": f"leankv:{name}",
            "held_in": within,
            "held_out": held_out,
            "at_end": end,
        }
        for name, held_out, end in (("good", within, ["alpha_low=8"]), ("bad", beyond, []))
    ]
    assert ["above the bound" in said for said in tuned(found)["Loss, held out"].to_pylist()] == [False, True]
    (line,) = missed(found)
    assert line.startswith("leankv:bad was found under a bound of 1.00% and loses 2.00%")
    print_found(found, "")
    shown = capsys.readouterr().out
    assert shown.count("above the bound") == 1
    assert "leankv at 1 %: the search ended at alpha_low=8, the highest level tried, not at the bound." in shown


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
    monkeypatch.setattr(live_setup, "load", lambda name, dtype, device: loaded)
    centred, means_of = [], key_means.key_means_of
    monkeypatch.setattr(key_means, "key_means_of", lambda *about: centred.append(about[1]) or means_of(*about))
    text = tmp_path / "story.txt"
    text.write_text("".join(f"On day {n} the ship met {n * n % 89} gulls. " for n in range(200)))
    sizes = ["--windows", "2", "--held-out", "2", "--prefix", "100", "--scored", "2", "--texts", str(text)]
    out = tmp_path / "tuned"
    command = ["tune", "--policy", "leankv", "--policy", "leankv-r", "--max-loss", "0.5", *sizes]
    command += ["--output-dir", str(out), "--json", str(tmp_path / "found.json"), "--backend", "cpu"]
    assert main(command) == 0
    assert "loss, held out" in capsys.readouterr().out
    # Centred as an evaluation centres: on the same essays, whatever the texts are.
    assert torch.equal(centred[0], token_windows(essays(), Letters(), live_setup.MEANS_TOKENS, 1)[0])
    first = load_tuning(out / "tune.json")
    assert first["found"][0]["at_end"] == ["alpha_low=8", "alpha_high=64"]
    assert first["device"]["backend"] == "cpu" and len(first["config_hash"]) == 16
    runs = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert [(run["policy"], run["summary"]) for run in runs] == [(each["spec"], each) for each in first["found"]]
    assert [each["policy"] for each in first["found"]] == ["leankv", "leankv-r"]
    for each in first["found"]:
        assert each["held_in"]["loss"] <= 0.5 and each["held_out"]["physical"] > 1
        shares = {kind: np.array(values) for kind, values in first["kept"][each["spec"]].items()}
        assert set(shares) == {"your texts", "code"} and all(share.shape == (2, 2, 2) for share in shares.values())
    monkeypatch.setattr(Meter, "measure", lambda *_: pytest.fail("measured again"))
    assert main(command) == 0
    second = json.loads((out / "tune.json").read_text())
    assert second["found"] == first["found"] and second["trials"] == first["trials"]


def test_a_model_with_other_weights_is_measured_anew(tmp_path) -> None:
    """Other weights of the same name, and a policy of the same name with other knobs: neither is taken for another."""
    one, other = (Trial((0, 1), loss, (0.0, 1.0), 3.0, 2.0) for loss in (0.01, 0.5))
    plain, changed = policy_named("leankv"), replace(policy_named("leankv:low=K4V1"), name="leankv")

    def asked(weights, policy, trial):
        return Trials(tmp_path, {"model": "tiny", "model_sha256": weights}).get(policy, lambda: trial)

    assert asked("a", plain, one) == one
    assert asked("a", plain, other) == one
    assert asked("b", plain, other) == other
    assert asked("a", changed, other) == other


def test_a_trial_with_another_kind_of_interval_is_measured_anew(tmp_path, monkeypatch) -> None:
    """A search that was cut off before intervals were expanded for few windows does not tell both kinds as one."""
    one, other = (Trial((0, 1), 0.01, interval, 3.0, 2.0) for interval in ((0.0, 0.02), (-0.01, 0.03)))
    policy = policy_named("leankv")
    monkeypatch.setattr("leankv.backend.evaluation.tune.KIND", "plain percentiles")
    assert Trials(tmp_path, {"model": "tiny"}).get(policy, lambda: one) == one
    monkeypatch.undo()
    assert Trials(tmp_path, {"model": "tiny"}).get(policy, lambda: other) == other


@pytest.mark.parametrize("flags", [["--windows", "1"], ["--prefix", "3"], ["--max-loss", "0"], ["--policy", "fp8"]])
def test_bad_input_is_told(flags, capsys) -> None:
    assert main(["tune", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
