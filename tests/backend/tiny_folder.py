"""A model in a folder, as commands load it, and a profile of it whose figures are made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from leankv.serving.models import read_model_config
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import HeldOut, PolicyProfile, Profile, save_profile
from leankv.serving.step_fit import StepFit

BYTES_READ = 1e-9


def save_tiny_model(folder: Path, intermediate_size: int = 128) -> None:
    """A random Llama of two layers that reads bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab=letters, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_only).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": intermediate_size, "head_dim": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**shape, **heads, vocab_size=len(letters), max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(folder)


def save_made_up_profile(model: Path, folder: Path, policies: Sequence[str], step_ms: float = 10.0) -> Profile:
    """A profile of the model on this machine's CPU in which a step lasts about `step_ms`, whatever it computes."""
    import torch

    from leankv.backend.processor import with_processor

    threads = torch.get_num_threads()
    name = f"cpu, {threads} threads"
    device = with_processor({"name": name, "backend": "cpu", "threads": threads, "dtype": "float32"})
    profile = Profile(
        model=read_model_config(model / "config.json"),
        device=device,
        dtype="float32",
        versions={"torch": torch.__version__},
        created="2026-01-01T00:00:00+00:00",
        policies={name: _made_up(name, step_ms / 1e3) for name in policies},
    )
    save_profile(profile, pa.table({"policy": list(policies)}), folder)
    return profile


def _made_up(name: str, step_s: float) -> PolicyProfile:
    policy = policy_named(name)
    fit = StepFit(
        linear_tokens=(1, 64), linear_s=(step_s, step_s * 2), row_s=0.0, decode_s=0.0, decode_sequence_s=0.0,
        read_s_per_byte=(BYTES_READ,) * len(policy.tiers), chunk_s=0.0, chunk_token_s=0.0, context_token_s=0.0,
        pair_s=0.0, prompt_s=0.0, prompt_token_s=0.0,
    )  # fmt: skip
    return PolicyProfile(repr(policy), fit, {"decode": HeldOut(3, 0.02, 0.05, 0.0)})
