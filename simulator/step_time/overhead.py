"""What an engine step costs beside the model, whatever the step-time source: the host's work, and sampling."""

from __future__ import annotations

from dataclasses import dataclass

# One step of vLLM's engine loop that the device waits for: scheduling, building inputs, launching the captured graph,
# reading the sampled tokens back. A model that computes nothing takes 1.15 ms a step with 32 sequences, 0.44 ms of it
# in work per sequence (tenstorrent/vllm pull request 305, January 2026; vLLM's engine over another model runner).
STEP_S = 0.71e-3
SEQUENCE_S = 0.44e-3 / 32

# Sampling by the model's own generation settings (top-k and top-p for Qwen and Llama) sorts the vocabulary: 2.40 ms for
# 128 sequences of 131,072 logits on the PyTorch path that vLLM 0.12 takes (vllm pull request 40376).
SAMPLING_S_PER_LOGIT = 2.399e-3 / (128 * 131_072)


@dataclass(frozen=True)
class Overhead:
    """Seconds of the host per step and per sequence that gets a token, and of the sampler per logit of a sequence."""

    step_s: float = STEP_S
    sequence_s: float = SEQUENCE_S
    logit_s: float = SAMPLING_S_PER_LOGIT

    def sequences_s(self, sequences: int, vocab: int) -> float:
        """Cost of `sequences` that sample a token each, beside the output head."""
        return sequences * (self.sequence_s + self.logit_s * vocab)


DEFAULT_OVERHEAD = Overhead()
