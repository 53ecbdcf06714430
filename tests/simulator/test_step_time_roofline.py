"""Roofline step times: physics that must hold whatever the constants are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.devices import DEVICES, device_named
from leankv.serving.errors import InputError
from leankv.serving.formats import FP8, K4V2, K8V4
from leankv.serving.models import model_named, model_presets
from leankv.serving.policies.work import Work
from leankv.simulator.step_time.base import StepTimeModel, padded_tokens
from leankv.simulator.step_time.layers import rank_shapes
from leankv.simulator.step_time.overhead import Overhead
from leankv.simulator.step_time.roofline import KERNEL_S, experts_s, roofline
from leankv.simulator.step_time.sources import step_time_named

LLAMA = model_named("llama-3.1-8b")
H100 = device_named("h100")
FREE_HOST = Overhead(step_s=0.0, sequence_s=0.0, logit_s=0.0)


@given(tokens=st.integers(1, 20_000), sequences=st.integers(0, 512))
def test_tokens_and_sequences_cost_separately(tokens: int, sequences: int) -> None:
    model = roofline(LLAMA, H100)
    apart = model.tokens_s(tokens, 0) + model.tokens_s(1, sequences) - model.tokens_s(1, 0)
    assert model.tokens_s(tokens, sequences) == pytest.approx(apart)


@given(few=st.integers(1, 10_000), more=st.integers(0, 5_000))
def test_more_tokens_never_take_less(few: int, more: int) -> None:
    model = roofline(LLAMA, H100)
    assert model.tokens_s(few + more, 0) >= model.tokens_s(few, 0)


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_a_decode_step_reads_every_weight_and_a_prefill_step_pays_every_operation(device: str) -> None:
    spec = device_named(device)
    model = roofline(LLAMA, spec, overhead=FREE_HOST)
    layers_only = LLAMA.linear_parameters
    assert model.tokens_s(1, 1) > (layers_only * 2 + LLAMA.vocab * LLAMA.hidden * 2) / spec.bandwidth_bytes_s
    assert model.tokens_s(4096, 0) > 2 * 4096 * layers_only / spec.flops["bf16"]


@given(cuts=st.lists(st.integers(1, 4000), min_size=1, max_size=8))
def test_chunks_of_a_prompt_add_up_to_its_attention(cuts: list[int]) -> None:
    model = roofline(LLAMA, H100)
    context, total = 0, 0.0
    for chunk in cuts:
        total += model.prefill_attention_s(chunk, context)
        context += chunk
    assert total >= model.prefill_attention_s(context, 0) * (1 - 1e-12)


def test_chunks_that_keep_the_cores_busy_add_up_exactly() -> None:
    model = roofline(LLAMA, H100)
    halves = model.prefill_attention_s(4096, 0) + model.prefill_attention_s(4096, 4096)
    assert halves == pytest.approx(model.prefill_attention_s(8192, 0))


@pytest.mark.parametrize("sequences", [0, 1, 64, 256])
def test_decode_knots_rise_from_zero_bytes(sequences: int) -> None:
    knots = roofline(LLAMA, H100).decode_attention_s(sequences)
    reads, seconds = zip(*knots, strict=True)
    assert len(knots) >= 2 and reads[0] == 0
    assert all(a < b for a, b in pairwise(reads))
    assert all(a <= b for a, b in pairwise(seconds))


def test_no_sequence_reads_nothing() -> None:
    assert roofline(LLAMA, H100).decode_attention_s(0)[0] == (0.0, 0.0)
    assert roofline(LLAMA, H100).prefill_attention_s(0, 100) == 0.0


def test_ranks_share_the_work_and_pay_for_talking() -> None:
    one, four = roofline(LLAMA, H100, overhead=FREE_HOST), roofline(LLAMA, H100, tp=4, overhead=FREE_HOST)
    assert one.tokens_s(1, 0) / 4 < four.tokens_s(1, 0) < one.tokens_s(1, 0)
    assert four.prefill_attention_s(4096, 0) == pytest.approx(one.prefill_attention_s(4096, 0) / 4)


def test_shapes_of_all_ranks_hold_every_parameter() -> None:
    for name, model in model_presets().items():
        shapes = rank_shapes(model, 1)
        matrices = sum(matmul.n * matmul.k * matmul.count for matmul in shapes.matmuls)
        if shapes.experts is not None:
            block = 3 * shapes.experts.hidden * shapes.experts.intermediate
            matrices += shapes.experts.count * shapes.experts.experts * block
        assert matrices == pytest.approx(model.linear_parameters, rel=1e-3), name


def test_few_tokens_touch_few_experts_and_many_touch_all() -> None:
    experts = rank_shapes(model_named("qwen3-30b-a3b"), 1).experts
    assert experts is not None
    one, many = experts_s(experts, 1, H100), experts_s(experts, 4096, H100)
    block_s = 3 * experts.hidden * experts.intermediate * 2 / H100.bandwidth_bytes_s
    assert experts.active * block_s < one < 2 * experts.active * block_s
    assert many > experts.experts * block_s


def test_quantized_caches_cost_more_a_byte_but_less_a_token() -> None:
    model = roofline(LLAMA, H100)
    for narrow in (FP8, K8V4, K4V2):
        assert model.effective_bytes(narrow) > 1
        assert model.effective_bytes(narrow) * narrow.bytes_per_token(128) < 512


def test_a_policys_launches_and_bytes_take_time() -> None:
    model = roofline(LLAMA, H100)
    assert model.work_s(Work(0, 0, 3)) == pytest.approx(3 * KERNEL_S)
    assert model.work_s(Work(1e9, 0, 0)) > 1e9 / H100.bandwidth_bytes_s


@pytest.mark.parametrize(
    ("tokens", "padded"), [(0, 0), (1, 1), (3, 4), (5, 8), (9, 16), (257, 272), (512, 512), (513, 513)]
)
def test_batches_are_padded_to_captured_graphs(tokens: int, padded: int) -> None:
    assert padded_tokens(tokens) == padded


def test_sources_are_found_by_name() -> None:
    model: StepTimeModel = step_time_named("roofline", LLAMA, H100)
    assert model.source == "roofline"
    with pytest.raises(InputError, match="roofline"):
        step_time_named("rofline", LLAMA, H100)


def test_a_source_may_name_the_kernels_that_read_quantized_caches() -> None:
    tuned, untuned = (step_time_named(name, LLAMA, H100) for name in ("roofline", "roofline:vllm-turboquant"))
    assert untuned.effective_bytes(K8V4) > tuned.effective_bytes(K8V4)
    assert untuned.effective_bytes(FP8) == tuned.effective_bytes(FP8)
    with pytest.raises(InputError, match="vllm-turboquant"):
        step_time_named("roofline:turboquant", LLAMA, H100)


def test_a_split_that_the_heads_do_not_allow_is_refused() -> None:
    with pytest.raises(InputError, match="--tp 3"):
        roofline(LLAMA, H100, tp=3)
