"""The interface that every source of step times fills, and what they share."""

from __future__ import annotations

from typing import Protocol

from leankv.serving.formats import KVFormat
from leankv.serving.policies.work import Work

__all__ = ["StepTimeModel", "Work", "padded_tokens"]

# Above this a step runs outside the captured CUDA graphs, at its exact size.
LARGEST_CAPTURED_BATCH = 512


class StepTimeModel(Protocol):
    """Seconds of the parts of one engine step of one tensor-parallel replica; the parts add up.

    A step that decodes n sequences and computes prompt chunks of c tokens takes
    `tokens_s(n + sum(c), n + finished prompts) + decode attention + sum of prefill_attention_s + work_s`.
    """

    @property
    def source(self) -> str:
        """`roofline`, `silicon` or `profile`: named on every output."""
        ...

    def tokens_s(self, tokens: int, sequences: int) -> float:
        """Fixed cost of a step, linear layers and communication for `tokens`, logits and sampling for `sequences`.

        Separable: `tokens_s(t, s) == tokens_s(t, 0) + tokens_s(1, s) - tokens_s(1, 0)`.
        """
        ...

    def prefill_attention_s(self, chunk: int, context: int) -> float:
        """Causal attention of `chunk` tokens of one prompt over themselves and `context` earlier ones, all layers."""
        ...

    def decode_attention_s(self, sequences: int) -> tuple[tuple[float, float], ...]:
        """Knots (effective bytes one rank reads in the step, all layers; seconds), rising from 0 bytes.

        Linear between knots; the last slope goes on. At least two knots.
        """
        ...

    def effective_bytes(self, format: KVFormat) -> float:
        """How many bytes of float16 cache cost the time of one stored byte of `format`: at least 1."""
        ...

    def work_s(self, work: Work) -> float:
        """Seconds of a policy's own kernels in one step."""
        ...


def padded_tokens(tokens: int) -> int:
    """Tokens after padding to the next captured CUDA graph.

    vLLM captures 1, 2, 4, then every multiple of 8 to 256 and of 16 to 512 (`cudagraph_capture_sizes`, its default).
    """
    if tokens > LARGEST_CAPTURED_BATCH or tokens in (0, 1, 2, 4):
        return tokens
    if tokens == 3:
        return 4
    step = 8 if tokens <= 256 else 16
    return -(-tokens // step) * step
