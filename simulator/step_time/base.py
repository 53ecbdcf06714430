"""The interface that every source of step times fills, and what they share."""

from __future__ import annotations

from typing import Protocol

from leankv.serving.formats import KVFormat
from leankv.serving.memory import MemoryModel
from leankv.serving.models import ModelSpec
from leankv.serving.policies.base import Policy
from leankv.serving.policies.work import NO_WORK, Work

__all__ = ["CountedWork", "StepTimeModel", "Work", "padded_tokens"]

# Above this a step runs outside the captured CUDA graphs, at its exact size.
LARGEST_CAPTURED_BATCH = 512


class StepTimeModel(Protocol):
    """Seconds of the parts of one engine step of one tensor-parallel replica; the parts add up.

    A step that decodes n sequences and computes prompt chunks of c tokens takes
    `tokens_s(n + sum(c), n + finished prompts) + decode_attention_s + decode_work_s`, and for each chunk
    `prefill_attention_s + chunk_work_s`, and for each prompt that it finishes `prompt_work_s`.
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

    def read_factors(self, memory: MemoryModel) -> tuple[float, ...]:
        """By tier: how many bytes of `decode_attention_s` cost the time of one byte of `memory.kv_read`."""
        ...

    def chunk_work_s(self, policy: Policy, chunk: int, context: int) -> float:
        """What the policy adds to a chunk of `chunk` >= 1 prompt tokens after `context` earlier ones."""
        ...

    def prompt_work_s(self, policy: Policy, prompt: int) -> float:
        """What the policy adds to the step that completes a prompt."""
        ...

    def decode_work_s(self, policy: Policy, sequences: int) -> float:
        """What the policy adds to a step that decodes `sequences` >= 1, beyond the reads that attention itself does."""
        ...


class CountedWork:
    """The policies' part of a `StepTimeModel` that knows nothing of their kernels but what these move and compute."""

    model: ModelSpec
    tp: int

    def effective_bytes(self, format: KVFormat) -> float:
        """How many bytes of float16 cache cost the time of one stored byte of `format`: at least 1."""
        raise NotImplementedError

    def work_s(self, work: Work) -> float:
        """Seconds of a policy's own kernels in one step."""
        raise NotImplementedError

    def read_factors(self, memory: MemoryModel) -> tuple[float, ...]:
        return tuple(
            1.0 + (self.effective_bytes(tier.format) - 1.0) * memory.cached_share(index)
            for index, tier in enumerate(memory.policy.tiers)
        )

    def chunk_work_s(self, policy: Policy, chunk: int, context: int) -> float:
        return self._seconds(policy.chunk_work(chunk, context, self.model, self.tp))

    def prompt_work_s(self, policy: Policy, prompt: int) -> float:
        return self._seconds(policy.prompt_work(prompt, self.model, self.tp))

    def decode_work_s(self, policy: Policy, sequences: int) -> float:
        one = policy.decode_work(self.model, self.tp)
        batch = Work(one.bytes * sequences, one.flops * sequences, one.launches)
        return self._seconds(NO_WORK if one == NO_WORK else batch)

    def _seconds(self, work: Work) -> float:
        return 0.0 if work == NO_WORK else self.work_s(work)


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
