"""What lossy policies change in the engine: logits, and how many requests run at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leankv.backend.exact import fp32
from leankv.backend.exactness import greedy
from leankv.backend.live_request import LiveRequest
from leankv.backend.logit_bounds import BF16_MARGIN, EIGHT_BITS_ERROR, forced_logits, margins, rounded
from leankv.backend.weights import Loaded
from leankv.serving.policies.base import Policy
from leankv.serving.policies.registry import policy_named

from . import tiny

ALL_HIGH = "leankv:alpha_low=0,alpha_high=0,high="


def logits_of(policy: Policy, forced: Sequence[int] = ()) -> torch.Tensor:
    """Logits [12, vocab] of a prompt's first tokens; `forced`: the tokens that are taken, whatever the logits say."""
    seen: list[torch.Tensor] = []
    engine = tiny.engine_of(policy, batched=300)
    engine.on_logits = lambda _, logits: seen.append(logits.clone())
    engine.add(LiveRequest(0, tiny.prompt_of(150, 0), 12, tiny.TO_LENGTH, forced=forced))
    while not engine.idle:
        engine.step()
    return torch.cat(seen)


def test_all_high_in_eight_bits_stays_within_the_quantization_error() -> None:
    """A key's or value's error is at most half a step, 1/510 of its range of some five deviations: 1 % in attention.

    Four bits make the step 17 times as wide; the same bound must then be broken, or it would say nothing.
    """
    exact = logits_of(fp32())
    tokens = exact.argmax(-1).tolist()

    def error(format: str) -> float:
        found = logits_of(policy_named(ALL_HIGH + format), tokens)
        return float((found - exact).norm() / exact.norm())

    assert error("K8V8") < EIGHT_BITS_ERROR < error("K8V4") < error("K4V2")


def test_in_bfloat16_only_close_calls_are_chosen_otherwise() -> None:
    """A cache of half the precision is no rounding: it must break the bound, or the bound would say nothing."""
    import copy

    loaded = tiny.tiny_model()
    half = Loaded("tiny", copy.deepcopy(loaded.model).to(torch.bfloat16), None, "made up")
    prompts = [tiny.prompt_of(40 + 9 * seed, seed) for seed in range(8)]
    found = rounded(half, prompts, 24)
    assert found.tokens == 192
    assert found.widest <= BF16_MARGIN
    expected = [greedy(half, prompt, 24) for prompt in prompts]
    coarse = forced_logits(half, policy_named("int4"), prompts, [tokens for tokens, _ in expected])
    pairs = zip(expected, coarse, strict=True)
    assert max(max(margins(*each, logits), default=0) for each, logits in pairs) > BF16_MARGIN


def test_more_requests_run_at_once_under_leankv_than_under_fp16() -> None:
    prompts = [tiny.prompt_of(150, seed) for seed in range(20)]

    def most_running(name: str) -> int:
        engine = tiny.engine_of(policy_named(name), memory=1 << 20, seqs=20)
        tiny.served(engine, prompts, 30)
        return int(engine.log.column("running").max())

    assert most_running("leankv") >= 1.4 * most_running("fp16")
