import json
from pathlib import Path

import pytest

from leankv.serving.errors import InputError
from leankv.serving.models import PRESETS_FILE, model_named, model_presets

NAMES = [
    "llama-2-7b", "llama-3-8b", "llama-3-70b", "llama-3.1-8b", "mistral-7b", "qwen2.5-0.5b", "qwen2.5-7b",
    "qwen2.5-32b", "qwq-32b", "qwen3-4b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b", "mixtral-8x7b", "smollm2-135m",
]  # fmt: skip
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def write(folder: Path, config: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_presets_are_those_of_the_design() -> None:
    assert list(model_presets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_parameters_match_the_published_count(name: str) -> None:
    assert model_named(name).parameters == json.loads(PRESETS_FILE.read_text())[name]["parameters"]


def test_active_parameters_of_mixtures() -> None:
    assert model_named("qwen3-30b-a3b").active_parameters == pytest.approx(3.3e9, rel=0.02)
    assert model_named("mixtral-8x7b").active_parameters == pytest.approx(12.9e9, rel=0.01)
    dense = model_named("llama-3-8b")
    assert dense.active_parameters == dense.parameters


def test_cache_bytes_of_known_models() -> None:
    assert model_named("llama-2-7b").kv_bytes_per_token() == 512 * 1024
    assert model_named("llama-3.1-8b").kv_bytes_per_token() == 128 * 1024
    assert model_named("qwen3-4b").kv_bytes_per_token(8) == 72 * 1024


def test_head_dim_and_kv_heads_default_as_in_transformers(tmp_path: Path) -> None:
    spec = model_named(write(tmp_path, LLAMA))
    assert (spec.head_dim, spec.kv_heads, spec.gqa_ratio, spec.weight_bits) == (16, 4, 1, 16)
    assert spec.name == tmp_path.name
    assert model_named(str(tmp_path)) == spec


def test_text_config_is_read_from_a_multimodal_configuration(tmp_path: Path) -> None:
    text = {**LLAMA, "model_type": "gemma3_text", "head_dim": 32, "num_key_value_heads": 1}
    spec = model_named(write(tmp_path, {"model_type": "gemma3", "vision_config": {}, "text_config": text}))
    assert (spec.head_dim, spec.kv_heads, spec.norms_per_layer) == (32, 1, 4)
    assert spec.tied_embeddings and spec.qk_norm


def test_gemma_3_270m_has_its_published_parameters(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 18,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "layer_types": ["sliding_attention"] * 15 + ["full_attention"] * 3,
    }
    assert model_named(write(tmp_path, config)).parameters == 268_098_176


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4}, 4),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, 4),
        ({"load_in_4bit": True}, 4),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
    ],
)
def test_quantized_weights(tmp_path: Path, quantization: dict[str, object], bits: int) -> None:
    plain = model_named(write(tmp_path, LLAMA))
    spec = model_named(write(tmp_path, {**LLAMA, "quantization_config": quantization}))
    assert spec.weight_bits == bits
    assert plain.weight_bytes - spec.weight_bytes == plain.linear_parameters * (16 - bits) // 8


def test_dense_layers_of_a_sparse_model(tmp_path: Path) -> None:
    config = {
        **LLAMA,
        "num_hidden_layers": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    }
    spec = model_named(write(tmp_path, config))
    assert (spec.experts, spec.experts_per_token, spec.dense_layers) == (8, 2, 3)
    sparse = 64 * (8 + 3 * 8 * 32) + 64 * (3 * 64 + 1)
    assert spec.linear_parameters == 4 * spec.attention_parameters + 3 * 3 * 64 * 128 + sparse


def test_heads_on_the_fullest_rank() -> None:
    spec = model_named("qwen2.5-7b")
    assert [spec.kv_heads_on_rank(tp) for tp in (1, 2, 4, 7, 14)] == [4, 2, 1, 1, 1]
    with pytest.raises(InputError, match="do not divide"):
        spec.kv_heads_on_rank(3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "hidden_size": None}, "hidden_size is missing"),
        ({**LLAMA, "hidden_size": -1}, "positive whole number"),
        ({**LLAMA, "num_key_value_heads": 3}, "do not divide"),
        ({**LLAMA, "kv_lora_rank": 512}, "latent attention"),
        ({**LLAMA, "layer_types": ["linear_attention"]}, "'linear_attention'"),
        ({**LLAMA, "quantization_config": {}}, "weight width"),
        ([], "no JSON object"),
    ],
)
def test_bad_configurations_are_one_line(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        model_named(write(tmp_path, config))
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'llama-3.1-8b'"):
        model_named("llama3.1-8b")
    with pytest.raises(InputError, match="cannot be read"):
        model_named(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="line 1: not JSON"):
        model_named(str(tmp_path))
