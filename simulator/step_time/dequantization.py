"""What it costs to read a quantized cache: one sourced figure per KV format and family of attention kernels.

An attention kernel that reads a quantized cache does arithmetic per element on top of moving its bytes. The arithmetic
is counted in *slots*: lanes of the 32-bit floating-point pipe occupied for one issue. One multiply-add is one slot;
integer logic, shifts, adds and type conversions run at half that rate (two slots) and loads at a quarter (four slots),
by the table "Throughput of native arithmetic instructions" of the CUDA C++ programming guide for compute capability 8.0
to 9.0. A device offers half its non-tensor float32 FLOP/s as slots per second.

Loads and arithmetic are taken not to overlap. That is what the published FlashAttention-3 figures show: on an H200, 64
sequences of 8,192 tokens (8 KV heads of 128) decode in 491 us in bf16, at 4.38 TB/s, and in 354 us in fp8, where the
bytes alone would take 245 us. The rest, 3.4 slots an element, is charged to every cache narrower than 16 bits.

The counts below were made from kernel sources, before any measured slowdown was compared with them. They assume that
every slot of the device issues, so a slowdown predicted from them is a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leankv.serving.devices import DeviceSpec
from leankv.serving.formats import KVFormat

# Dense non-tensor float32 FLOP/s, from the datasheets that serving/devices.py names (AMD: without dual issue, which
# integer instructions do not get).
FLOAT32_FLOPS: Mapping[str, float] = {
    "a100-40gb": 19.5e12,
    "a100-80gb": 19.5e12,
    "h100": 66.9e12,
    "h200": 66.9e12,
    "b200": 75.0e12,
    "l40": 90.5e12,
    "l40s": 91.6e12,
    "a6000": 38.7e12,
    "rtx-4090": 82.6e12,
    "rtx-3090": 35.6e12,
    "mi300x": 81.7e12,
    "rx-7900-xtx": 30.7e12,
}
# Tensor over non-tensor rate of A100 and H100 (312/19.5 and 989/66.9), for devices that the table lacks.
TENSOR_TO_FLOAT32 = 16.0

# Share of peak bandwidth that decode attention reaches: FlashAttention-3 in bf16 on an H200, 4.38 of 4.8 TB/s.
READ_EFFICIENCY = 4.38 / 4.8

_FA3_ELEMENTS = 64 * 8192 * 8 * 128 * 2
_FA3_FP8_S = 354e-6
_FA3_BF16_BYTES_S = 4.38e12
NARROW_SLOTS = (_FA3_FP8_S - _FA3_ELEMENTS / _FA3_BF16_BYTES_S) * FLOAT32_FLOPS["h200"] / 2 / _FA3_ELEMENTS


@dataclass(frozen=True)
class KernelFamily:
    """Arithmetic slots per cached element, by stored bits, for keys and for values, and where the count comes from.

    `per_query_head` marks kernels that read and unpack the cache once per query head instead of once per KV head.
    """

    name: str
    source: str
    key_slots: Mapping[int, float]
    value_slots: Mapping[int, float]
    per_query_head: bool = False


_TUNED = {8: 1.5, 4: 2.0, 3: 3.25, 2: 2.25, 1: 2.25}

FOLDED = KernelFamily(
    "folded",
    "counted for kernels that unpack two channels at a time by the float16 exponent trick and fold scale and zero into "
    "the scores: 8 bits a byte permute and a subtraction per pair; 4, 2 and 1 bits a logic operation, shifts and a "
    "subtraction per pair; 3 bits also join the two words an element may straddle",
    {bits: NARROW_SLOTS + slots for bits, slots in _TUNED.items()},
    {bits: NARROW_SLOTS + slots for bits, slots in _TUNED.items()},
)
FLOAT8 = KernelFamily(
    "float8",
    "FlashAttention-3 in vLLM 0.24 on an H200, bf16 491 us against fp8 354 us",
    {8: NARROW_SLOTS},
    {8: NARROW_SLOTS},
)
VLLM_PER_TOKEN_HEAD = KernelFamily(
    "vllm-per-token-head",
    "vLLM's Triton unified attention (pull requests 38378, 40633): an element is unpacked by itself (logic and shift, "
    "zero subtracted as an integer) and converted twice, to float32 and to the query's type; scales meet the scores",
    {8: NARROW_SLOTS + 4, 4: NARROW_SLOTS + 8, 2: NARROW_SLOTS + 10},
    {8: NARROW_SLOTS + 4, 4: NARROW_SLOTS + 8, 2: NARROW_SLOTS + 10},
)
VLLM_TURBOQUANT = KernelFamily(
    "vllm-turboquant",
    "vllm/v1/attention/ops/triton_turboquant_decode.py, stage 1, one program per query head, float32 lanes: keys of 3 "
    "and 4 bits load two bytes and a centroid with their addresses, join, shift, mask, renormalise and multiply-add "
    "(29 slots), 8-bit keys load, convert twice, multiply-add (11); values load one byte (4 bits, 14) or two (3, 24)",
    {8: 11.0, 4: 29.0, 3: 29.0},
    {4: 14.0, 3: 24.0},
    per_query_head=True,
)
FAMILIES: Mapping[str, KernelFamily] = {
    family.name: family for family in (FOLDED, FLOAT8, VLLM_PER_TOKEN_HEAD, VLLM_TURBOQUANT)
}


def slots_s(device: DeviceSpec) -> float:
    """Arithmetic slots per second of a device: one per float32 multiply-add."""
    flops = FLOAT32_FLOPS.get(device.name) or max(device.flops.values()) / TENSOR_TO_FLOAT32
    return flops / 2


def effective_bytes(
    format: KVFormat, device: DeviceSpec, head_dim: int, gqa_ratio: int, family: KernelFamily | None = None
) -> float:
    """Bytes of a float16 cache that take as long to read as one stored byte of `format`: 1 plus arithmetic over loads.

    `family` reads integers, by default `FOLDED`; e4m3 is always read by `FLOAT8`, and float16 costs its bytes alone.
    """
    if format.kind == "float" and format.k_bits == 16:
        return 1.0
    chosen = FLOAT8 if format.kind == "float" else family or FOLDED
    slots = head_dim * (chosen.key_slots[format.k_bits] + chosen.value_slots[format.v_bits])
    arithmetic_s = slots * (gqa_ratio if chosen.per_query_head else 1) / slots_s(device)
    load_s = format.bytes_per_token(head_dim) / (device.bandwidth_bytes_s * READ_EFFICIENCY)
    return 1.0 + arithmetic_s / load_s
