"""Work that a policy adds to plain attention, as counts: bytes moved, arithmetic, kernel launches.

Counts are per rank, for the whole model and one request. A batch adds bytes and flops of its requests, but pays the
launches once: one launch serves every request of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING

from leankv.serving.formats import FP16
from leankv.serving.models import ModelSpec

if TYPE_CHECKING:
    from leankv.serving.policies.base import Policy

SCORE_BYTES = 4
SELECTION_PASSES = 4
"""Passes over the scores that a radix select of float32 makes: one per byte."""
QUANTIZE_FLOPS = 6
"""Per element: two comparisons for the range, subtract, scale, round, clip."""


@dataclass(frozen=True)
class Work:
    """bytes and flops of one request; launches are floats since a kernel every n-th step counts 1/n."""

    bytes: float = 0.0
    flops: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Work of the same request, done one after the other."""
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.launches + other.launches)


NO_WORK = Work()


@dataclass(frozen=True)
class _Shape:
    """Heads of one rank over all layers."""

    layers: int
    kv_heads: int
    q_heads: int
    head_dim: int

    @property
    def key_bytes(self) -> int:
        """Bytes of one token's keys in FP16, all heads."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in FP16, all heads."""
        return 2 * self.key_bytes


def chunk_work(policy: Policy, chunk: int, context: int, model: ModelSpec, tp: int) -> Work:
    """Work on `chunk` prompt tokens after `context` earlier ones, done with the chunk itself.

    Rules without staging quantize as they go; H2O scores with every query.
    """
    shape = _shape(model, tp)
    work = _transform(policy, shape, chunk)
    if policy.score.source == "all-queries":
        work += _score_all_queries(shape, chunk, context)
    if policy.page_vectors:
        work += Work(chunk * shape.key_bytes, 2.0 * chunk * shape.kv_heads * shape.head_dim, shape.layers)
    return work if policy.staged else work + _quantize_as_written(policy, shape, chunk)


def prompt_work(policy: Policy, prompt: int, model: ModelSpec, tp: int) -> Work:
    """Work done once, when all `prompt` tokens are known: rules that wait for the last queries score and compress."""
    if not policy.staged:
        return NO_WORK
    return _score_prompt(policy, _shape(model, tp), prompt) + _compress_prompt(policy, model, tp, prompt)


def decode_work(policy: Policy, model: ModelSpec, tp: int) -> Work:
    """Appending one token: rotate, quantize, choose and move a token to the next tier, refresh a page's bounds.

    Reading and writing the scores is part of the memory model's bytes a step, since it follows the tokens held.
    """
    shape = _shape(model, tp)
    work = _transform(policy, shape, 1) + _quantize_as_written(policy, shape, 1)
    if policy.page_vectors:
        work += Work(2.0 * shape.key_bytes * policy.page_vectors, 0.0, 2 * shape.layers)
    if policy.bookkeeping:
        work += Work(launches=shape.layers / max(1, policy.trigger.steps))
    if policy.bookkeeping and policy.trigger.when == "every-step" and len(policy.tiers) > 1:
        work += Work(shape.kv_heads * sum(tier.format.bytes_per_token(shape.head_dim) for tier in policy.tiers))
    return work


def _shape(model: ModelSpec, tp: int) -> _Shape:
    heads = model.layers * model.kv_heads_on_rank(tp)
    return _Shape(model.layers, heads, model.layers * model.heads // tp, model.head_dim)


def _transform(policy: Policy, shape: _Shape, tokens: int) -> Work:
    """Fast Hadamard transforms of keys and queries, and a subtraction a channel to centre: arithmetic only."""
    flops = 0.0
    if "rotated" in policy.key_transform:
        flops += (shape.kv_heads + shape.q_heads) * shape.head_dim * log2(shape.head_dim)
    if "centred" in policy.key_transform:
        flops += shape.kv_heads * shape.head_dim
    if policy.key_transform.startswith("rope"):
        flops += 2 * shape.kv_heads * shape.head_dim
    return Work(flops=tokens * flops)


def _score_all_queries(shape: _Shape, chunk: int, context: int) -> Work:
    """A second pass of queries over keys (FlashAttention keeps no probabilities), summed into one score a key."""
    seen = context + chunk
    pairs = chunk * (context + (chunk + 1) / 2)
    moved = seen * (shape.key_bytes + 2 * SCORE_BYTES * shape.kv_heads)
    return Work(moved, 2.0 * shape.q_heads * shape.head_dim * pairs, shape.layers)


def _score_prompt(policy: Policy, shape: _Shape, prompt: int) -> Work:
    """Scores of `prompt` keys at its end: from the last queries, or from the modelled distribution of future ones."""
    moved = prompt * (shape.key_bytes + SCORE_BYTES * shape.kv_heads)
    if policy.score.source == "recent-window":
        queries = min(policy.score.window, prompt)
        return Work(moved, 2.0 * shape.q_heads * shape.head_dim * queries * prompt, shape.layers)
    if policy.score.source == "expected":
        # Per key: its product with the queries' mean, and the quadratic form with their covariance.
        per_key = 2.0 * shape.q_heads * shape.head_dim * (shape.head_dim + 1)
        values_read = prompt * shape.key_bytes
        return Work(moved + values_read, per_key * prompt, 2 * shape.layers)
    return NO_WORK


def _compress_prompt(policy: Policy, model: ModelSpec, tp: int, prompt: int) -> Work:
    """Select among the staged tokens, read those kept, write them compacted in their tier's format."""
    shape = _shape(model, tp)
    held = policy.held_tokens(prompt, prompt, model.layers, model.kv_heads_on_rank(tp))
    select = SELECTION_PASSES * SCORE_BYTES * prompt
    written = sum(
        tokens * (tier.format.bytes_per_token(shape.head_dim) + policy.bookkeeping)
        for tokens, tier in zip(held, policy.tiers, strict=True)
    )
    read = sum(held) * FP16.bytes_per_token(shape.head_dim)
    quantized = sum(tokens for tokens, tier in zip(held, policy.tiers, strict=True) if tier.format.kind == "int")
    flops = QUANTIZE_FLOPS * 2.0 * shape.head_dim * quantized
    return Work(shape.kv_heads * (select + read + written), shape.kv_heads * flops, 2 * shape.layers)


def _quantize_as_written(policy: Policy, shape: _Shape, tokens: int) -> Work:
    """Quantizing new tokens. In the kernel that writes the cache: arithmetic only.

    Where the newest tokens wait in full precision, each is read back, and written again, when it leaves that window.
    """
    quantized = [tier.format for tier in policy.tiers if tier.format.kind == "int"]
    if not quantized:
        return NO_WORK
    flops = QUANTIZE_FLOPS * 2.0 * shape.kv_heads * shape.head_dim * tokens
    if quantized[0].key_axis == "token":
        return Work(flops=flops)
    moved = shape.token_bytes + shape.kv_heads * quantized[0].bytes_per_token(shape.head_dim)
    return Work(tokens * moved, flops, shape.layers * min(1.0, tokens / quantized[0].group_tokens))
