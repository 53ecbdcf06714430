"""Step times from the device's and the model's specification alone: each kernel at the larger of arithmetic and memory.

Efficiencies, each from a published measurement, none fitted here:
- matrix products reach 0.72 of dense peak and read weights at 0.85 of peak bandwidth (bf16 on H100 SXM in the tables of
  aiconfigurator-core: 8,192 rows at 695 to 803 of 989 TFLOP/s, one row at 2.6 to 2.95 of 3.35 TB/s);
- causal prefill attention reaches 0.6 of dense peak (FlashAttention-2, arXiv 2307.08691, figure 5: 190 of 312 TFLOP/s
  on A100; FlashAttention-3, arXiv 2407.08608, figure 5: 590 to 640 of 989 on H100 at head size 128);
- decode attention reads at 0.91 of peak bandwidth (FlashAttention-3 on H200: 4.38 of 4.8 TB/s);
- elementwise kernels move bytes at 0.8 of peak bandwidth and take at least 2 us each (the device files of
  aiconfigurator-core put 0.8 and 3 us outside CUDA graphs);
- an all-reduce costs 5 us (vLLM's custom all-reduce inside a CUDA graph on H100, 4.3 to 5.3 us up to 8 KiB) plus
  2 (tp - 1)/tp of its bytes at 0.7 of the link's rate (NCCL ring, the same tables).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from leankv.serving.devices import DeviceSpec
from leankv.serving.formats import KVFormat
from leankv.serving.models import ModelSpec
from leankv.simulator.step_time import dequantization
from leankv.simulator.step_time.base import CountedWork, Work, padded_tokens
from leankv.simulator.step_time.dequantization import KernelFamily
from leankv.simulator.step_time.layers import BF16_BYTES, Experts, Matmul, RankShapes, rank_shapes
from leankv.simulator.step_time.overhead import DEFAULT_OVERHEAD, Overhead

MATMUL_COMPUTE = 0.72
MATMUL_READ = 0.85
PREFILL_COMPUTE = 0.6
ELEMENTWISE_READ = 0.8
KERNEL_S = 2e-6
ALL_REDUCE_S = 5e-6
LINK_RATE = 0.7


@dataclass(frozen=True)
class Roofline(CountedWork):
    """A `StepTimeModel` from specifications. Build it with `roofline`."""

    model: ModelSpec
    device: DeviceSpec
    tp: int
    overhead: Overhead
    shapes: RankShapes
    kernels: KernelFamily | None = None
    source: str = field(default="roofline", init=False)

    def tokens_s(self, tokens: int, sequences: int) -> float:
        padded = padded_tokens(tokens)
        seconds = self.overhead.step_s + elementwise_s(self.shapes, self.device, padded)
        seconds += sum(matmul.count * matmul_s(matmul, padded, self.device) for matmul in self.shapes.matmuls)
        if self.shapes.experts is not None:
            seconds += self.shapes.experts.count * experts_s(self.shapes.experts, padded, self.device)
        seconds += self.shapes.all_reduces * self._all_reduce_s(padded)
        return seconds + self._sampling_s(sequences)

    def _sampling_s(self, sequences: int) -> float:
        if sequences == 0:
            return 0.0
        head = matmul_s(self.shapes.logits, sequences, self.device)
        return head + self.overhead.sequences_s(sequences, self.model.vocab)

    def _all_reduce_s(self, tokens: int) -> float:
        sent = 2 * (self.tp - 1) / self.tp * tokens * self.shapes.hidden * BF16_BYTES
        return ALL_REDUCE_S + sent / (self.device.interconnect_bytes_s * LINK_RATE)

    def prefill_attention_s(self, chunk: int, context: int) -> float:
        pairs = chunk * context + chunk * (chunk + 1) / 2
        flops = 4 * self.shapes.layers * self.shapes.heads * self.shapes.head_dim * pairs
        read = (chunk + context) * self.shapes.kv_bytes_per_token
        compute_s = flops / (self.device.flops["bf16"] * PREFILL_COMPUTE)
        return max(compute_s, read / self._read_rate) if chunk else 0.0

    def decode_attention_s(self, sequences: int) -> tuple[tuple[float, float], ...]:
        floor_s = self.shapes.layers * KERNEL_S if sequences else 0.0
        flat = floor_s * self._read_rate
        beyond = 2 * flat + self.shapes.kv_bytes_per_token
        knots = ((0.0, floor_s), (flat, floor_s), (beyond, beyond / self._read_rate))
        return knots if floor_s else (knots[0], knots[2])

    @property
    def _read_rate(self) -> float:
        return self.device.bandwidth_bytes_s * dequantization.READ_EFFICIENCY

    def effective_bytes(self, format: KVFormat) -> float:
        head_dim, group = self.shapes.head_dim, self.model.gqa_ratio
        return dequantization.effective_bytes(format, self.device, head_dim, group, self.kernels)

    def work_s(self, work: Work) -> float:
        return kernels_s(work, self.device)


def roofline(
    model: ModelSpec,
    device: DeviceSpec,
    tp: int = 1,
    overhead: Overhead = DEFAULT_OVERHEAD,
    kernels: KernelFamily | None = None,
) -> Roofline:
    """Step times of one of `tp` ranks from the specifications alone; `kernels` read quantized caches.

    Raises:
        InputError: the model does not split `tp` ways.
    """
    return Roofline(model, device, tp, overhead, rank_shapes(model, tp), kernels)


def matmul_s(matmul: Matmul, tokens: int, device: DeviceSpec) -> float:
    """One product of `tokens` rows."""
    flops = 2 * tokens * matmul.n * matmul.k
    weights = matmul.n * matmul.k * matmul.weight_bits / 8
    moved = weights + BF16_BYTES * tokens * (matmul.n + matmul.k)
    return max(flops / (_matmul_flops(device, matmul.weight_bits) * MATMUL_COMPUTE), _read_s(moved, device), KERNEL_S)


def experts_s(experts: Experts, tokens: int, device: DeviceSpec) -> float:
    """One layer's experts. A token visits `active` of them; with uniform routing n tokens touch E (1 - (1 - a/E)^n)."""
    touched = experts.experts * (1 - (1 - experts.active / experts.experts) ** tokens)
    width = 3 * experts.hidden * experts.intermediate
    flops = 2 * tokens * experts.active * width
    weights = touched * width * experts.weight_bits / 8
    rate = _matmul_flops(device, experts.weight_bits) * MATMUL_COMPUTE
    return max(flops / rate, _read_s(weights, device), 2 * KERNEL_S)


def elementwise_s(shapes: RankShapes, device: DeviceSpec, tokens: int) -> float:
    """Norms, rotary embedding, cache write and activation of all layers."""
    moved = tokens * shapes.elementwise_bytes / (device.bandwidth_bytes_s * ELEMENTWISE_READ)
    return moved + shapes.elementwise_kernels * KERNEL_S


def kernels_s(work: Work, device: DeviceSpec) -> float:
    """A policy's own kernels: arithmetic and memory overlap, launches do not."""
    compute_s = work.flops / (device.flops["bf16"] * PREFILL_COMPUTE)
    return max(compute_s, work.bytes / (device.bandwidth_bytes_s * ELEMENTWISE_READ)) + work.launches * KERNEL_S


def _matmul_flops(device: DeviceSpec, weight_bits: int) -> float:
    """Dense rate of the products: fp8 where weights are 8 bits and the device has it, else bf16 (weight-only)."""
    return device.flops.get("fp8", device.flops["bf16"]) if weight_bits == 8 else device.flops["bf16"]


def _read_s(moved: float, device: DeviceSpec) -> float:
    return moved / (device.bandwidth_bytes_s * MATMUL_READ)
