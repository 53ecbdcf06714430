"""Step times from measured kernel tables: matrix products, attention, experts and all-reduce of vLLM on the device.

The tables come with the package `aiconfigurator-core` (Apache-2.0). Interpolation: products log-linear in n and k and
linear in m; prefill attention linear in length at a batch; decode attention linear in KV bytes at a batch and in the
batch between measured ones; all-reduce linear in message size. Norms, rotary embedding and activations are not in the
tables and come from the device's bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from leankv.serving.devices import DeviceSpec
from leankv.serving.errors import InputError
from leankv.serving.formats import FP8, KVFormat
from leankv.serving.models import ModelSpec
from leankv.simulator.step_time import dequantization
from leankv.simulator.step_time.base import CountedWork, Work, padded_tokens
from leankv.simulator.step_time.dequantization import KernelFamily
from leankv.simulator.step_time.layers import BF16_BYTES, Experts, Matmul, RankShapes, rank_shapes
from leankv.simulator.step_time.overhead import DEFAULT_OVERHEAD, Overhead
from leankv.simulator.step_time.roofline import elementwise_s, kernels_s
from leankv.simulator.step_time.tables import (
    BACKEND,
    Columns,
    Curve,
    curve,
    gemm_curve,
    nearest_heads,
    newest_table,
    read_table,
)

GEMM_DTYPES = {16: "bfloat16", 8: "fp8"}
# vLLM's custom all-reduce serves messages up to 8 MiB, NCCL the larger ones (`CustomAllreduce.max_size`, its default).
CUSTOM_ALL_REDUCE_BYTES = 8 * 2**20
# Prompts reach attention together, so a prompt costs what one more of it adds to a batch: measured from 1 to this many.
PREFILL_BATCH = 8
# Larger batches were measured at short contexts only, whose time is not that of reading.
LARGEST_READING_BATCH = 256
# Skew of the routing that the expert tables are read at: aiconfigurator's own default for serving estimates.
ROUTING = "power_law_1.2"
# Older tables have no column for the sliding window: they measured full attention alone.
WINDOW = {"window_size": 0}


@dataclass(frozen=True)
class DecodeTable:
    """Seconds of one layer's decode attention, by batch: a curve over cached tokens per sequence."""

    batches: tuple[int, ...]
    curves: tuple[Curve, ...]
    scale: float


@dataclass(frozen=True, eq=False)
class Silicon(CountedWork):
    """A `StepTimeModel` from measured tables. Build it with `silicon`, which reads only the rows it needs."""

    model: ModelSpec
    device: DeviceSpec
    tp: int
    overhead: Overhead
    shapes: RankShapes
    linear: Curve
    logits: Curve
    prefill: Curve
    decode: DecodeTable
    all_reduce: Curve | None
    float8_effective: float
    kernels: KernelFamily | None = None
    source: str = field(default="silicon", init=False)

    def tokens_s(self, tokens: int, sequences: int) -> float:
        padded = padded_tokens(tokens)
        seconds = self.overhead.step_s + self.linear.at(padded) + elementwise_s(self.shapes, self.device, padded)
        if self.all_reduce is not None:
            message = padded * self.shapes.hidden * BF16_BYTES
            seconds += self.shapes.all_reduces * self.all_reduce.at(message)
        return seconds + self._sampling_s(sequences)

    def _sampling_s(self, sequences: int) -> float:
        if sequences == 0:
            return 0.0
        return self.logits.at(sequences) + self.overhead.sequences_s(sequences, self.model.vocab)

    def prefill_attention_s(self, chunk: int, context: int) -> float:
        if chunk == 0:
            return 0.0
        total = chunk + context
        share = 1.0 - (context / total) ** 2
        return self.shapes.layers * self.prefill.at(total) * share

    def decode_attention_s(self, sequences: int) -> tuple[tuple[float, float], ...]:
        return _knots(self, sequences)

    def effective_bytes(self, format: KVFormat) -> float:
        if format == FP8:
            return self.float8_effective
        head_dim, group = self.shapes.head_dim, self.model.gqa_ratio
        return dequantization.effective_bytes(format, self.device, head_dim, group, self.kernels)

    def work_s(self, work: Work) -> float:
        return kernels_s(work, self.device)


