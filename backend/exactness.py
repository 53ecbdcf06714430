"""Is the engine exact? Its greedy tokens against Hugging Face's `generate`, with everything in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leankv.backend.cache_plan import CacheShape
from leankv.backend.engine import Engine
from leankv.backend.exact import fp32
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.weights import Loaded
from leankv.serving.pool_plan import page_bytes_of
from leankv.serving.scheduler import SchedulerLimits

PAGE_TOKENS = 16
FEW = 4
CUT_TOKENS = 48


@dataclass(frozen=True)
class Compared:
    """One way of serving. equal: requests whose every token is Hugging Face's; preemptions: on the way."""

    way: str
    requests: int
    equal: int
    preemptions: int


def reference(loaded: Loaded, prompt: Sequence[int], output: int) -> list[int]:
    """`output` greedy tokens of `generate`, through transformers' own attention and cache."""
    return greedy(loaded, prompt, output)[0]


def greedy(loaded: Loaded, prompt: Sequence[int], output: int) -> tuple[list[int], Tensor]:
    """The tokens of `reference`, and the logits float32 [output, vocab] that chose them, on the CPU."""
    from transformers import GenerationConfig

    loaded.model.set_attn_implementation("sdpa")
    ids = torch.tensor([list(prompt)], device=loaded.model.device)
    # Text ends at a token that there is not; None would mean the model's own.
    never = int(loaded.text_config.vocab_size)
    shown = {"return_dict_in_generate": True, "output_logits": True}
    settings = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=never, pad_token_id=0, **shown)
    found = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    tokens = [int(token) for token in found.sequences[0, len(prompt) :]]
    return tokens, torch.cat(found.logits).float().cpu()


def compare(loaded: Loaded, prompts: Sequence[Sequence[int]], output: int) -> Iterator[Compared]:
    """Serve the prompts in every way, one result a way.

    Alone; together, prompts whole; together, prompts cut into chunks beside decoding strangers; and together in a pool
    that holds a few, and of few prompts not all outputs, so that requests are preempted and computed again.
    """
    expected = [reference(loaded, prompt, output) for prompt in prompts]
    longest = max(map(len, prompts)) + output
    roomy, count = len(prompts) * (longest + PAGE_TOKENS), len(prompts)
    tight = PAGE_TOKENS * (1 + sum(-(-len(prompt) // PAGE_TOKENS) for prompt in prompts))
    together = SchedulerLimits(count, max(count, longest), chunked_prefill=False)
    cut = SchedulerLimits(count, count + CUT_TOKENS)

    alone = [_served(loaded, [prompt], output, together, longest, longest) for prompt in prompts]
    yield _compared("alone", [outputs[0] for outputs, _ in alone], 0, expected)
    for way, limits, tokens in (
        ("together, prompts whole", together, roomy),
        ("together, prompts in chunks", cut, roomy),
        ("preempted", cut, max(longest, min(FEW * longest, tight))),
    ):
        outputs, preemptions = _served(loaded, prompts, output, limits, longest, tokens)
        yield _compared(way, outputs, preemptions, expected)


def _compared(
    way: str, outputs: Sequence[Sequence[int]], preemptions: int, expected: Sequence[Sequence[int]]
) -> Compared:
    equal = sum(found == wanted for found, wanted in zip(outputs, expected, strict=True))
    return Compared(way, len(expected), equal, preemptions)


def _served(
    loaded: Loaded, prompts: Sequence[Sequence[int]], output: int, limits: SchedulerLimits, longest: int, tokens: int
) -> tuple[list[list[int]], int]:
    """Outputs, and preemptions, with a pool for `tokens` tokens."""
    policy, shape = fp32(), CacheShape(loaded.layers, loaded.heads, loaded.kv_heads, loaded.head_dim)
    rows = shape.layers * shape.kv_heads
    columns = -(-longest // PAGE_TOKENS) + 1
    pool = -(-tokens // PAGE_TOKENS) * rows * (page_bytes_of([policy], shape.head_dim) + 4)
    tables = limits.max_num_seqs * rows * (4 * columns + 16) + (1 << 14)
    engine = Engine(loaded, policy, limits, memory_bytes=pool + tables, max_tokens=longest)
    requests = [LiveRequest(row, prompt, output, Sampling(ignore_eos=True)) for row, prompt in enumerate(prompts)]
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
    engine.cache.check_integrity()
    return [request.output for request in requests], engine.preemptions
