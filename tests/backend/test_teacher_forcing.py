"""Tokens that are given instead of chosen, and the logits that the engine shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from leankv.backend.exact import fp32
from leankv.backend.live_request import LiveRequest, Sampling

from . import tiny

PROMPTS = [tiny.prompt_of(length, seed) for seed, length in enumerate((40, 23, 70))]
TEXTS = [tiny.prompt_of(12, 100 + seed) for seed in range(3)]


def scored(preempt_at: Sequence[int] = ()) -> dict[int, torch.Tensor]:
    """Log probabilities [12, vocab] of every forced text, as `on_logits` shows them."""
    seen: dict[int, list[torch.Tensor]] = {row: [] for row in range(len(PROMPTS))}
    engine = tiny.engine_of(fp32(), batched=32)

    def note(requests: Sequence[LiveRequest], logits: torch.Tensor) -> None:
        assert logits.dtype == torch.float32 and logits.shape == (len(requests), tiny.VOCAB)
        for request, row in zip(requests, logits.log_softmax(-1), strict=True):
            assert len(request.output) == len(seen[request.request_id])
            seen[request.request_id].append(row.clone())

    engine.on_logits = note
    requests = [
        LiveRequest(row, prompt, 12, tiny.TO_LENGTH, forced=text)
        for row, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True))
    ]
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
        if len(engine.log.rows) in preempt_at:
            engine.scheduler._preempt_last()
    assert [request.output for request in requests] == TEXTS
    assert [request.generated for request in requests] == [12] * 3
    assert engine.preemptions == len(preempt_at)
    return {row: torch.stack(rows) for row, rows in seen.items()}


@pytest.mark.parametrize("preempt_at", [(), (8, 11)])
def test_forced_texts_are_scored_as_the_model_scores_them(preempt_at: Sequence[int]) -> None:
    """Each token once, also after a preemption; the reference is one plain call over prompt and text."""
    found = scored(preempt_at)
    model = tiny.tiny_model().model
    model.set_attn_implementation("sdpa")
    for row, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        with torch.inference_mode():
            plain = model(input_ids=torch.tensor([prompt + text]), use_cache=False).logits[0].log_softmax(-1)
        torch.testing.assert_close(found[row], plain[len(prompt) - 1 : -1], atol=2e-4, rtol=0)


def test_forced_tokens_end_nothing_and_free_choice_follows_them() -> None:
    free = tiny.served(tiny.engine_of(fp32()), PROMPTS[:1], 12)[0]
    ends = Sampling(stop_tokens=frozenset(free))
    engine = tiny.engine_of(fp32())
    engine.eos = frozenset(free)
    request = LiveRequest(0, PROMPTS[0], 12, ends, forced=free[:5])
    engine.add(request)
    while not engine.idle:
        engine.step()
    assert request.output == free[:6], "the sixth stops; the five before it were given"