@lru_cache(maxsize=4096)
def _knots(model: Silicon, sequences: int) -> tuple[tuple[float, float], ...]:
    """Decode attention of a step over the bytes it reads, from the two batches measured around `sequences`."""
    if sequences == 0:
        return ((0.0, 0.0), (1.0, 0.0))
    table, shapes = model.decode, model.shapes
    above = int(np.clip(np.searchsorted(table.batches, sequences), 0, len(table.batches) - 1))
    below = above if table.batches[above] <= sequences else max(above - 1, 0)
    lengths = table.curves[above].x if above == below else np.union1d(table.curves[below].x, table.curves[above].x)
    lengths = lengths[lengths <= min(table.curves[below].x[-1], table.curves[above].x[-1])]
    low, high = (np.array([table.curves[i].at(length) for length in lengths]) for i in (below, above))
    span = table.batches[above] - table.batches[below]
    share = (sequences - table.batches[below]) / span if span else 0.0
    seconds = shapes.layers * table.scale * (low + share * (high - low))
    if sequences > table.batches[-1]:
        seconds = seconds * sequences / table.batches[-1]
    read = sequences * lengths * float(shapes.kv_bytes_per_token)
    points = zip([0.0, *read.tolist()], [float(seconds[0]), *seconds.tolist()], strict=True)
    return tuple(points)


def silicon(
    model: ModelSpec,
    device: DeviceSpec,
    tp: int = 1,
    overhead: Overhead = DEFAULT_OVERHEAD,
    kernels: KernelFamily | None = None,
) -> Silicon:
    """Measured step times of `model` on `device`, one of `tp` ranks; `kernels` read caches of other formats.

    Raises:
        InputError: the package is missing, or it has no tables for the device, the weights' width or the experts.
    """
    shapes = rank_shapes(model, tp)
    decode = _decode_table(device, shapes, "bfloat16")
    return Silicon(
        model=model,
        device=device,
        tp=tp,
        overhead=overhead,
        shapes=shapes,
        linear=_linear_curve(device, model, shapes, tp),
        logits=_gemm(device, shapes.logits),
        prefill=_prefill_curve(device, shapes),
        decode=decode,
        all_reduce=_all_reduce_curve(device, tp) if tp > 1 else None,
        float8_effective=_float8_effective(device, shapes, decode),
        kernels=kernels,
    )


def _gemm(device: DeviceSpec, matmul: Matmul) -> Curve:
    path = newest_table(device.name, "gemm", BACKEND, "gemm_perf")
    dtype = GEMM_DTYPES.get(matmul.weight_bits)
    table = read_table(path, ("gemm_dtype", "m", "n", "k"))
    rows = table.where(gemm_dtype=dtype)
    if not len(rows):
        raise InputError(
            f"device {device.name!r} has no measured products with {matmul.weight_bits}-bit weights; "
            "use --step-time roofline"
        )
    return gemm_curve(rows, matmul.n, matmul.k)


def _linear_curve(device: DeviceSpec, model: ModelSpec, shapes: RankShapes, tp: int) -> Curve:
    """All products and experts of a forward pass, over tokens."""
    parts = [(matmul.count, _gemm(device, matmul)) for matmul in shapes.matmuls]
    if shapes.experts is not None:
        parts.append((shapes.experts.count, _expert_curve(device, shapes.experts, tp)))
    tokens = np.unique(np.concatenate([part.x for _, part in parts]))
    seconds = sum(count * np.array([part.at(m) for m in tokens]) for count, part in parts)
    return Curve(tokens, np.asarray(seconds))


def _expert_curve(device: DeviceSpec, experts: Experts, tp: int) -> Curve:
    path = newest_table(device.name, "moe", BACKEND, "moe_perf")
    names = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size", "distribution")
    rows = read_table(path, ("moe_dtype", "num_tokens", *names)).where(
        moe_dtype=GEMM_DTYPES.get(experts.weight_bits),
        hidden_size=experts.hidden,
        inter_size=experts.intermediate * tp,
        topk=experts.active,
        num_experts=experts.experts,
        moe_tp_size=tp,
        moe_ep_size=1,
        distribution=ROUTING,
    )
    if not len(rows):
        raise InputError(
            f"device {device.name!r} has no measured experts of {experts.experts} x {experts.hidden} x "
            f"{experts.intermediate * tp} on {tp} ranks; use --step-time roofline"
        )
    return curve(rows["num_tokens"], rows["latency"])


