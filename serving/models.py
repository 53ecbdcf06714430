"""Models as the cache and the step time see them: shapes, read from a preset or from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from leankv.serving.errors import InputError, unknown_name

PRESETS_FILE = Path(__file__).with_name("models.json")
GEMMA_TYPES = ("gemma", "gemma2", "gemma3", "gemma3_text")
FOUR_NORM_TYPES = ("gemma2", "gemma3", "gemma3_text")
QK_NORM_TYPES = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text")
QKV_BIAS_TYPES = ("qwen2", "qwen2_moe")


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer with grouped-query attention.

    `heads`, `kv_heads` and `head_dim` are per layer, `vocab` counts rows of the embedding, `max_context` tokens.
    `experts` is 0 for a dense model; otherwise `dense_layers` layers still have a dense feed-forward block of width
    `intermediate`, and the others `experts` blocks of width `moe_intermediate`, of which a token visits
    `experts_per_token`, plus one shared block of width `shared_expert_intermediate` where that is not 0.
    `weight_bits` is the width of the layers' matrices; embeddings, output head and norms are held in 16 bits.
    Sliding-window layers are counted as full attention, so memory of such a model is an upper bound.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_context: int
    experts: int = 0
    experts_per_token: int = 0
    moe_intermediate: int = 0
    shared_expert_intermediate: int = 0
    dense_layers: int = 0
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    weight_bits: int = 16
    source: str = ""

    @property
    def gqa_ratio(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def attention_parameters(self) -> int:
        """Parameters of the query, key, value and output projections of one layer, biases included."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        bias = queries + 2 * keys if self.qkv_bias else 0
        return self.hidden * (2 * queries + 2 * keys) + bias

    @property
    def embedding_parameters(self) -> int:
        """Token embedding, and the output head where it is a matrix of its own."""
        return self.vocab * self.hidden * (1 if self.tied_embeddings else 2)

    @property
    def linear_parameters(self) -> int:
        """Parameters of all matrices inside the layers: what weight quantization shrinks."""
        return self.layers * self.attention_parameters + self._feed_forward(self.experts)

    @property
    def active_linear_parameters(self) -> int:
        """Matrix parameters inside the layers that one token visits."""
        return self.layers * self.attention_parameters + self._feed_forward(self.experts_per_token)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self._norms + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token visits, embedding and output head included."""
        return self.active_linear_parameters + self._norms + self.embedding_parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on all ranks together; scales of quantized weights (a few per cent) are not counted."""
        return self.linear_parameters * self.weight_bits // 8 + 2 * (self._norms + self.embedding_parameters)

    def kv_bytes_per_token(self, bits: int = 16) -> int:
        """Bytes of keys and values of one token, all layers and KV heads, without metadata."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bits // 8

    def kv_heads_on_rank(self, tp: int) -> int:
        """KV heads on the fullest of `tp` tensor-parallel ranks; heads are replicated where tp exceeds them.

        Raises:
            InputError: the query heads do not divide by `tp`.
        """
        if tp < 1 or self.heads % tp:
            raise InputError(
                f"--tp {tp}: {self.name} has {self.heads} query heads, which do not divide by it; use a divisor"
            )
        return -(-self.kv_heads // tp)

    @property
    def _norms(self) -> int:
        inside = self.norms_per_layer * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.layers * inside + self.hidden

    def _feed_forward(self, experts: int) -> int:
        """Feed-forward parameters of all layers when `experts` of the experts count; dense models ignore it."""
        if not self.experts:
            return 3 * self.layers * self.hidden * self.intermediate
        routed = self.hidden * (self.experts + 3 * experts * self.moe_intermediate)
        shared = self.hidden * (3 * self.shared_expert_intermediate + 1) if self.shared_expert_intermediate else 0
        dense = 3 * self.hidden * self.intermediate
        return self.dense_layers * dense + (self.layers - self.dense_layers) * (routed + shared)


def model_named(name_or_path: str) -> ModelSpec:
    """A preset by name, or the model of a `config.json` (or of a folder that holds one).

    Raises:
        InputError: neither a preset nor a readable configuration.
    """
    presets = model_presets()
    if name_or_path in presets:
        return presets[name_or_path]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.exists():
        return read_model_config(path)
    raise unknown_name("model", name_or_path, presets)


@cache
def model_presets() -> Mapping[str, ModelSpec]:
    """Presets by name, from the published configurations in `models.json`."""
    entries = json.loads(PRESETS_FILE.read_text())
    return {
        name: replace(model_of_config(entry["config"], name), source=f"config.json of {entry['repository']}")
        for name, entry in entries.items()
    }


def read_model_config(path: Path) -> ModelSpec:
    """The model of a Hugging Face `config.json`, named after the folder that holds it.

    Raises:
        InputError: missing, not JSON, lacking a shape, or of an architecture whose cache is not keys and values.
    """
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a preset or a Hugging Face config.json") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}); download config.json again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object; name a Hugging Face config.json")
    return model_of_config(config, path.resolve().parent.name, str(path))


def model_of_config(outer: Mapping[str, Any], name: str, where: str = "models.json") -> ModelSpec:
    """The model of a Hugging Face configuration that was read from `where`. Raises as `read_model_config` does."""
    nested = outer.get("text_config")
    config: dict[str, Any] = {**outer, **nested} if isinstance(nested, dict) else dict(outer)
    _refuse_other_caches(config, where)
    kind = str(config.get("model_type", ""))
    layers, hidden, heads = (
        _count(config, key, where) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    kv_heads = _count(config, "num_key_value_heads", where, default=heads)
    if heads % kv_heads:
        raise InputError(f"{where}: {heads} query heads do not divide by {kv_heads} key-value heads; correct either")
    spec = ModelSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=_count(config, "intermediate_size", where),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_count(config, "head_dim", where, default=hidden // heads),
        vocab=_count(config, "vocab_size", where),
        max_context=_count(config, "max_position_embeddings", where),
        tied_embeddings=_flag(config, "tie_word_embeddings", kind in GEMMA_TYPES),
        qkv_bias=_flag(config, "attention_bias", kind in QKV_BIAS_TYPES),
        qk_norm=kind in QK_NORM_TYPES,
        norms_per_layer=4 if kind in FOUR_NORM_TYPES else 2,
        weight_bits=_weight_bits(config, where),
        source=where,
    )
    return _with_experts(spec, config, where)


def _with_experts(spec: ModelSpec, config: Mapping[str, Any], where: str) -> ModelSpec:
    count_key = next((key for key in ("num_local_experts", "num_experts") if config.get(key)), None)
    if count_key is None:
        return spec
    step = _count(config, "decoder_sparse_step", where, default=1)
    dense_only = set(config.get("mlp_only_layers") or ())
    dense = sum(1 for layer in range(spec.layers) if layer in dense_only or (layer + 1) % step)
    return replace(
        spec,
        experts=_count(config, count_key, where),
        experts_per_token=_count(config, "num_experts_per_tok", where),
        moe_intermediate=_count(config, "moe_intermediate_size", where, default=spec.intermediate),
        shared_expert_intermediate=int(config.get("shared_expert_intermediate_size") or 0),
        dense_layers=dense,
    )


def _refuse_other_caches(config: Mapping[str, Any], where: str) -> None:
    if config.get("kv_lora_rank"):
        raise InputError(f"{where}: multi-head latent attention caches no keys and values; choose another model")
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise InputError(f"{where}: layers of type {sorted(kinds)[0]!r} have no KV cache; choose another model")


def _weight_bits(config: Mapping[str, Any], where: str) -> int:
    """Bits of a weight: from `quantization_config` where there is one, else 16 (serving casts float32 down)."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return 16
    if quantization.get("load_in_4bit"):
        return 4
    if isinstance(bits := quantization.get("bits"), int) and bits > 0:
        return bits
    for group in (quantization.get("config_groups") or {}).values():
        bits = (group.get("weights") or {}).get("num_bits")
        if isinstance(bits, int) and bits > 0:
            return bits
    method = f"{quantization.get('quant_method', '')} {quantization.get('quant_algo', '')}".lower()
    if "fp4" in method:
        return 4
    if "fp8" in method or quantization.get("load_in_8bit"):
        return 8
    raise InputError(f'{where}: quantization_config names no weight width; add "bits" to it')


def _count(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise InputError(f"{where}: {key} is missing; add it (a Hugging Face config.json has it)")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {key} is {value!r}; it must be a positive whole number")
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    return default if value is None else bool(value)
