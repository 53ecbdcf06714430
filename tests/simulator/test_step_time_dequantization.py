"""What a quantized cache costs to read."""

from __future__ import annotations

import pytest

from leankv.serving.devices import DEVICES, device_named
from leankv.serving.formats import FORMATS, FP8, FP16, K4V4, K8V4, K8V8, KVFormat
from leankv.serving.policies.registry import registry
from leankv.simulator.step_time.dequantization import (
    FAMILIES,
    VLLM_PER_TOKEN_HEAD,
    VLLM_TURBOQUANT,
    effective_bytes,
    slots_s,
)


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_float16_is_the_unit_and_everything_else_costs_more_a_byte(device: str) -> None:
    spec = device_named(device)
    assert effective_bytes(FP16, spec, 128, 4) == 1.0
    for narrow in set(FORMATS.values()) - {FP16}:
        assert effective_bytes(narrow, spec, 128, 4) > 1.0


def test_the_published_fp8_time_comes_back() -> None:
    """FlashAttention-3 on an H200, 64 sequences of 8,192 tokens: 491 us in bf16, 354 us in fp8."""
    read = 64 * 8192 * 8 * 128 * 2
    seconds = read * effective_bytes(FP8, device_named("h200"), 128, 4) / 4.38e12
    assert seconds == pytest.approx(354e-6, rel=1e-3)


def test_every_policy_has_a_cost() -> None:
    for policy in registry.values():
        for tier in policy.tiers:
            assert effective_bytes(tier.format, device_named("a100-80gb"), 128, 4) >= 1.0, policy.name


def test_untuned_kernels_cost_more_than_tuned_ones() -> None:
    h100 = device_named("h100")
    for quantized in (K8V8, K4V4):
        assert effective_bytes(quantized, h100, 128, 4, VLLM_PER_TOKEN_HEAD) > effective_bytes(quantized, h100, 128, 4)
    assert effective_bytes(K8V4, h100, 128, 4, VLLM_TURBOQUANT) > 3 * effective_bytes(K8V4, h100, 128, 4)


def test_kernels_that_run_per_query_head_cost_by_the_group() -> None:
    h100, three_bits = device_named("h100"), KVFormat(3, 3)
    one, eight = (effective_bytes(three_bits, h100, 128, group, VLLM_TURBOQUANT) for group in (1, 8))
    assert eight - 1 == pytest.approx(8 * (one - 1))


def test_every_family_names_its_source() -> None:
    assert all(family.source and family.name == name for name, family in FAMILIES.items())


def test_an_unlisted_device_counts_by_its_tensor_rate() -> None:
    assert 0 < slots_s(device_named("cpu")) < slots_s(device_named("a6000"))
