"""Decode attention over mixed-precision pages against float64 attention over the dequantized cache."""

from __future__ import annotations

import pytest
import torch

from leankv.kernels.attention import decode_attention
from leankv.serving.formats import FORMATS, FP16, FP32, K3V2, K4V2, K4V4, K8V4, KIVI2, KVFormat

from . import filled_caches as caches

ALL = sorted({FP32, *FORMATS.values()}, key=lambda f: f.name)
PATHS = ("reference", "torch")
# The reference is held to 1e-5; folding the zero into the score costs the vectorised form some float32 digits.
TOLERANCE = {"reference": 1e-5, "torch": 5e-5}


def check(filled: caches.Filled, group: int, path: str, tolerance: float, seed: int = 1) -> None:
    """Outputs and contributions match, everything asked for was written, nothing else was."""
    cache, lengths = filled.cache, filled.lengths
    batch, heads, head_dim = len(lengths), cache.kv_heads * group, cache.head_dim
    query = torch.randn(batch, heads, head_dim, generator=torch.Generator().manual_seed(seed))
    output = torch.full((batch, heads, head_dim), float("nan"))
    capacity = max(high + low for row in lengths for high, low in row) + 5
    contributions = torch.full((batch, cache.kv_heads, capacity), float("nan"))
    scale = head_dim**-0.5
    decode_attention(query, cache, torch.arange(batch, dtype=torch.int32), scale, output, contributions, path=path)
    expected, expected_contributions = caches.attention64(filled, query, scale)
    error = (output.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, error
    for s, row in enumerate(lengths):
        for h, (high, low) in enumerate(row):
            found = contributions[s, h, : high + low].double()
            assert (found - expected_contributions[s][h]).abs().max() <= tolerance * 2
            assert bool(contributions[s, h, high + low :].isnan().all())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("head_dim", (64, 96, 128, 256))
@pytest.mark.parametrize("format", ALL, ids=lambda f: f.name)
def test_every_format_and_head_dim(format: KVFormat, head_dim: int, path: str) -> None:
    layouts = caches.layouts_for((format, K4V2), head_dim)
    full = layouts[0].tokens
    lengths = [[(full, 0), (full + 1, 3)], [(1, 0), (2 * full - 1, 1)]]
    if format.key_axis == "channel":
        lengths = [[(full, 0), (64, 3)], [(32, 0), (2 * full - 32, 1)]]
    check(caches.filled_cache(layouts, [(0, 1), (0, 1)], lengths), 3, path, TOLERANCE[path])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("group", (1, 2, 3, 4, 7, 8))
def test_every_group_size_with_outlier_keys(group: int, path: str) -> None:
    layouts = caches.layouts_for((K8V4, K4V2), 64)
    lengths = [[(70, 130), (1, 0)], [(0, 1), (200, 90)], [(0, 40), (35, 0)]]
    filled = caches.filled_cache(layouts, [(0, 1)] * 3, lengths, amplitude=328)
    # Rounding of float32 products of 328 times a query: the bound scales with the logits.
    check(filled, group, path, 1e-5 if path == "reference" else 5e-4)


@pytest.mark.parametrize("path", PATHS)
def test_policies_mix_in_one_batch(path: str) -> None:
    layouts = caches.layouts_for((FP16, K8V4, K4V2, K4V4, K3V2, KIVI2), 64)
    tiers = [(0, -1), (1, 2), (3, 4), (0, 5), (2, -1), (1, -1)]
    lengths = [[(90, 0)], [(33, 70)], [(50, 60)], [(20, 64)], [(11, 0)], [(100, 0)]]
    rotated = [False, False, True, False, True, False]
    check(caches.filled_cache(layouts, tiers, lengths, rotated=rotated), 2, path, TOLERANCE[path])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("amplitude", (1.0, 300.0))
def test_centres_that_turn_with_the_position_are_met_again(amplitude: float, path: str) -> None:
    layouts = caches.layouts_for((K8V4, K4V2, K3V2), 64)
    tiers, lengths = [(0, 1), (0, 2), (0, 1), (1, -1)], [[(40, 70)], [(33, 20)], [(20, 64)], [(50, 0)]]
    filled = caches.filled_cache(
        layouts, tiers, lengths, amplitude, rotated=[True, False, True, False], turning=[True, True, False, False]
    )
    # Products of 300 times a query lose float32 digits that plain keys do not; those of `rotated` alone stay as exact.
    check(filled, 3, path, TOLERANCE[path] * (1 if amplitude == 1 else 20))


@pytest.mark.parametrize("path", PATHS)
def test_page_boundaries(path: str) -> None:
    layouts = caches.layouts_for((K8V4, K4V2), 128)
    high, low = layouts[0].tokens, layouts[1].tokens
    edges = [(a, b) for a in (0, high - 1, high, high + 1) for b in (0, low - 1, low, low + 1) if a + b]
    check(caches.filled_cache(layouts, [(0, 1)] * len(edges), [[e] for e in edges]), 4, path, TOLERANCE[path])


@pytest.mark.parametrize("path", PATHS)
def test_inactive_and_empty_rows_give_zeros(path: str) -> None:
    layouts = caches.layouts_for((K8V4, K4V2), 64)
    cache = caches.filled_cache(layouts, [(0, 1)] * 2, [[(5, 0)], [(0, 0)]]).cache
    query, output = torch.randn(3, 2, 64), torch.full((3, 2, 64), float("nan"))
    decode_attention(query, cache, torch.tensor([-1, 1, 0], dtype=torch.int32), 0.1, output, path=path)
    assert not output[:2].any() and bool(output[2].isfinite().all())
