"""The kernels of one forward pass on one tensor-parallel rank, as shapes: what the step-time sources put times to."""

from __future__ import annotations

from dataclasses import dataclass

from leankv.serving.errors import InputError
from leankv.serving.models import ModelSpec

BF16_BYTES = 2


@dataclass(frozen=True)
class Matmul:
    """`count` products of [m, k] by [k, n] in a forward pass; `weight_bits` is the width of the [k, n] matrix."""

    n: int
    k: int
    count: int
    weight_bits: int = 16


@dataclass(frozen=True)
class Experts:
    """The routed feed-forward of a mixture of experts on one rank: `count` layers of `experts` blocks."""

    experts: int
    active: int
    hidden: int
    intermediate: int
    count: int
    weight_bits: int = 16


@dataclass(frozen=True)
class RankShapes:
    """One rank of a model split `tp` ways by column and row, as Megatron-LM splits it (arXiv 1909.08053, section 3).

    heads, kv_heads: of this rank (the fullest one). matmuls, experts: of all layers, without the output head.
    elementwise: (bytes moved per token, kernels) of the norms, rotary embedding, activation and cache write.
    all_reduces: calls per forward pass, each of tokens * hidden * 2 bytes.
    """

    matmuls: tuple[Matmul, ...]
    experts: Experts | None
    logits: Matmul
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    hidden: int
    elementwise_bytes: int
    elementwise_kernels: int
    all_reduces: int

    @property
    def kv_bytes_per_token(self) -> int:
        """float16 bytes of one cached token on this rank, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16_BYTES


def rank_shapes(model: ModelSpec, tp: int) -> RankShapes:
    """Shapes of one rank.

    Raises:
        InputError: the heads do not divide by `tp`.
    """
    kv_heads = model.kv_heads_on_rank(tp)
    heads = model.heads // tp
    queries = heads * model.head_dim
    matmuls = [
        Matmul(queries + 2 * kv_heads * model.head_dim, model.hidden, model.layers, model.weight_bits),
        Matmul(model.hidden, queries, model.layers, model.weight_bits),
    ]
    matmuls += _feed_forward(model, tp)
    return RankShapes(
        matmuls=tuple(matmuls),
        experts=_experts(model, tp),
        logits=Matmul(-(-model.vocab // tp), model.hidden, 1),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=model.head_dim,
        layers=model.layers,
        hidden=model.hidden,
        elementwise_bytes=model.layers * _elementwise_bytes(model, tp, heads, kv_heads),
        elementwise_kernels=model.layers * ELEMENTWISE_KERNELS,
        all_reduces=2 * model.layers + 1 if tp > 1 else 0,
    )


# Residual add with norm, twice; query/key norm with rotary embedding; cache write; gated activation. vLLM's compiled
# graph fuses each into one kernel.
ELEMENTWISE_KERNELS = 5


def _elementwise_bytes(model: ModelSpec, tp: int, heads: int, kv_heads: int) -> int:
    """Bytes that one layer's elementwise kernels read and write per token."""
    norms = 2 * 4 * model.hidden
    rotary = 2 * (heads + kv_heads) * model.head_dim
    cache_write = 2 * 2 * kv_heads * model.head_dim
    width = model.moe_intermediate * model.experts_per_token if model.experts else model.intermediate
    activation = 3 * width // tp
    return BF16_BYTES * (norms + rotary + cache_write + activation)


def _feed_forward(model: ModelSpec, tp: int) -> list[Matmul]:
    dense = model.dense_layers if model.experts else model.layers
    routed = model.layers - dense
    blocks = [(model.intermediate, dense), (model.shared_expert_intermediate, routed)]
    found = []
    for width, count in blocks:
        if width and count:
            rank_width = _split(width, tp, model.name)
            found.append(Matmul(2 * rank_width, model.hidden, count, model.weight_bits))
            found.append(Matmul(model.hidden, rank_width, count, model.weight_bits))
    if routed:
        found.append(Matmul(model.experts, model.hidden, routed))
    return found


def _experts(model: ModelSpec, tp: int) -> Experts | None:
    if not model.experts:
        return None
    return Experts(
        experts=model.experts,
        active=model.experts_per_token,
        hidden=model.hidden,
        intermediate=_split(model.moe_intermediate, tp, model.name),
        count=model.layers - model.dense_layers,
        weight_bits=model.weight_bits,
    )


def _split(width: int, tp: int, name: str) -> int:
    if width % tp:
        raise InputError(f"--tp {tp}: {name} has a feed-forward width of {width}, which does not divide by it")
    return width // tp
