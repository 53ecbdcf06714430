"""Captured queries, keys and values, and what the report measures on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the extra `live`")
pytest.importorskip("transformers", reason="transformers is part of the extra `live`")

from leankv.app.cli import main  # noqa: E402
from leankv.backend.cache_report import Setting, exact_outputs, measure, settings  # noqa: E402
from leankv.backend.capture import Captured, capture  # noqa: E402
from leankv.backend.key_means import mean_keys  # noqa: E402
from leankv.backend.retention_report import kept_tokens, retention  # noqa: E402
from leankv.backend.weights import Loaded, packaged_default  # noqa: E402
from leankv.serving.errors import InputError  # noqa: E402
from leankv.serving.policies.registry import policy_named  # noqa: E402
from leankv.serving.retention import Retention  # noqa: E402

PROMPT, STEPS = 150, 3


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, vocab_size=97, initializer_range=0.1,
    )  # fmt: skip
    return Loaded("tiny", LlamaForCausalLM(config).eval(), None, "made up")


@pytest.fixture(scope="module")
def texts(loaded: Loaded) -> list[Captured]:
    generator = torch.Generator().manual_seed(1)
    return [capture(loaded, torch.randint(97, (PROMPT + STEPS,), generator=generator)) for _ in range(2)]


def test_captured_tensors_give_the_models_own_attention(loaded: Loaded, texts: list[Captured]) -> None:
    text = texts[0]
    assert text.layers == 2 and text.tokens == PROMPT + STEPS
    assert text.queries[0].shape[1:] == (4, 64) and text.keys[1].shape[1:] == text.values[1].shape[1:] == (2, 64)
    seen: list[torch.Tensor] = []
    layer = loaded.model.model.layers[1].self_attn
    handle = layer.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = torch.randint(97, (PROMPT + STEPS,), generator=torch.Generator().manual_seed(1))
    before = loaded.model.config._attn_implementation
    with torch.inference_mode():
        loaded.model(tokens[None])
    handle.remove()
    expected = seen[0][0, PROMPT:].view(STEPS, 4, 64).double()
    assert torch.allclose(exact_outputs(text, PROMPT)[1], expected, atol=1e-4)
    assert loaded.model.config._attn_implementation == before != "leankv_capture"


def test_errors_and_ratios_stand_in_their_known_order(texts: list[Captured]) -> None:
    exact = [exact_outputs(text, PROMPT) for text in texts]
    means = mean_keys([texts[1]], None)
    found = {}
    for name in ("fp16", "int8", "int4", "leankv:alpha_low=0,alpha_high=0", "leankv:alpha_low=0,alpha_high=1000"):
        found[name] = measure(Setting(name, policy_named(name)), texts, exact, PROMPT, means)
    errors = [float(figures.error.mean()) for figures in found.values()]
    assert errors[0] < 1e-3 < errors[1] < 0.03 and errors[1] < errors[2]
    assert found["int8"].nominal == pytest.approx(2) and found["int4"].nominal == pytest.approx(4)
    assert found["int8"].error.shape == (2, 4) and found["int8"].physical.shape == (2, 2)
    high, low = (figures.kept.mean((0, 1)) for figures in list(found.values())[3:])
    assert high.tolist() == [1, 0] and low[1] > 0.5
    assert bool((found["int4"].physical < found["int4"].nominal).all())
    assert json.dumps(found["fp16"].to_dict())


def test_lines_cover_the_grid_and_the_uniform_formats() -> None:
    labels = [line.label for line in settings([(0.02, 1.0)], ["snapkv"])]
    assert labels[:5] == ["fp8", "int8", "int4", "kivi:bits=4", "kivi:bits=2"] and labels[-1] == "snapkv"
    assert {"K8V4 uniform", "K4V8 uniform", "leankv 0.02/1", "leankv-r"} <= set(labels)
    with pytest.raises(InputError, match="does not run live"):
        settings([], ["quest"])


def test_retention_is_what_the_selector_keeps_and_reads_back(texts: list[Captured]) -> None:
    policy = policy_named("leankv:alpha_low=0.5,alpha_high=1")
    measured = retention(policy, texts, (80, 150), "measured on tiny")
    again = Retention.from_dict(json.loads(json.dumps(measured.to_dict())))
    assert again == measured and again.tiers == 2
    kept = torch.stack([kept_tokens(policy, text, 150) for text in texts]).double().mean((0, 1, 2))
    assert again.tokens(0, 150) == pytest.approx(float(kept[0]), abs=0.01) and again.tokens(0, 150) >= 64
    assert 0 < again.slack_pages < 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grid", "3/1"],
        ["--grid", "x"],
        ["--limit", "0"],
        ["--only", "fp9"],
        ["--heads", "fp9"],
        ["--policy", "leankw"],
    ],
)
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cache", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_command_on_the_packaged_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        packaged_default()
    except InputError as error:
        pytest.skip(str(error))
    file = tmp_path / "cache.json"
    small = ["--prompt", "200", "--steps", "1", "--limit", "1", "--json", str(file)]
    assert main(["bench", "cache", *small, "--only", "K8V4 uniform", "K4V8 uniform", "leankv 0.02/1"]) == 0
    said = capsys.readouterr().out
    assert "leankv 0.02/1 by layer and KV head" in said
    lines = {line["setting"]: line for line in json.loads(file.read_text())["settings"]}
    assert lines["K8V4 uniform"]["mean_error"] < lines["K4V8 uniform"]["mean_error"]
    assert len(lines["leankv 0.02/1"]["physical_by_layer_and_kv_head"]) == 30
