"""Measured pages over a run are the policy's own accounting: by rule to the page, by measured retention within 2 %."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from leankv.backend.capture import Captured, capture
from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest
from leankv.backend.retention_report import retention
from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_of_config
from leankv.serving.page_bounds import row_pages
from leankv.serving.policies.base import Policy
from leankv.serving.policies.held_tokens import held_tokens
from leankv.serving.policies.registry import policy_named

from . import tiny

BY_RULE = (
    "fp16", "fp8", "int8", "int4", "uniform", "kivi", "kivi:bits=4,residual=32", "streaming-llm:sink=4,recent=60",
    "h2o", "snapkv:budget=48",
)  # fmt: skip
LENGTHS = tuple((60 + 23 * i % 160, 30 + 11 * i % 60) for i in range(8))
ROWS = 2 * 2


def decoding_states(engine: Engine, offset: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """By step: pages measured of the requests that decode after it, and (prompt, positions cached) of each."""
    requests = [
        LiveRequest(i, tiny.prompt_of(prompt, offset + i), output, tiny.TO_LENGTH)
        for i, (prompt, output) in enumerate(LENGTHS)
    ]
    for request in requests:
        engine.add(request)
    states = []
    while not engine.idle:
        finished = engine.step()
        row = engine.log.rows[-1]
        held = [*engine.scheduler.decoding.values(), *finished]
        lengths = [(each.prompt_tokens, each.cached or each.prompt_tokens + each.generated - 1) for each in held]
        states.append((row.tier0 + row.tier1, lengths))
    return states


@pytest.mark.parametrize("name", BY_RULE)
def test_pages_by_rule_are_met_to_the_page(name: str) -> None:
    engine = tiny.engine_of(policy_named(name), memory=1 << 24, batched=128)
    laid = engine.pages.laid
    for measured, requests in decoding_states(engine, 0):
        held = [held_tokens(engine.policy, prompt, cached) for prompt, cached in requests]
        assert measured == sum(ROWS * row_pages(laid, each) for each in held if each is not None)


@lru_cache
def texts() -> tuple[Captured, ...]:
    """Other texts than those served."""
    return tuple(capture(tiny.tiny_model(), torch.tensor(tiny.prompt_of(300, 1000 + i))) for i in range(8))


def measured_retention(policy: Policy) -> Policy:
    return replace(policy, retention=retention(policy, texts(), (32, 64, 100, 150, 220, 300), "measured on tiny"))


def test_pages_of_leankv_are_within_two_percent_of_measured_retention() -> None:
    """Over the run; retention is measured of whole prompts, and short outputs follow it."""
    policy, loaded = policy_named("leankv"), tiny.tiny_model()
    memory = MemoryModel(measured_retention(policy), model_of_config(loaded.model.config.to_dict(), "tiny"))
    states = decoding_states(tiny.engine_of(policy, memory=1 << 24, batched=128), 0)
    expected = sum(memory.pages(*request) for _, requests in states for request in requests)
    assert sum(measured for measured, _ in states) == pytest.approx(expected, rel=0.02)