def _attention_rows(device: DeviceSpec, name: str, shapes: RankShapes, cache: str) -> tuple[Columns, int, int]:
    path = newest_table(device.name, "attention", BACKEND, name)
    names = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "step")
    table = read_table(path, names, WINDOW).where(head_dim=shapes.head_dim, kv_cache_dtype=cache, window_size=0)
    if not len(table):
        raise InputError(
            f"device {device.name!r} has no measured attention with a head_dim of {shapes.head_dim}; "
            "use --step-time roofline"
        )
    heads, kv_heads = nearest_heads(table, shapes.heads, shapes.kv_heads)
    return table.where(num_heads=heads, num_key_value_heads=kv_heads), heads, kv_heads


def _prefill_curve(device: DeviceSpec, shapes: RankShapes) -> Curve:
    """One layer's causal attention of one more prompt in a batch, over its length."""
    rows, heads, _ = _attention_rows(device, "context_attention_perf", shapes, "bfloat16")
    scale = shapes.heads / heads
    single = {int(n): s for n, s in zip(*_by_length(rows, 1), strict=True)}
    batch = {int(n): s for n, s in zip(*_by_length(rows, PREFILL_BATCH), strict=True)}
    added = {
        n: (batch[n] - single[n]) / (PREFILL_BATCH - 1) if n in batch else seconds for n, seconds in single.items()
    }
    return curve(np.array(list(added)), scale * np.array(list(added.values())), power=2.0)


def _by_length(rows: Columns, batch: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = rows.where(batch_size=batch)
    return chosen["isl"], chosen["latency"]


def _decode_table(device: DeviceSpec, shapes: RankShapes, cache: str) -> DecodeTable:
    rows, _, kv_heads = _attention_rows(device, "generation_attention_perf", shapes, cache)
    batches, curves = [], []
    for batch in np.unique(rows["batch_size"]).tolist():
        chosen = rows.where(batch_size=batch)
        batches.append(int(batch))
        curves.append(curve(chosen["step"] + chosen["isl"], chosen["latency"]))
    return DecodeTable(tuple(batches), tuple(curves), shapes.kv_heads / kv_heads)


def _float8_effective(device: DeviceSpec, shapes: RankShapes, bf16: DecodeTable) -> float:
    """Twice the measured fp8 over bf16 time of decode attention at the largest reads both tables have."""
    try:
        fp8 = _decode_table(device, shapes, "fp8")
    except InputError:
        return dequantization.effective_bytes(FP8, device, shapes.head_dim, 1)
    measured = dict(zip(fp8.batches, fp8.curves, strict=True))
    ratios = []
    for batch, low in zip(bf16.batches, bf16.curves, strict=True):
        if batch in measured and batch <= LARGEST_READING_BATCH:
            high = measured[batch]
            length = min(low.x[-1], high.x[-1])
            ratios.append(high.at(length) / low.at(length))
    return max(1.0, 2.0 * float(np.median(ratios)))


def _all_reduce_curve(device: DeviceSpec, tp: int) -> Curve:
    names = ("num_gpus", "message_size")
    custom = read_table(newest_table(device.name, "comm", BACKEND, "custom_allreduce_perf"), (*names, "backend")).where(
        num_gpus=tp, backend="vllm_graph"
    )
    nccl = read_table(newest_table(device.name, "comm", "nccl", "nccl_perf"), (*names, "op_name", "nccl_dtype")).where(
        num_gpus=tp, op_name="all_reduce", nccl_dtype="half"
    )
    small = custom["message_size"] <= CUSTOM_ALL_REDUCE_BYTES
    large = nccl["message_size"] > CUSTOM_ALL_REDUCE_BYTES
    if not small.any() or not large.any():
        raise InputError(f"--tp {tp}: device {device.name!r} has no measured all-reduce over {tp} ranks")
    sizes = np.concatenate([custom["message_size"][small], nccl["message_size"][large]])
    return curve(sizes, np.concatenate([custom["latency"][small], nccl["latency"][large]]))
