"""Run under TRITON_INTERPRET=1: the attention kernels against float64, on tiny caches. Prints one line a case."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import filled_caches as caches

from leankv.kernels.attention import decode_attention
from leankv.kernels.attention_triton import decode_workspace
from leankv.serving.formats import FORMATS, FP8, FP16, K3V2, K4V2, K4V2_24, K4V4, K8V4, KIVI2, KIVI4, KVFormat
from leankv.serving.pages import layout_of, page_bytes_for

TOLERANCE = 2e-3


def check(
    name: str,
    filled: caches.Filled,
    group: int,
    splits: int,
    dtype: torch.dtype = torch.float16,
    loud: float = 1,
    cancelling: bool = False,
) -> None:
    """Poisoned outputs and workspace, then the error of output and contributions.

    Queries are `loud` times as large, or `cancelling`: what the first channel adds to a logit the second takes away.
    """
    cache, lengths = filled.cache, filled.lengths
    batch, heads, head_dim = len(lengths), cache.kv_heads * group, cache.head_dim
    query = (loud * torch.randn(batch, heads, head_dim, generator=torch.Generator().manual_seed(3))).to(dtype)
    if cancelling:
        query[..., 0] = 3 + torch.rand(batch, heads, generator=torch.Generator().manual_seed(4))
        query[..., 1] = 0.01 * query[..., 2] - query[..., 0]
    capacity = max(high + low for row in lengths for high, low in row) + 3
    positions = 0 if cache.centres is None else len(cache.centres.turns)
    workspace = decode_workspace(batch, heads, cache.kv_heads, head_dim, capacity, splits, "cpu", positions)
    for buffer in vars(workspace).values():
        buffer.fill_(float("nan"))
    output = torch.full((batch, heads, head_dim), float("nan"))
    contributions = torch.full((batch, cache.kv_heads, capacity), float("nan"))
    slots = torch.arange(batch, dtype=torch.int32)
    scale = head_dim**-0.5 / loud
    decode_attention(query, cache, slots, scale, output, contributions, workspace, path="triton")
    expected, shares = caches.attention64(filled, query.float(), scale)
    error = float((output.double() - expected).abs().max() / expected.abs().max())
    worst = 0.0
    for s, row in enumerate(lengths):
        for h, (high, low) in enumerate(row):
            difference = (contributions[s, h, : high + low].double() - shares[s][h]).abs().max()
            assert not bool(difference.isnan()), f"{name}: a contribution was not written"
            worst = max(worst, float(difference))
            assert bool(contributions[s, h, high + low :].isnan().all()), f"{name}: wrote beyond the tokens held"
    print(f"{name}: output error {error:.1e}, contributions {worst:.1e}", flush=True)
    assert error <= TOLERANCE and worst <= TOLERANCE, name


def formats(head_dims: tuple[int, ...], chosen: tuple[KVFormat, ...]) -> None:
    for head_dim in head_dims:
        for format in chosen:
            layouts = caches.layouts_for((format, K4V2), head_dim)
            count = 32 if format.key_axis == "channel" else 37
            check(f"{format.name}-{head_dim}", caches.filled_cache(layouts, [(0, 1)], [[(count, 3)]]), 3, 2)


def groups() -> None:
    layouts = caches.layouts_for((K8V4, K4V2), 64)
    for group in (1, 2, 4, 7, 8, 9):
        filled = caches.filled_cache(layouts, [(0, 1)], [[(33, 2)]], amplitude=328)
        check(f"group-{group}", filled, group, 2)


def loud_queries() -> None:
    """Biases make queries of hundreds as well as keys; no product on the way may leave float16."""
    for format in (FP8, FP16, K8V4, K3V2, KIVI2):
        layouts = caches.layouts_for((format, K4V2), 64)
        filled = caches.filled_cache(layouts, [(0, 1)], [[(32, 3)]], amplitude=328 if format != FP8 else 20)
        check(f"loud-{format.name}", filled, 2, 2, loud=400)


def cancelling_queries() -> None:
    """Queries of float32 against keys that swing by 328: what float16 loses of a query moves the logits by 0.03."""
    for format in (K8V4, FP16, FP8, KIVI4):
        layouts = caches.layouts_for((format, K4V2), 64)
        filled = caches.filled_cache(layouts, [(0, 1)], [[(32, 3)]], swing=328)
        check(f"cancelling-{format.name}", filled, 2, 2, torch.float32, cancelling=True)


def lengths() -> None:
    layouts = caches.layouts_for((K8V4, K4V2), 128)
    high, low = layouts[0].tokens, layouts[1].tokens
    ragged = [[(1, 0)], [(0, 1)], [(high, 0)], [(high + 1, low + 1)], [(0, low)], [(3 * high - 1, 2)]]
    check("lengths", caches.filled_cache(layouts, [(0, 1)] * len(ragged), ragged), 2, 3)


def policies() -> None:
    layouts = caches.layouts_for((FP16, K8V4, K4V2, K4V4, K3V2, KIVI2), 64)
    tiers = [(0, -1), (1, 2), (3, 4), (0, 5)]
    held = [[(20, 0)], [(33, 10)], [(10, 20)], [(5, 32)]]
    filled = caches.filled_cache(layouts, tiers, held, rotated=[False, False, True, False])
    check("policies", filled, 2, 2, torch.bfloat16)


def centred_by_position() -> None:
    """Positions of 32 and of 24 bits, groups beyond a program's, a batch in which others are not centred so."""
    tiers, held = [(0, 1), (0, 1), (1, -1)], [[(40, 10)], [(33, 10)], [(20, 0)]]
    for head_dim, bookkeeping, group, amplitude in ((64, 8, 3, 1), (96, 5, 2, 1), (128, 8, 9, 300)):
        formats = (K8V4, K3V2)
        size = page_bytes_for(head_dim, formats, bookkeeping)
        layouts = tuple(layout_of(format, head_dim, size, bookkeeping) for format in formats)
        options = {"rotated": [True, False, True], "turning": [True, True, False]}
        filled = caches.filled_cache(layouts, tiers, held, amplitude, **options)
        check(f"by-position-{head_dim}-{bookkeeping}", filled, group, 2)


if __name__ == "__main__":
    cases = sys.argv[1:] or ["formats", "groups", "loud", "cancelling", "lengths", "policies", "position"]
    everything = tuple(sorted({f for f in FORMATS.values() if f.k_bits <= 16}, key=lambda f: f.name))
    if "formats" in cases:
        formats((64,), everything)
        formats((96,), (FP16, K3V2, K4V2_24, KIVI2, KIVI4))
        formats((128,), (FP8, K8V4, K4V2, K3V2, KIVI4))
        formats((256,), (K8V4, K4V2))
    if "groups" in cases:
        groups()
    if "loud" in cases:
        loud_queries()
    if "cancelling" in cases:
        cancelling_queries()
    if "lengths" in cases:
        lengths()
    if "policies" in cases:
        policies()
    if "position" in cases:
        centred_by_position()
