"""How fast the machine is right now: one small reference step, and what the figures hold for."""

from __future__ import annotations

import platform
from statistics import median
from typing import TYPE_CHECKING

import torch

from leankv.backend.step_bench import decode_steps_s
from leankv.serving.policies.registry import policy_named

if TYPE_CHECKING:
    from leankv.backend.weights import Loaded

SEQUENCES, CONTEXT = 4, 64
ROUNDS, FIRST = 12, 2
TOKEN = 11


def reference_step_s(loaded: Loaded) -> float:
    """Seconds of a decode step of `SEQUENCES` requests of about `CONTEXT` tokens under fp16: the median of ten."""
    prompts = [[TOKEN] * (CONTEXT - ROUNDS // 2)] * SEQUENCES
    (lasting,) = decode_steps_s(loaded, [policy_named("fp16")], prompts, ROUNDS)
    return median(lasting[FIRST:])


def versions() -> dict[str, str]:
    """Of the interpreter and of the libraries that compute."""
    import transformers

    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
