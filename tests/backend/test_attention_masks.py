"""The two forms of a chunk's mask say the same, with grouped heads too."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from leankv.backend.attention import _mask


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (9, 3), (4, 4)])
@pytest.mark.parametrize(("chunk", "prefix"), [(1, 7), (5, 3), (16, 33)])
def test_a_gpus_bias_gives_what_a_cpus_mask_gives(heads: int, kv_heads: int, chunk: int, prefix: int) -> None:
    drawn = torch.Generator().manual_seed(chunk)
    query = torch.randn(1, heads, chunk, 16, generator=drawn)
    key, value = torch.randn(2, 1, kv_heads, prefix + chunk, 16, generator=drawn)
    masks = [_mask(chunk, prefix, torch.device(kind)) for kind in ("cpu", "cuda")]
    with torch.inference_mode():
        plain, biased = (
            scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
            for mask in masks
        )
    assert masks[0].dtype == torch.bool and masks[1].dtype != torch.bool
    torch.testing.assert_close(biased, plain, atol=1e-6, rtol=1e-5)
