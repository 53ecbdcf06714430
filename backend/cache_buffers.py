"""What the Triton path writes between its launches: made once, before the pool takes the rest of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.backend.cache_plan import CacheShape
from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import MassTiers

if TYPE_CHECKING:
    from leankv.kernels.attention_triton import DecodeBuffers
    from leankv.kernels.recompress_triton import RecompressWorkspace

MOST_RECOMPRESSION_BYTES = 64 << 20
"""Of the workspace that heads are classified in again; more heads than it holds take turns."""


@dataclass(frozen=True, eq=False)
class StepBuffers:
    """One set for a cache, shared by all layers, batch buckets and policies.

    contributions: float32 [largest batch, kv_heads, max_tokens], where some policy keeps scores. recompression: where
    some policy classifies again.
    """

    attention: DecodeBuffers
    contributions: Tensor | None
    recompression: RecompressWorkspace | None

    @property
    def nbytes(self) -> int:
        parts = [self.attention, *([self.recompression] if self.recompression else [])]
        held = [each for part in parts for each in vars(part).values() if isinstance(each, Tensor)]
        return sum(each.nbytes for each in [*held, *([] if self.contributions is None else [self.contributions])])


def step_buffers(
    shape: CacheShape, policies: Sequence[Policy], slots: int, max_tokens: int, device: torch.device
) -> StepBuffers:
    """Buffers for steps of up to `largest_batch(slots)` requests of up to `max_tokens` tokens."""
    from leankv.kernels.attention_triton import decode_buffers
    from leankv.kernels.recompress_triton import RecompressWorkspace, workspace_bytes

    scored = any(policy.bookkeeping for policy in policies)
    batch = largest_batch(slots)
    heads = shape.heads, shape.kv_heads, shape.head_dim
    turning = any(policy.key_transform.startswith("rope") for policy in policies)
    attention = decode_buffers(batch, *heads, max_tokens, scored, device, max_tokens if turning else 0)
    contributions = torch.empty(batch, shape.kv_heads, max_tokens, device=device) if scored else None
    recompression = None
    if any(isinstance(policy.budget, MassTiers) for policy in policies):
        rows = MOST_RECOMPRESSION_BYTES // workspace_bytes(1, max_tokens, shape.head_dim)
        rows = max(1, min(rows, slots * shape.layers * shape.kv_heads))
        recompression = RecompressWorkspace.empty(rows, max_tokens, shape.head_dim, device)
    return StepBuffers(attention, contributions, recompression)


def largest_batch(slots: int) -> int:
    """Entries that a step's slot tensor may have, padding included: the power of two that holds all slots."""
    return int(1 << (slots - 1).bit_length())
