"""A profile made by hand, of SmolLM2 on two cores, for tests that need one without measuring."""

from tests.serving.made_growth import measured_leankv

from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import PolicyProfile, Profile
from leankv.serving.step_fit import StepFit

DEVICE = {"name": "cpu, 2 threads", "backend": "cpu", "threads": 2, "dtype": "float32", "memory_bytes": 1 << 33}
FIT = StepFit(
    linear_tokens=(1, 16, 512),
    linear_s=(0.02, 0.03, 0.5),
    row_s=1e-3,
    decode_s=2e-3,
    decode_sequence_s=1e-4,
    read_s_per_byte=(1e-10, 2e-10),
    chunk_s=1e-3,
    chunk_token_s=1e-5,
    context_token_s=1e-6,
    pair_s=1e-8,
    prompt_s=4e-3,
    prompt_token_s=2e-5,
)
KEPT = measured_leankv().retention
assert KEPT is not None


def made_profile(*policies: str) -> Profile:
    measured = {}
    for name in policies or ("fp16", "int8", "kivi", "leankv"):
        policy = policy_named(name)
        measured[name] = PolicyProfile(repr(policy), FIT, {}, KEPT if policy.retention else None)
    settings = {"max_num_seqs": 16, "max_num_batched_tokens": 512}
    return Profile(model_named("smollm2-135m"), DEVICE, "float32", {}, "2026-11-21T15:00:00+00:00", measured, settings)
