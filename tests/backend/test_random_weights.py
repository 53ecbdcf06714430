"""Random weights in a published shape: the shape is the model's, the engine serves it, other shapes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.prompts import prompts_of
from leankv.backend.texts import Text
from leankv.backend.weights import load
from leankv.serving.errors import InputError
from leankv.serving.models import model_of_config, read_model_config
from leankv.serving.policies.registry import policy_named
from leankv.serving.scheduler import SchedulerLimits

SHAPE = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192, "vocab_size": 90,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def test_a_random_model_has_the_shape_and_serves_text(shape: Path) -> None:
    loaded = load(f"random:{shape}")
    spec = model_of_config(loaded.model.config.to_dict(), loaded.name)
    wanted = read_model_config(shape / "config.json")
    assert {**vars(spec), "name": "", "source": ""} == {**vars(wanted), "name": "", "source": ""}
    assert sum(each.numel() for each in loaded.model.parameters()) == wanted.parameters
    (prompt,) = prompts_of([Text("a", "Räume")], loaded.tokenizer, [6])
    assert prompt == [byte % 90 for byte in "Räume".encode()]
    engine = Engine(
        loaded, policy_named("fp16"), SchedulerLimits(2, 16), memory_bytes=1 << 22, max_tokens=32
    )  # fmt: skip
    request = LiveRequest(0, prompt, 4, Sampling(ignore_eos=True))
    engine.add(request)
    while not engine.idle:
        engine.step()
    assert len(request.output) == 4


@pytest.mark.parametrize(("name", "said"), [("random:llama-9", "did you mean"), ("random:mixtral-8x7b", "no dense")])
def test_other_shapes_are_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(name)
