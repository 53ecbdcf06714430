"""How far the engine's logits are from the reference's where they cannot be equal: in bfloat16, and with eight bits.

Both are measured token by token after the same forced text, so that one early difference does not make the rest of a
text another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leankv.backend.engine import Engine
from leankv.backend.exact import fp32
from leankv.backend.exactness import greedy
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.step_bench import room_for
from leankv.backend.weights import Loaded
from leankv.serving.policies.base import Policy
from leankv.serving.policies.registry import policy_named
from leankv.serving.scheduler import SchedulerLimits

BF16_MARGIN = 2.0**-5
"""Of the largest logit. bfloat16 keeps 8 significant bits, so a logit alone is rounded by up to 2**-9 of itself, and
those that two orders of summation give differ by a few such steps; eight steps of 2**-8 are the bound. Beyond it the
reference's choice is no matter of rounding, and the engine's must be the same."""

EIGHT_BITS_ERROR = 0.02
"""Of the logits' norm. Eight bits err by at most half a step, 1/510 of a vector's range: for a range of some five
standard deviations, evenly spread, that is 0.6 % of a key or value, and about 1 % of attention's output, by keys and
values together. Layers err independently and their outputs add up in the residual stream, so that the sum errs by no
larger a share than its parts; the bound is twice that. Four bits' step is 17 times as wide and breaks it."""

ALL_HIGH = "leankv:alpha_low=0,alpha_high=0,high="


@dataclass(frozen=True)
class Rounded:
    """tokens: compared. different: where the engine chose another. widest: the reference's margin between its two
    likeliest tokens at any of those, as a share of its largest logit's size; 0 where there is none."""

    tokens: int
    different: int
    widest: float


def rounded(loaded: Loaded, prompts: Sequence[Sequence[int]], output: int) -> Rounded:
    """The engine's choices against `generate`'s in the model's own precision, all prompts batched, the cache exact."""
    expected = [greedy(loaded, prompt, output) for prompt in prompts]
    found = forced_logits(loaded, fp32(), prompts, [tokens for tokens, _ in expected])
    calls = [margins(tokens, logits, each) for (tokens, logits), each in zip(expected, found, strict=True)]
    missed = [margin for each in calls for margin in each]
    return Rounded(len(prompts) * output, len(missed), max(missed, default=0.0))


def eight_bits_error(loaded: Loaded, prompts: Sequence[Sequence[int]], output: int, high: str = "K8V8") -> float:
    """Distance of the logits under `leankv` with every token in the high tier to an exact cache's, over their norm."""
    texts = [greedy(loaded, prompt, output)[0] for prompt in prompts]
    exact = torch.cat(forced_logits(loaded, fp32(), prompts, texts))
    found = torch.cat(forced_logits(loaded, policy_named(ALL_HIGH + high), prompts, texts))
    return float((found - exact).norm() / exact.norm())


def forced_logits(
    loaded: Loaded, policy: Policy, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
) -> list[Tensor]:
    """By prompt float32 [len(text), vocab]: the logits that would choose each token of the text given after it."""
    longest = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
    seen: list[list[Tensor]] = [[] for _ in prompts]

    def note(requests: Sequence[LiveRequest], logits: Tensor) -> None:
        for request, row in zip(requests, logits, strict=True):
            seen[request.request_id].append(row.cpu().clone())

    engine = Engine(
        loaded,
        policy,
        SchedulerLimits(len(prompts), len(prompts) * longest, chunked_prefill=False),
        memory_bytes=room_for(loaded, policy, len(prompts), longest),
        max_tokens=longest,
        on_logits=note,
    )
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        engine.add(LiveRequest(row, prompt, len(text), Sampling(ignore_eos=True), forced=text))
    while not engine.idle:
        engine.step()
    return [torch.stack(rows) for rows in seen]


def margins(tokens: Sequence[int], reference: Tensor, found: Tensor) -> list[float]:
    """Of every token that `found` chooses otherwise: the reference's margin, as a share of its largest logit."""
    other = found.argmax(-1) != torch.tensor(tokens)
    two = reference[other].topk(2).values
    shares: list[float] = ((two[:, 0] - two[:, 1]) / reference[other].abs().amax(-1)).tolist()
    return shares
