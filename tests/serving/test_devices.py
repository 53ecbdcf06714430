from dataclasses import fields

import pytest

from leankv.serving.devices import DEVICES, GIB, DeviceSpec, device_named
from leankv.serving.errors import InputError

NAMES = ["a100-40gb", "a100-80gb", "h100", "h200", "b200", "l40", "l40s", "a6000", "rtx-4090", "mi300x", "cpu"]
# What the vendors print for 2:4 sparsity, in TFLOP/s of bf16: no preset may hold such a figure.
SPARSE_BF16 = {"a100-80gb": 624, "h100": 1979, "h200": 1979, "b200": 4500, "l40": 362, "l40s": 733, "a6000": 309.7,
               "rtx-4090": 330.4, "mi300x": 2614.9}  # fmt: skip


def test_presets_are_those_of_the_design() -> None:
    assert list(DEVICES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_names_its_source(name: str) -> None:
    device = device_named(name)
    figures = {entry.name for entry in fields(DeviceSpec)} - {"name", "source"}
    assert set(device.source) == figures
    assert all(device.source.values())


@pytest.mark.parametrize("name", SPARSE_BF16)
def test_arithmetic_is_dense(name: str) -> None:
    assert device_named(name).flops["bf16"] == pytest.approx(SPARSE_BF16[name] * 1e12 / 2, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_narrow_dtypes_double_the_rate_where_there_are_any(name: str) -> None:
    flops = device_named(name).flops
    assert all(flops[dtype] >= 1.99 * flops["bf16"] for dtype in flops if dtype != "bf16")
    assert ("fp8" in flops) == (name not in ("a100-40gb", "a100-80gb", "a6000", "cpu"))


def test_visible_memory_is_below_the_nominal_size() -> None:
    nominal = dict(zip(NAMES[:-1], (40, 80, 80, 141, 180, 48, 48, 48, 24, 192), strict=True))
    for name, size in nominal.items():
        assert 0.9 * size * GIB < device_named(name).memory_bytes < size * GIB


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'h100'"):
        device_named("h10")
