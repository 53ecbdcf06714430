"""Launches of storing and gathering on CUDA. Storing does not wait for the device; it allocates centres at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from leankv.kernels.layout import key_high_plane, value_high_plane
from leankv.kernels.store_kernels import gather_kernel, store_kernel, store_key_groups_kernel
from leankv.kernels.transforms import KeyTransform, rotation_block
from leankv.serving.pages import PageLayout

if TYPE_CHECKING:
    from leankv.kernels.store import Tokens

ROWS = 16


def layout_constants(layout: PageLayout) -> dict[str, Any]:
    """What the kernels know of a layout when they are compiled; offsets in bytes."""
    format, head_dim = layout.format, layout.head_dim
    return {
        "PAGE_BYTES": layout.page_bytes,
        "HEAD_DIM": head_dim,
        "PADDED": triton.next_power_of_2(head_dim),
        "IS_FLOAT": format.kind == "float",
        "PER_CHANNEL": format.key_axis == "channel",
        "K_BITS": format.k_bits,
        "K_GROUPS": max(format.key_groups(head_dim), 1),
        "K_START": layout.offset("keys"),
        "K_HIGH": key_high_plane(layout),
        "K_META": layout.offset("key_meta"),
        "V_BITS": format.v_bits,
        "V_GROUPS": max(format.value_groups(head_dim), 1),
        "V_START": layout.offset("values"),
        "V_HIGH": value_high_plane(layout),
        "V_META": layout.offset("value_meta"),
        "BOOKKEEPING": layout.bookkeeping,
        "SCORES": layout.offset("scores"),
        "POSITIONS": layout.offset("positions"),
    }


def store(
    pool: Tensor,
    layout: PageLayout,
    pages: Tensor,
    places: Tensor,
    tokens: Tokens,
    transform: KeyTransform,
    errors: Tensor,
) -> None:
    """See `kernels/store.py`. Keys that are centred by position need their centres written out first."""
    n, heads, head_dim = tokens.keys.shape
    if n * heads == 0:
        return
    assert pages.is_contiguous() and places.is_contiguous() and pool.is_contiguous()
    assert tokens.scores.is_contiguous() and tokens.positions.is_contiguous()
    assert tokens.keys.stride(-1) == tokens.values.stride(-1) == 1
    centre = transform.centre(tokens.positions)
    mean = tokens.keys if centre is None else centre.contiguous()
    mean_token = heads * head_dim if mean.dim() == 3 and centre is not None else 0
    transformed = {
        "CENTRED": transform.mean is not None,
        "BLOCK": rotation_block(head_dim) if transform.rotated else 0,
    }
    constants = layout_constants(layout)
    key_strides = tokens.keys.stride()[:2]
    store_kernel[(triton.cdiv(n * heads, ROWS),)](
        *_views(pool),
        pages,
        places,
        tokens.keys,
        tokens.values,
        tokens.scores,
        tokens.positions,
        mean,
        mean_token,
        errors,
        n * heads,
        heads,
        *key_strides,
        *tokens.values.stride()[:2],
        **transformed,
        **constants,
        ROWS=ROWS,
        num_warps=4,
    )
    if constants["PER_CHANNEL"]:
        shape = {name: constants[name] for name in ("PAGE_BYTES", "HEAD_DIM", "PADDED")}
        group = layout.format.group_tokens
        store_key_groups_kernel[(n // group, heads)](
            pool,
            pool.view(torch.int32),
            pages,
            places,
            tokens.keys,
            mean,
            mean_token,
            errors,
            heads,
            *key_strides,
            **transformed,
            **shape,
            BITS=layout.format.k_bits,
            START=constants["K_START"],
            META=constants["K_META"],
            GROUP=group,
            num_warps=4,
        )


def gather(pool: Tensor, layout: PageLayout, pages: Tensor, places: Tensor) -> Tokens:
    """See `kernels/store.py`; keys are returned as stored. Allocates its results."""
    from leankv.kernels.store import Tokens

    found = Tokens(
        torch.empty(*pages.shape, layout.head_dim, device=pool.device),
        torch.empty(*pages.shape, layout.head_dim, device=pool.device),
        torch.empty(pages.shape, device=pool.device),
        torch.empty(pages.shape, dtype=torch.int32, device=pool.device),
    )
    if pages.numel():
        gather_kernel[(pages.numel(),)](
            *_views(pool),
            pages.contiguous(),
            places.contiguous(),
            found.keys,
            found.values,
            found.scores,
            found.positions,
            **layout_constants(layout),
            GROUP_TOKENS=layout.format.group_tokens,
            num_warps=1,
        )
    return found


def _views(pool: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return pool, pool.view(torch.int16), pool.view(torch.int32)
