"""The evaluation on the packaged model: perplexity as in transformers, and keys that matter more than values."""

from __future__ import annotations

import math

import pytest

from leankv.backend.evaluation.follow import follow
from leankv.backend.evaluation.perplexity import Perplexity
from leankv.backend.texts import essays
from leankv.backend.weights import load, packaged_default
from leankv.serving.errors import InputError
from leankv.serving.policies.registry import policy_named

from .test_evaluation import hugging_face

try:
    packaged_default()
    essays()
except InputError as missing:
    pytest.skip(str(missing), allow_module_level=True)

WINDOWS, SCORED = 2, 6


def test_perplexity_is_that_of_transformers_and_keys_matter_more_than_values() -> None:
    loaded = load()
    items = Perplexity(essays(), WINDOWS, prefix=96, scored=SCORED).items(loaded.tokenizer)

    def perplexity(name: str) -> float:
        outcomes = follow(loaded, policy_named(name), items, None, {})
        return math.exp(-sum(sum(outcome.log_probabilities) for outcome in outcomes) / (WINDOWS * SCORED))

    found = {name: perplexity(name) for name in ("fp16", "uniform:format=K8V4", "uniform:format=K2V4")}
    theirs = math.exp(-sum(sum(hugging_face(loaded, item)) for item in items) / (WINDOWS * SCORED))
    assert found["fp16"] == pytest.approx(theirs, rel=1e-3)
    assert abs(found["uniform:format=K8V4"] / found["fp16"] - 1) < 0.1
    assert found["uniform:format=K2V4"] > 1.5 * found["fp16"]
