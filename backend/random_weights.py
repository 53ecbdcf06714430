"""Models of a published shape with random weights: steps take as long as the real model's, the text means nothing.

For step times of models whose weights are not at hand. What scores decide (retention, quality) must come from a real
model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leankv.backend.weights import RANDOM, Loaded
from leankv.serving.errors import InputError
from leankv.serving.models import ModelSpec, model_named

if TYPE_CHECKING:
    import torch


class ByteTokens:
    """Text as its UTF-8 bytes, folded into the vocabulary: ids that a model of random weights reads as well as any."""

    bos_token_id = None
    eos_token_id = None

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [byte % self.vocab for byte in text.encode()]}


def random_model(name: str, dtype: torch.dtype, device: str) -> Loaded:
    """The model of "random:SHAPE", made on the device. SHAPE: a preset (llama-3-8b), or the path of a config.json.

    Raises InputError: an unknown shape, or one that is no dense Llama-like model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    spec = model_named(name.removeprefix(RANDOM))
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(_config(spec), dtype=dtype)
    return Loaded(name, model.eval(), ByteTokens(spec.vocab), name)


def _config(spec: ModelSpec) -> Any:
    from transformers import LlamaConfig

    if spec.experts or spec.qk_norm or spec.norms_per_layer != 2:
        raise InputError(f"{RANDOM}{spec.name} is no dense Llama-like model; choose a shape such as llama-3-8b")
    return LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_context,
        tie_word_embeddings=spec.tied_embeddings,
        attention_bias=spec.qkv_bias,
    )
