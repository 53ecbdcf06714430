"""Published reports of KV-cache compression that lost, as setups that the simulator can run.

What a report leaves out is filled in here and said so. Hybrid models are written as their layers with a KV cache alone,
the other layers' weights folded into those, so that weights, cache and attention arithmetic per rank are the report's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from leankv.serving.devices import DeviceSpec, device_named
from leankv.serving.formats import KVFormat
from leankv.serving.models import ModelSpec, model_named
from leankv.serving.policies.base import Policy, Tier
from leankv.serving.policies.registry import policy_named
from leankv.serving.policies.turboquant import turboquant

GIB = 2**30
TURBOQUANT, PER_TOKEN_HEAD, TUNED = "vllm-turboquant", "vllm-per-token-head", ""


@dataclass(frozen=True, eq=False)
class Setup:
    """One deployment and its closed loop: `requests` of one length, `concurrency` of them at a time."""

    model: ModelSpec
    device: DeviceSpec
    prompt: int
    output: int
    requests: int
    concurrency: int
    tp: int = 1
    step_tokens: int = 8192
    memory_utilization: float = 0.9


@dataclass(frozen=True)
class Claim:
    """A reported ratio: `metric` under `policy` over `metric` under `baseline`, both read by the kernels named.

    `metric` is "TPOT", "throughput" (requests), "prefill" (prompt tokens a second) or "decode" (1/TPOT).
    `why` explains what the prediction leaves out.
    """

    label: str
    setup: Setup
    policy: Policy
    baseline: Policy
    metric: str
    reported: float
    kernels: str
    why: str


@dataclass(frozen=True)
class Report:
    """Where it was published, what was run, what it claims; `unmodelled` names claims that no policy here can make."""

    title: str
    source: str
    claims: tuple[Claim, ...]
    unmodelled: tuple[str, ...] = ()


def all_reports() -> tuple[Report, ...]:
    """Every report, in the order of the table that `leankv bench losses` prints."""
    return (_three_bits(), _per_token_head(), _decode_server(), _long_context(), _prefill())


def _three_bits() -> Report:
    setup = Setup(model_named("qwen3-4b"), device_named("h100"), 512, 128, 1500, 80, memory_utilization=0.85)
    fp16, three = policy_named("fp16"), policy_named("turboquant")
    count = "the count assumes that every arithmetic slot issues, so it bounds the loss from below"
    store = f"{count}; this version also stored the cache with several unfused kernels, which are not counted"

    def claim(label: str, metric: str, reported: float, why: str) -> Claim:
        return Claim(label, setup, three, fp16, metric, reported, TURBOQUANT, why)

    return Report(
        "TurboQuant 3 bits, Qwen3-4B on H100, 512 -> 128, concurrency 80",
        "vllm pull request 38479",
        (
            claim("as merged: throughput", "throughput", 0.365, store),
            claim("as merged: TPOT", "TPOT", 34.96 / 10.17, store),
            claim("after tuning: throughput", "throughput", 0.545, count),
            claim("after tuning: TPOT", "TPOT", 24.10 / 10.17, count),
        ),
    )


def _per_token_head() -> Report:
    """The report names neither model nor device; these are its author's elsewhere (pull requests 38854 and 41394)."""
    model = ModelSpec(
        name="qwen3.5-35b-a3b (10 of 40 layers keep a cache)",
        layers=10,
        hidden=2048,
        intermediate=2048,
        heads=16,
        kv_heads=2,
        head_dim=256,
        vocab=248_320,
        max_context=262_144,
        experts=256,
        experts_per_token=8,
        moe_intermediate=4 * 512,
        shared_expert_intermediate=4 * 512,
        weight_bits=4,
        source="config.json of Qwen/Qwen3.5-35B-A3B, linear-attention layers folded into the others",
    )
    device = _device("rx-7900-xtx", 24, 960e9, 122.8e12, 32e9, None, "AMD Radeon RX 7900 XTX specifications")
    setup = Setup(model, device, 512, 128, 100, 100, tp=2, step_tokens=2048)
    fp16, int8 = policy_named("fp16"), policy_named("int8")
    why = (
        "model and device are taken, not reported. That model's cache is about 7 % of what a step reads, so reading it "
        "cannot cost what was lost; the report's TTFT rose by about the same share as its TPOT, so the loss lies in "
        "whole steps (writing the cache, the host), which only a measurement shows"
    )

    def claim(label: str, policy: Policy, reported_ms: float) -> Claim:
        return Claim(label, setup, policy, fp16, "TPOT", reported_ms / 90.67, PER_TOKEN_HEAD, why)

    return Report(
        "int8, int4, int2 per token and head, 512 -> 128, 100 requests at once",
        "vllm pull request 40633",
        (
            claim("int8: TPOT", int8, 97.05),
            claim("int4: TPOT", policy_named("int4"), 105.41),
            claim("int2: TPOT", replace(int8, name="int2", tiers=(Tier("all", KVFormat(2, 2)),)), 107.57),
        ),
    )


