"""Step times from measured tables."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from leankv.serving.devices import device_named
from leankv.serving.errors import InputError
from leankv.serving.formats import FP8
from leankv.serving.models import model_named
from leankv.simulator.step_time import tables
from leankv.simulator.step_time.overhead import Overhead
from leankv.simulator.step_time.roofline import roofline
from leankv.simulator.step_time.silicon import Silicon, silicon
from leankv.simulator.step_time.tables import Curve, curve, gemm_curve, newest_table, read_table

H100 = device_named("h100")
QWEN = model_named("qwen3-32b")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'leankv\[silicon\]'"):
        tables.systems_folder()


def test_a_curve_stays_flat_before_and_grows_after_its_points() -> None:
    measured = curve(np.array([4, 1, 2, 2]), np.array([3.0, 1.0, 1.0, 3.0]))
    assert measured == Curve(measured.x, measured.seconds)
    assert [measured.at(x) for x in (0.5, 1, 1.5, 2, 3, 4, 8)] == [1, 1, 1.5, 2, 2.5, 3, 6]


def test_a_curve_never_falls() -> None:
    noisy = curve(np.array([1, 2, 3]), np.array([2.0, 1.0, 3.0]))
    assert noisy.at(2) == 2.0


@pytest.fixture(scope="module")
def qwen() -> Silicon:
    pytest.importorskip("aiconfigurator_core", reason="the extra `silicon` is not installed")
    return silicon(QWEN, H100, tp=2)


def test_measured_products_come_back_exactly(qwen: Silicon) -> None:
    path = newest_table("h100", "gemm", "vllm", "gemm_perf")
    table = read_table(path, ("gemm_dtype", "m", "n", "k")).where(gemm_dtype="bfloat16")
    rows = table.where(n=5120, k=4096)
    products = gemm_curve(table, 5120, 4096)
    assert products.at(2048) == pytest.approx(rows.where(m=2048)["latency"].mean())


def test_widths_between_measured_ones_take_times_between(qwen: Silicon) -> None:
    path = newest_table("h100", "gemm", "vllm", "gemm_perf")
    table = read_table(path, ("gemm_dtype", "m", "n", "k")).where(gemm_dtype="bfloat16")
    low, between, high = (gemm_curve(table, n, 5120).at(512) for n in (16384, 25600, 51200))
    assert low < between < high
    assert gemm_curve(table, 75968, 5120).at(8) > gemm_curve(table, 65536, 5120).at(8)


def test_parts_are_separable_and_grow(qwen: Silicon) -> None:
    for tokens, sequences in ((1, 1), (64, 64), (8192, 3), (40_000, 0)):
        apart = qwen.tokens_s(tokens, 0) + qwen.tokens_s(1, sequences) - qwen.tokens_s(1, 0)
        assert qwen.tokens_s(tokens, sequences) == pytest.approx(apart)
    assert all(qwen.tokens_s(a, 0) <= qwen.tokens_s(b, 0) for a, b in pairwise((1, 8, 100, 2048, 8192, 40_000)))
    assert all(qwen.prefill_attention_s(a, 0) < qwen.prefill_attention_s(2 * a, 0) for a in (512, 4096, 16384))
    assert qwen.prefill_attention_s(0, 512) == 0


def test_chunks_of_a_prompt_cost_at_least_the_prompt(qwen: Silicon) -> None:
    halves = qwen.prefill_attention_s(4096, 0) + qwen.prefill_attention_s(4096, 4096)
    assert halves >= 0.95 * qwen.prefill_attention_s(8192, 0)


@pytest.mark.parametrize("sequences", [1, 3, 8, 100, 128, 3000])
def test_decode_knots_rise_from_zero_bytes(qwen: Silicon, sequences: int) -> None:
    knots = qwen.decode_attention_s(sequences)
    assert knots[0][0] == 0 and len(knots) >= 2
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))


def test_decode_attention_at_a_measured_point(qwen: Silicon) -> None:
    path = newest_table("h100", "attention", "vllm", "generation_attention_perf")
    names = ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "step", "window_size")
    rows = read_table(path, names).where(
        batch_size=64, num_heads=32, num_key_value_heads=4, head_dim=128, kv_cache_dtype="bfloat16", step=2047,
        window_size=0,
    )  # fmt: skip
    read = 64 * 2048 * qwen.shapes.kv_bytes_per_token
    seconds = dict(qwen.decode_attention_s(64))[read]
    assert seconds == pytest.approx(64 * rows["latency"].mean())


def test_a_batch_between_measured_ones_takes_a_time_between(qwen: Silicon) -> None:
    def at(sequences: int) -> float:
        read = sequences * 1024 * qwen.shapes.kv_bytes_per_token
        return float(np.interp(read, *zip(*qwen.decode_attention_s(sequences), strict=True)))

    assert at(64) < at(90) < at(128)


def test_fp8_reads_cost_more_a_byte_than_float16_reads(qwen: Silicon) -> None:
    assert 1.0 < qwen.effective_bytes(FP8) < 2.0


def test_measured_and_rooflined_steps_agree_within_a_factor(qwen: Silicon) -> None:
    bare = Overhead(0.0, 0.0, 0.0)
    for tp in (1, 2, 4, 8):
        measured, specified = silicon(QWEN, H100, tp, bare), roofline(QWEN, H100, tp, bare)
        for tokens in (8, 128, 2048, 8192):
            assert 0.8 < measured.tokens_s(tokens, 8) / specified.tokens_s(tokens, 8) < 1.5


@pytest.mark.parametrize(
    ("device", "names"),
    [
        ("a100-80gb", ("llama-2-7b", "qwen3-8b")),
        ("h200", ("llama-2-7b", "qwen2.5-0.5b", "qwen3-8b")),
        ("l40s", ("llama-2-7b", "qwen2.5-0.5b", "qwen3-8b")),
        ("b200", ("llama-2-7b", "qwen2.5-0.5b", "qwen3-8b")),
    ],
)
def test_other_devices_and_shapes_have_tables(qwen: Silicon, device: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert silicon(model_named(name), device_named(device)).tokens_s(64, 64) > 0


def test_a_head_size_that_was_not_measured_is_refused(qwen: Silicon) -> None:
    with pytest.raises(InputError, match="head_dim of 64"):
        silicon(model_named("qwen2.5-0.5b"), device_named("a100-80gb"))


def test_experts_have_tables(qwen: Silicon) -> None:
    moe = silicon(model_named("qwen3-30b-a3b"), H100)
    assert moe.tokens_s(1, 0) < moe.tokens_s(256, 0) < moe.tokens_s(8192, 0)


def test_devices_without_tables_are_refused_with_those_that_have(qwen: Silicon) -> None:
    with pytest.raises(InputError, match="h100, h200"):
        silicon(QWEN, device_named("rtx-4090"))


def test_construction_is_quick(qwen: Silicon) -> None:
    began = time.perf_counter()
    silicon(QWEN, H100, tp=4)
    assert time.perf_counter() - began < 1.5
