"""Devices as the roofline sees them: memory, bandwidth, dense arithmetic, interconnect, price; each figure sourced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from leankv.serving.errors import unknown_name

GIB = 2**30
TERA = 1e12
VISIBLE_MEMORY = "total capacity that PyTorch reports on the device (below the nominal size: ECC and firmware)"


@dataclass(frozen=True)
class DeviceSpec:
    """One accelerator.

    memory_bytes: what a process can see, before weights and workspace.
    bandwidth_bytes_s: peak memory bandwidth.
    flops: peak *dense* operations per second by dtype ("bf16", "fp8", "int8"), accumulating in 32 bits; a dtype that
        the tensor cores lack is absent. Datasheets often print twice this, for 2:4 sparsity.
    interconnect_bytes_s: bytes per second one device can send to its peers (datasheets print both directions summed).
    price_usd_h: on-demand list price of one device for an hour: an assumption to be replaced by your own.
    sm: CUDA compute capability, as 90 for 9.0; None where there is none.
    source: where each figure comes from, by field name.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_s: float
    flops: Mapping[str, float]
    interconnect_bytes_s: float
    price_usd_h: float
    sm: int | None
    source: Mapping[str, str] = field(compare=False)


def device_named(name: str) -> DeviceSpec:
    """The preset of that name.

    Raises:
        InputError: unknown, naming the nearest preset.
    """
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    return DEVICES[name]


def _gpu(
    name: str,
    *,
    gib: float,
    bandwidth_gb_s: float,
    bf16: float,
    fp8: float | None,
    int8: float,
    link_gb_s: float,
    usd_h: float,
    sm: int | None,
    datasheet: str,
    link: str,
    price: str,
) -> DeviceSpec:
    """A GPU in datasheet units: GiB, GB/s, dense TFLOP/s, GB/s in both directions together, US dollars per hour."""
    rates = {"bf16": bf16, "fp8": fp8, "int8": int8}
    return DeviceSpec(
        name=name,
        memory_bytes=int(gib * GIB),
        bandwidth_bytes_s=bandwidth_gb_s * 1e9,
        flops={dtype: rate * TERA for dtype, rate in rates.items() if rate is not None},
        interconnect_bytes_s=link_gb_s * 1e9 / 2,
        price_usd_h=usd_h,
        sm=sm,
        source={
            "memory_bytes": VISIBLE_MEMORY,
            "bandwidth_bytes_s": datasheet,
            "flops": f"{datasheet}, without sparsity",
            "interconnect_bytes_s": f"{datasheet}: {link}, half of the printed sum of both directions",
            "price_usd_h": f"assumption: {price}",
            "sm": "NVIDIA CUDA compute capability table" if sm else "no CUDA device",
        },
    )


_PRESETS = (
    _gpu(
        "a100-40gb", gib=39.49, bandwidth_gb_s=1555, bf16=312, fp8=None, int8=624, link_gb_s=600, usd_h=1.29, sm=80,
        datasheet="NVIDIA A100 Tensor Core GPU datasheet (SXM4 40 GB)", link="NVLink 3",
        price="Lambda on-demand list price, 2025",
    ),
    _gpu(
        "a100-80gb", gib=79.15, bandwidth_gb_s=2039, bf16=312, fp8=None, int8=624, link_gb_s=600, usd_h=1.79, sm=80,
        datasheet="NVIDIA A100 Tensor Core GPU datasheet (SXM4 80 GB)", link="NVLink 3",
        price="Lambda on-demand list price, 2025",
    ),
    _gpu(
        "h100", gib=79.18, bandwidth_gb_s=3350, bf16=989.4, fp8=1978.9, int8=1978.9, link_gb_s=900, usd_h=2.99, sm=90,
        datasheet="NVIDIA H100 Tensor Core GPU datasheet and Hopper white paper (SXM5)", link="NVLink 4",
        price="Lambda on-demand list price, 8-GPU instance, 2025",
    ),
    _gpu(
        "h200", gib=139.8, bandwidth_gb_s=4800, bf16=989.4, fp8=1978.9, int8=1978.9, link_gb_s=900, usd_h=3.59, sm=90,
        datasheet="NVIDIA H200 Tensor Core GPU datasheet (SXM)", link="NVLink 4",
        price="RunPod secure-cloud list price, 2025",
    ),
    _gpu(
        "b200", gib=178.35, bandwidth_gb_s=8000, bf16=2250, fp8=4500, int8=4500, link_gb_s=1800, usd_h=4.99, sm=100,
        datasheet="NVIDIA Blackwell architecture brief (HGX B200, per GPU)", link="NVLink 5",
        price="Lambda on-demand list price, 2025",
    ),
    _gpu(
        "l40", gib=44.39, bandwidth_gb_s=864, bf16=181.05, fp8=362, int8=362, link_gb_s=64, usd_h=0.99, sm=89,
        datasheet="NVIDIA L40 datasheet", link="PCIe 4.0 x16",
        price="RunPod secure-cloud list price, 2025",
    ),
    _gpu(
        "l40s", gib=44.39, bandwidth_gb_s=864, bf16=362.05, fp8=733, int8=733, link_gb_s=64, usd_h=0.86, sm=89,
        datasheet="NVIDIA L40S datasheet", link="PCIe 4.0 x16",
        price="RunPod secure-cloud list price, 2025",
    ),
    _gpu(
        "a6000", gib=47.53, bandwidth_gb_s=768, bf16=154.8, fp8=None, int8=309.7, link_gb_s=112.5, usd_h=0.80, sm=86,
        datasheet="NVIDIA RTX A6000 datasheet and GA102 white paper", link="NVLink bridge between two cards",
        price="Lambda on-demand list price, 2025",
    ),
    _gpu(
        "rtx-4090", gib=23.64, bandwidth_gb_s=1008, bf16=165.2, fp8=330.3, int8=660.6, link_gb_s=64, usd_h=0.69, sm=89,
        datasheet="NVIDIA Ada GPU architecture white paper, appendix A", link="PCIe 4.0 x16",
        price="RunPod secure-cloud list price, 2025",
    ),
    _gpu(
        "mi300x", gib=191.69, bandwidth_gb_s=5300, bf16=1307.4, fp8=2614.9, int8=2614.9, link_gb_s=896, usd_h=2.49,
        sm=None, datasheet="AMD Instinct MI300X data sheet", link="seven Infinity Fabric links",
        price="RunPod secure-cloud list price, 2025",
    ),
    DeviceSpec(
        name="cpu",
        memory_bytes=16 * GIB,
        bandwidth_bytes_s=16e9,
        flops={"bf16": 0.8 * TERA},
        interconnect_bytes_s=16e9,
        price_usd_h=0.09,
        sm=None,
        source={
            "memory_bytes": "assumption: a small virtual machine",
            "bandwidth_bytes_s": "derived: two cores of a shared server decode a 1.5B bf16 model at 5 tokens/s",
            "flops": "derived: two cores of a shared server prefill a 1.5B bf16 model at 261 tokens/s",
            "interconnect_bytes_s": "assumption: peers share the memory, so no faster than it",
            "price_usd_h": "assumption: on-demand price of a two-core cloud virtual machine, 2025",
            "sm": "no CUDA device",
        },
    ),
)  # fmt: skip
DEVICES: Mapping[str, DeviceSpec] = {device.name: device for device in _PRESETS}