def _decode_server() -> Report:
    setup = Setup(model_named("qwen3-30b-a3b"), device_named("h200"), 8192, 1024, 512, 256)
    four = policy_named("turboquant:key_bits=4,value_bits=4")
    why = "the report decodes on a device of its own; here prompts share it, and slow both sides alike"
    return Report(
        "TurboQuant 4 bits against fp8, Qwen3-30B-A3B on H200, 8,192 -> 1,024, concurrency 256",
        "vllm issue 40858",
        (Claim("TPOT", setup, four, policy_named("fp8"), "TPOT", 7.0, TURBOQUANT, why),),
    )


def _long_context() -> Report:
    model = ModelSpec(
        name="qwen3.8-27b (16 of 64 layers keep a cache)",
        layers=16,
        hidden=5120,
        intermediate=95_232,
        heads=24,
        kv_heads=4,
        head_dim=256,
        vocab=248_320,
        max_context=262_144,
        weight_bits=6,
        source="vllm issue 55610; 27 billion parameters, weights of 8 and 4 bits taken as 6 on average",
    )
    device = _device("rtx-3090", 24, 936e9, 71e12, 32e9, 86, "NVIDIA GA102 white paper, GeForce RTX 3090")
    mixed = replace(
        turboquant(boundary=0),
        name="turboquant-k8v4",
        tiers=(Tier("boundary", KVFormat(8, 4)), Tier("all", KVFormat(8, 4))),
    )
    why = "the report's cards are capped at 250 W, below their specified clock; the count is a lower bound besides"

    def claim(label: str, prompt: int, reported: float) -> Claim:
        setup = Setup(model, device, prompt, 256, 2, 1, tp=2, step_tokens=2048)
        return Claim(label, setup, mixed, policy_named("fp8"), "decode", reported, TURBOQUANT, why)

    return Report(
        "TurboQuant K8V4 against fp8, hybrid 27B on two RTX 3090, one sequence",
        "vllm issue 55610",
        (claim("decode speed at 3k", 3_000, 1 - 0.028), claim("decode speed at 55k", 55_000, 1 - 0.31)),
    )


def _prefill() -> Report:
    setup = Setup(model_named("llama-2-7b"), device_named("a6000"), 4_000, 1, 32, 8)
    fp16 = policy_named("fp16")

    def claim(name: str, policy: str, reported: float, why: str) -> Claim:
        return Claim(f"{name}: prefill speed", setup, policy_named(policy), fp16, "prefill", reported, TUNED, why)

    return Report(
        "Prefill throughput, Llama-2-7B on A6000, prompts of 4,000",
        "Rethinking KV Cache Compression, arXiv 2503.24000",
        (
            claim(
                "KIVI",
                "kivi:bits=4",
                1.06,
                "quantizing a prompt is work added here; nothing in the method makes prefill faster, so the reported "
                "gain is the baseline engine's",
            ),
            claim(
                "H2O",
                "h2o",
                0.58,
                "the second attention pass is counted on tensor cores; the measured one writes out every probability",
            ),
            claim(
                "StreamingLLM",
                "streaming-llm",
                0.95,
                "dropping prompt tokens is free here; the measured implementation copies what it keeps",
            ),
        ),
        unmodelled=("GEAR: prefill speed 0.86 (no such policy here: low-rank correction of a quantized cache)",),
    )


def _device(name: str, gib: int, bandwidth: float, bf16: float, link: float, sm: int | None, source: str) -> DeviceSpec:
    fields = ("memory_bytes", "bandwidth_bytes_s", "flops", "interconnect_bytes_s", "price_usd_h", "sm")
    return DeviceSpec(name, gib * GIB, bandwidth, {"bf16": bf16}, link, 0.0, sm, dict.fromkeys(fields, source))
