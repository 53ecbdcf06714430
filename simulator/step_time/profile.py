"""Step times as measured: a calibration's fit of one policy on this very device and model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leankv.serving.errors import InputError
from leankv.serving.memory import MemoryModel
from leankv.serving.policies.base import Policy
from leankv.serving.policies.held_tokens import blocked_tokens
from leankv.serving.profile import Profile
from leankv.serving.step_fit import StepFit


@dataclass(frozen=True)
class Measured:
    """A `StepTimeModel` of one policy, whose own kernels are in the measured terms. Build it with `measured`."""

    fit: StepFit
    source: str

    def tokens_s(self, tokens: int, sequences: int) -> float:
        return self.fit.linear(tokens) + self.fit.row_s * sequences

    def prefill_attention_s(self, chunk: int, context: int) -> float:
        return self.fit.chunk(chunk, context) if chunk else 0.0

    def decode_attention_s(self, sequences: int) -> tuple[tuple[float, float], ...]:
        return ((0.0, 0.0), (1.0, max(self.fit.read_s_per_byte)))

    def read_factors(self, memory: MemoryModel) -> tuple[float, ...]:
        dearest = max(self.fit.read_s_per_byte)
        by_tier = self.fit.read_s_per_byte[: len(memory.policy.tiers)]
        shares = (each / dearest if dearest else 1.0 for each in by_tier)
        return tuple(share * memory.cached_share(tier) for tier, share in enumerate(shares))

    def chunk_work_s(self, policy: Policy, chunk: int, context: int) -> float:
        return self.fit.block_token_s * blocked_tokens(policy, chunk, context)

    def prompt_work_s(self, policy: Policy, prompt: int) -> float:
        return self.fit.prompt(prompt) if prompt else 0.0

    def decode_work_s(self, policy: Policy, sequences: int) -> float:
        # A step whose requests are all too short for a second tier is taken for one that has it: there are few.
        second = self.fit.second_tier_s if len(policy.tiers) > 1 else 0.0
        return self.fit.decode_s + second + self.fit.sequence_s * sequences


def measured(profile: Profile, policy: Policy, tp: int) -> Measured:
    """The measured step times of a policy.

    Raises:
        InputError: the policy was not measured, or with other knobs; or a replica has more than one GPU.
    """
    if tp > 1:
        raise InputError(f"--tp {tp}: the profile was measured on one device; use --tp 1, or --step-time roofline")
    return Measured(profile.of(policy.name, repr(policy)).fit, profile.source)


def with_measured_retention(profile: Profile, policy: Policy) -> Policy:
    """The policy with the retention that was measured, where its scores decide. Raises InputError as `measured`."""
    found = profile.of(policy.name, repr(policy)).retention
    return policy if found is None else replace(policy, retention=found)
