"""Run in a child process under Triton's interpreter: the engine's recorded decode step on kernels, under a guard.

A whole model step, from its static input buffer to the likeliest tokens, may neither wait for the device nor bring
constants from the host, or it could not be captured in a CUDA graph. Its tokens are those of the vectorised form.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
import read_back
from read_back import NoReadBack

from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.weights import Loaded
from leankv.serving.policies.registry import policy_named
from leankv.serving.scheduler import SchedulerLimits

POLICIES = ("fp16", "leankv:alpha_low=0.5,window=8")
FROM_HOST = ("aten.lift_fresh",)
MOST_APART = 0.02


def model() -> Loaded:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 64, "vocab_size": 31}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **heads, max_position_embeddings=64, initializer_range=0.1)
    return Loaded("tiny", LlamaForCausalLM(config).eval(), None, "made up")


def served(loaded: Loaded, policy: str, kernels: bool) -> tuple[torch.Tensor, int]:
    """Logits of three requests, their tokens given, and how many guarded steps there were."""
    engine = Engine(
        loaded, policy_named(policy), SchedulerLimits(4, 64), memory_bytes=1 << 19, max_tokens=40, recorded=kernels
    )
    seen: list[torch.Tensor] = []
    guarded = 0
    engine.on_logits = lambda _, logits: seen.append(logits.clone())
    if kernels:
        assert engine.steps.graphs is not None
        function = engine.steps.graphs.function

        def guard(inputs: torch.Tensor) -> Any:
            nonlocal guarded
            guarded += 1
            with NoReadBack():
                return function(inputs)

        engine.steps.graphs.function = guard
    prompts = [[(7 * i + j) % 31 for j in range(n)] for i, n in enumerate((20, 9, 15))]
    for i, prompt in enumerate(prompts):
        engine.add(LiveRequest(i, prompt, 3 + i, Sampling(ignore_eos=True), forced=[1, 5, 9, 2, 6]))
    engine.step()
    engine.cache.path = "triton" if kernels else "torch"
    while not engine.idle:
        engine.step()
        engine.cache.check_integrity()
    return torch.cat(seen), guarded


def main() -> None:
    read_back.WAITING += FROM_HOST
    loaded = model()
    for policy in POLICIES:
        (found, guarded), (expected, _) = served(loaded, policy, True), served(loaded, policy, False)
        assert guarded == 4, guarded
        apart = float((found - expected).norm() / expected.norm())
        assert apart < MOST_APART, f"{policy}: {apart}"
        print(f"{policy}: {apart:.1e} apart")


main()
