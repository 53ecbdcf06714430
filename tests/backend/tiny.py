"""A random Llama of two layers, and what the engine's tests ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.weights import Loaded
from leankv.serving.policies.base import Policy
from leankv.serving.scheduler import SchedulerLimits

VOCAB, CONTEXT = 97, 512
TO_LENGTH = Sampling(ignore_eos=True)


@lru_cache
def tiny_model() -> Loaded:
    """float32, two layers, four heads on two KV heads of 64 channels; large weights make attention matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64, "vocab_size": VOCAB}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **heads, max_position_embeddings=CONTEXT, initializer_range=0.1)
    return Loaded("tiny", LlamaForCausalLM(config).eval(), None, "made up")


def prompt_of(tokens: int, seed: int) -> list[int]:
    return torch.randint(3, VOCAB, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def key_means() -> KeyMeans:
    plain, before = torch.randn(2, 2, 2, 64, generator=torch.Generator().manual_seed(9))
    return KeyMeans(plain, before, 1e4 ** -torch.linspace(0, 1, 32))


def engine_of(
    policy: Policy,
    memory: int = 1 << 23,
    seqs: int = 8,
    batched: int = 64,
    chunked: bool = True,
    recorded: bool | None = None,
) -> Engine:
    limits = SchedulerLimits(seqs, batched, chunked)
    sizes = {"memory_bytes": memory, "max_tokens": CONTEXT}
    return Engine(tiny_model(), policy, limits, **sizes, key_means=key_means(), recorded=recorded)


def served(
    engine: Engine, prompts: Sequence[Sequence[int]], output: int, sampling: Sampling = TO_LENGTH
) -> list[list[int]]:
    """Outputs of all prompts, added at once; the cache must be whole after every step and empty at the end."""
    requests = [LiveRequest(i, prompt, output, sampling) for i, prompt in enumerate(prompts)]
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
        engine.cache.check_integrity()
    assert engine.cache.measure().free_pages == engine.cache.pages
    return [request.output for request in requests]
