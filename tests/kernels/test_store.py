"""Storing tokens in pages and reading them back: every format, head_dim and bookkeeping, both torch forms."""

from __future__ import annotations

import pytest
import torch

from leankv.kernels.layout import new_pool
from leankv.kernels.store import Tokens, gather, store
from leankv.kernels.transforms import AS_THEY_ARE, KeyTransform
from leankv.serving.formats import FORMATS, FP8, FP16, FP32, K4V2, K8V4, KIVI2, KVFormat
from leankv.serving.pages import PageLayout, layout_of

HEAD_DIMS = (64, 96, 128, 256)
HEADS = 2
ALL = sorted({FP32, *FORMATS.values()}, key=lambda f: f.name)


def layout_for(format: KVFormat, head_dim: int, bookkeeping: int = 8) -> PageLayout:
    size = max(layout_of(format, head_dim, None if head_dim != 128 else 6784, bookkeeping).page_bytes, 1024)
    return layout_of(format, head_dim, size, bookkeeping)


def some_tokens(n: int, head_dim: int, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    level = 8 * torch.randn(1, HEADS, head_dim, generator=generator)
    keys = torch.randn(n, HEADS, head_dim, generator=generator) + level
    values = torch.randn(n, HEADS, head_dim, generator=generator)
    positions = torch.randint(0, 2**24, (n, HEADS), generator=generator, dtype=torch.int32)
    return Tokens(keys, values, torch.rand(n, HEADS, generator=generator), positions)


def some_places(n: int, layout: PageLayout, pages: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct (page, place) pairs for n tokens of each head; whole groups where keys are per channel."""
    generator = torch.Generator().manual_seed(seed)
    size = layout.format.group_tokens if layout.format.key_axis == "channel" else 1
    groups = torch.randperm(pages * layout.tokens // size, generator=generator)[: n // size * HEADS]
    first = (groups * size).view(n // size, 1, HEADS) + torch.arange(size)[None, :, None]
    linear = first.reshape(n, HEADS)
    return (linear // layout.tokens).int(), (linear % layout.tokens).int()


def assert_close_to_stored(tokens: Tokens, found: Tokens, layout: PageLayout) -> None:
    """Within half a step of each group's own range (which the stored step exceeds by float16 rounding only)."""
    format = layout.format
    for x, y, bits, groups in (
        (tokens.keys, found.keys, format.k_bits, format.k_groups),
        (tokens.values, found.values, format.v_bits, format.value_groups(layout.head_dim)),
    ):
        if format.kind == "float":
            torch.testing.assert_close(y, x, rtol=2**-4 if bits == 8 else 2**-11, atol=2**-10)
            continue
        if x is tokens.keys and format.key_axis == "channel":
            grouped, back = x.unflatten(0, (-1, 32)).movedim(1, -1), y.unflatten(0, (-1, 32)).movedim(1, -1)
        else:
            grouped, back = x.unflatten(-1, (groups, -1)), y.unflatten(-1, (groups, -1))
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        half = ((high - low) * (1 + 2**-9) + low.abs() * 2**-9) / (2**bits - 1) / 2
        assert bool(((back - grouped).abs() <= half + 1e-5).all())


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("format", ALL, ids=lambda f: f.name)
def test_round_trip_and_both_forms_write_the_same_bytes(format: KVFormat, head_dim: int) -> None:
    layout = layout_for(format, head_dim)
    n = 32 if format.key_axis == "channel" else 4
    tokens = some_tokens(n, head_dim)
    pages, places = some_places(n, layout, 8)
    pools = {}
    for path in ("reference", "torch"):
        pools[path] = new_pool(8, layout.page_bytes).fill_(0xA5)
        store(pools[path], layout, pages, places, tokens, path=path)
        found = gather(pools[path], layout, pages, places, path=path)
        assert_close_to_stored(tokens, found, layout)
        assert torch.equal(found.scores, tokens.scores) and torch.equal(found.positions, tokens.positions)
    assert float((pools["reference"] != pools["torch"]).float().mean()) < 1e-3
    crossed = gather(pools["reference"], layout, pages, places, path="torch")
    oracle = gather(pools["reference"], layout, pages, places, path="reference")
    torch.testing.assert_close(crossed.keys, oracle.keys, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(crossed.values, oracle.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", ("reference", "torch"))
@pytest.mark.parametrize("bookkeeping", (0, 5, 8))
def test_bookkeeping(bookkeeping: int, path: str) -> None:
    layout = layout_for(K4V2, 64, bookkeeping)
    tokens = some_tokens(5, 64)
    pages, places = some_places(5, layout, 4)
    pool = new_pool(4, layout.page_bytes)
    store(pool, layout, pages, places, tokens, path=path)
    found = gather(pool, layout, pages, places, path=path)
    if bookkeeping == 0:
        assert not found.scores.any() and bool((found.positions == -1).all())
    else:
        torch.testing.assert_close(found.scores, tokens.scores, rtol=1e-3 if bookkeeping == 5 else 0, atol=0)
        assert torch.equal(found.positions, tokens.positions)


@pytest.mark.parametrize("path", ("reference", "torch"))
@pytest.mark.parametrize("format", (FP16, FP8, K8V4, KIVI2), ids=lambda f: f.name)
def test_negative_pages_are_skipped_and_nothing_else_is_touched(format: KVFormat, path: str) -> None:
    layout = layout_for(format, 64)
    n = 64 if format.key_axis == "channel" else 10
    tokens = some_tokens(n, 64)
    pages, places = some_places(n, layout, 16)
    pages[: n // 2, 1] = -1
    tokens.keys[3, 1] = float("nan")
    pool = new_pool(16, layout.page_bytes).fill_(7)
    store(pool, layout, pages, places, tokens, path=path)
    found = gather(pool, layout, pages, places, path=path)
    assert not found.keys[: n // 2, 1].any() and not found.values[: n // 2, 1].any()
    written = {(int(p), int(q)) for p, q in zip(pages.flatten(), places.flatten(), strict=True) if p >= 0}
    others = [(p, q) for p in range(16) for q in range(layout.tokens) if (p, q) not in written]
    page, place = torch.tensor(others).T[:, :, None]
    positions = gather(pool, layout, page, place, path="torch").positions
    assert bool((positions == 0x07070707).all())


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("rotated", (False, True))
@pytest.mark.parametrize("centred", (False, True))
def test_transformed_keys_come_back(head_dim: int, rotated: bool, centred: bool) -> None:
    layout = layout_for(K8V4, head_dim)
    tokens = some_tokens(40, head_dim)
    transform = KeyTransform(tokens.keys.mean(0) if centred else None, rotated)
    pages, places = some_places(40, layout, 8)
    pool = new_pool(8, layout.page_bytes)
    store(pool, layout, pages, places, tokens, transform)
    error = (gather(pool, layout, pages, places, transform).keys - tokens.keys).norm()
    plain = new_pool(8, layout.page_bytes)
    store(plain, layout, pages, places, tokens, AS_THEY_ARE)
    without = (gather(plain, layout, pages, places).keys - tokens.keys).norm()
    # The level of these heads differs by channel, so centring must pay; a rotation alone must at least not hurt much.
    assert error < (0.5 if centred else 1.5) * without


@pytest.mark.parametrize("path", ("reference", "torch"))
def test_non_finite_tokens_are_refused(path: str) -> None:
    layout = layout_for(K8V4, 64)
    tokens = some_tokens(2, 64)
    tokens.values[1, 0, 5] = float("inf")
    pages, places = some_places(2, layout, 2)
    with pytest.raises(ValueError, match="finite"):
        store(new_pool(2, layout.page_bytes), layout, pages, places, tokens, path=path)
