"""The length predictor learns what the prompt tells, and does not pretend where it tells nothing."""

from __future__ import annotations

import numpy as np
import pytest

from leankv.serving.errors import InputError
from leankv.serving.quality import samples_table

pytest.importorskip("sklearn")
from leankv.backend.evaluation.length_predictor import evaluate_predictor


def samples(count: int, told: bool):
    """Answers as long as the question, or as chance has it; one half longer under leankv."""
    draw = np.random.default_rng(4)
    rows = []
    for place in range(count):
        words = int(draw.integers(5, 80))
        length = 2 * words if told else int(draw.integers(10, 160))
        for policy, factor in (("fp16", 1.0), ("leankv", 1.5)):
            rows.append(
                {
                    "policy": policy,
                    "task": "answers",
                    "sample_id": f"s{place:03}",
                    "subject": "sums",
                    "prompt_tokens": words,
                    "output_tokens": max(1, int(length * factor)),
                    "stopped": True,
                    "question": "word " * words,
                }
            )
    return samples_table(rows)


def test_what_the_prompt_tells_is_learned() -> None:
    found = evaluate_predictor(samples(100, told=True))
    assert found.accuracy > 0.9 > found.median_by_kind
    assert found.beats_guesses
    assert set(found.by_policy) == {"fp16", "leankv"}


def test_chance_is_not_predicted() -> None:
    """Lengths from 10 to 160 at random: the accuracy of a guess, held out, not what the forest remembers."""
    assert evaluate_predictor(samples(100, told=False)).accuracy < 0.4


def test_too_few_prompts_are_named() -> None:
    with pytest.raises(InputError, match="at least 20"):
        evaluate_predictor(samples(8, told=True))
