"""Decode attention over the paged cache: one new query per request, keys and values in mixed precision.

For each request and KV head: probabilities p = softmax(scale * q.k) over all tokens held, of both tiers, and their sum
of p * v. Beside the output comes each token's contribution to its significance: the maximum over the query heads of
the group of its probability (LeanKV, arXiv 2412.03131, section 4).

Three forms: `reference` (one head at a time, on dequantized tokens), `torch` (all pages at once, for CPUs) and `triton`
(split over the sequence as in flash-decoding; the group shares one read of each page; dequantization folded into the
products).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leankv.kernels import attention_reference, attention_torch
from leankv.kernels.paths import Path, path_for
from leankv.kernels.rope import against
from leankv.serving.pages import PageLayout

HEADS_A_PROGRAM = 8
"""Query heads of one KV head that a program serves; a wider group takes several programs.

The other eight rows of the tensor cores' 16 hold what float16 loses of the queries. A wider group therefore reads its
pages once per eight heads; these programs are neighbours in the grid, so all but the first read come from the L2 cache.
Sixteen heads a program would need twice the registers, and one-warp programs have none to spare (see
`compile_report.py`).
"""


@dataclass(frozen=True, eq=False)
class TurnedCentres:
    """What keys were centred on that were centred by position: attention adds the query's product with it again.

    mean float32 [kv_heads, head_dim], from before RoPE; turns float32 [positions, 2, n] (`kernels/rope.py`); chosen
    int32 [slots]: 1 where the slot's keys are centred so; lengths int32 [slots]: positions cached.
    """

    mean: Tensor
    turns: Tensor
    chosen: Tensor
    lengths: Tensor

    def products(self, queries: Tensor, slots: Tensor) -> Tensor:
        """float32 [batch, heads, positions]: of queries [batch, heads, head_dim] with the centre at every position.

        Zero for slots (int [batch]) whose keys are not centred so.
        """
        heads, pairs = queries.shape[1], self.turns.shape[-1]
        mean = self.mean.repeat_interleave(heads // len(self.mean), 0)
        found = against(queries.float(), mean, pairs).flatten(-2) @ self.turns.flatten(1).T
        return found * (self.chosen[slots.clamp(min=0).long()] != 0)[:, None, None]


@dataclass(frozen=True, eq=False)
class LayerCache:
    """One layer of the paged cache (`kernels/layout.py`), as attention reads it.

    pool uint8 [num_pages, page_bytes]; page_table int32 [slots, kv_heads, max_pages]; token_counts int32
    [slots, kv_heads, 2]; tier_formats int32 [slots, 2], indices into `layouts`; rotated int32 [slots]: 1 where the
    slot's keys are stored rotated, None where no slot's are. centres: None where no slot centres keys by position.
    """

    pool: Tensor
    layouts: tuple[PageLayout, ...]
    page_table: Tensor
    token_counts: Tensor
    tier_formats: Tensor
    rotated: Tensor | None = None
    centres: TurnedCentres | None = None

    @property
    def head_dim(self) -> int:
        return self.layouts[0].head_dim

    @property
    def kv_heads(self) -> int:
        return self.page_table.shape[1]


@dataclass(frozen=True, eq=False)
class DecodeWorkspace:
    """What the Triton form writes between its launches; allocated once for a batch bucket, reused by every layer.

    query          float32 [batch, heads, head_dim]: rotated where the slot's keys are
    partial        float32 [batch, heads, splits, head_dim]: each split's output, normalised within the split
    partial_lse    float32 [batch, heads, splits]: its logsumexp in base 2, -inf where the split is empty
    weights        float16 [batch, heads, capacity]: probability of each token relative to its tile's running maximum
    maxima         float32 [batch, heads, capacity / TILE]: that maximum, base 2, by tile of each tier
    lse            float32 [batch, heads]: logsumexp over all splits, base 2
    products       float32 [batch, heads, positions]: see `TurnedCentres.products`; of no position where nobody needs it
    """

    query: Tensor
    partial: Tensor
    partial_lse: Tensor
    weights: Tensor
    maxima: Tensor
    lse: Tensor
    products: Tensor


def decode_attention(
    query: Tensor,
    cache: LayerCache,
    slots: Tensor,
    scale: float,
    output: Tensor,
    contributions: Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
    path: Path | None = None,
) -> None:
    """Attend from query [batch, heads, head_dim] over the tokens held by `slots` int32 [batch].

    Writes output [batch, heads, head_dim] (its own dtype; zeros where the slot is negative or holds no token) and,
    where given, contributions float32 [batch, kv_heads, capacity]: entry t of a head is its token t of the high tier,
    entry n_high + t its token t of the low tier; entries beyond the tokens held are left as they are.
    The query is not yet rotated. The new token must have been stored before.

    The Triton form needs a `workspace`, allocates nothing, never waits for the device and launches the same grid
    whatever the contents, so it can be captured in a CUDA graph.
    """
    batch, heads, head_dim = query.shape
    assert head_dim == cache.head_dim and heads % cache.kv_heads == 0
    assert output.shape == query.shape and slots.shape == (batch,)
    assert contributions is None or contributions.shape[:2] == (batch, cache.kv_heads)
    form = path_for(query, path)
    if form == "triton":
        from leankv.kernels import attention_triton

        assert workspace is not None, "the Triton form writes to a workspace"
        attention_triton.decode_attention(query, cache, slots, scale, output, contributions, workspace)
    else:
        module = attention_reference if form == "reference" else attention_torch
        module.decode_attention(query, cache, slots, scale, output, contributions)


def rotated_slots(cache: LayerCache, slots: Tensor) -> Tensor:
    """bool [batch]: whose keys are stored rotated."""
    if cache.rotated is None:
        return torch.zeros(slots.shape, dtype=torch.bool, device=slots.device)
    return (cache.rotated[slots.clamp(min=0).long()] != 0) & (slots >= 0)
