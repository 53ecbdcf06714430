"""Run under TRITON_INTERPRET=1: the store and gather kernels against the vectorised form, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import torch

from leankv.kernels.layout import new_pool
from leankv.kernels.rope import turns_of
from leankv.kernels.store import Tokens, gather, store
from leankv.kernels.transforms import KeyTransform
from leankv.serving.formats import FORMATS, FP8, FP16, K2V4, K3V2, K4V2, K8V4, KIVI2, KIVI4, KVFormat
from leankv.serving.pages import layout_of, page_bytes_for

HEADS = 2


def check(
    format: KVFormat,
    head_dim: int,
    bookkeeping: int,
    centred: bool = False,
    rotated: bool = False,
    turning: bool = False,
) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    layout = layout_of(format, head_dim, page_bytes_for(head_dim, (format, K4V2), bookkeeping), bookkeeping)
    n = 32 if format.key_axis == "channel" else 5
    level = 5 * torch.randn(1, HEADS, head_dim, generator=generator)
    tokens = Tokens(
        (torch.randn(n, HEADS, head_dim, generator=generator) + level).half(),
        torch.randn(n, HEADS, head_dim, generator=generator).half(),
        torch.rand(n, HEADS, generator=generator),
        torch.randint(0, 2**24, (n, HEADS), generator=generator, dtype=torch.int32),
    )
    turns = turns_of(100 ** -torch.linspace(0, 1, head_dim // 4), 50) if turning else None
    if turning:
        tokens = replace(tokens, positions=tokens.positions % 50)
    transform = KeyTransform(tokens.keys.float().mean(0) if centred else None, rotated, turns)
    places = torch.arange(n)[:, None].expand(n, HEADS).contiguous()
    pages = torch.tensor([[2, 0]]).expand(n, HEADS).clone()
    if format.key_axis == "token":
        pages[n - 1, 1] = -1
    ours, theirs = (new_pool(3, layout.page_bytes).fill_(0x5A) for _ in range(2))
    errors = torch.zeros(1, dtype=torch.int32)
    store(ours, layout, pages, places, tokens, transform, errors, path="triton")
    store(theirs, layout, pages, places, tokens, transform, path="torch")
    different = float((ours != theirs).float().mean())
    # A rotation in two float16 halves is not float32's to the last bit, so a code may fall to the other side.
    assert different <= (3e-3 if rotated else 0), f"{different:.1e} of the bytes differ"
    assert int(errors) == 0
    # A program reads one token, and the interpreter is slow: the first, one in the middle, and the last (skipped) one.
    few = pages[:: (n - 1) // 2].contiguous(), places[:: (n - 1) // 2].contiguous()
    back, oracle = (gather(ours, layout, *few, transform, path=path) for path in ("triton", "torch"))
    torch.testing.assert_close(back.keys, oracle.keys, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back.values, oracle.values, rtol=1e-6, atol=1e-6)
    assert torch.equal(back.scores, oracle.scores) and torch.equal(back.positions, oracle.positions)
    about = f"centred {centred} rotated {rotated} turning {turning}"
    print(f"{format.name}-{head_dim}-{bookkeeping} {about}: {different:.1e}", flush=True)


def non_finite() -> None:
    layout = layout_of(K8V4, 64)
    tokens = Tokens(torch.ones(2, 1, 64), torch.ones(2, 1, 64), torch.zeros(2, 1), torch.zeros(2, 1))
    tokens.keys[1, 0, 7] = float("nan")
    pool, errors = new_pool(1, layout.page_bytes), torch.zeros(1, dtype=torch.int32)
    pages, places = torch.zeros(2, 1, dtype=torch.int32), torch.tensor([[0], [1]])
    store(pool, layout, pages, places, tokens, errors=errors, path="triton")
    found = gather(pool, layout, pages, places, path="triton")
    assert int(errors) == 1 and bool(found.keys.isfinite().all()) and abs(float(found.keys[1, 0, 7])) < 0.01
    print("non-finite rows are counted", flush=True)


def beyond_float16() -> None:
    """Raw, centred or rotated beyond float16's range: counted, stored as zeros, and the other rows as ever."""
    for format in (K8V4, FP16, FP8, KIVI2):
        layout = layout_of(format, 64, page_bytes_for(64, (format, K4V2)))
        n = 32 if format.key_axis == "channel" else 3
        for transform, keys in (
            (KeyTransform(), 70000.0),
            (KeyTransform(), -70000.0),
            (KeyTransform(torch.full((1, 64), -60000.0)), 60000.0),
            (KeyTransform(rotated=True), 60000.0),
            (KeyTransform(rotated=True), float("inf")),
        ):
            if format.key_axis == "channel" and (transform.rotated or transform.mean is not None):
                continue
            tokens = Tokens(torch.ones(n, 1, 64), torch.ones(n, 1, 64), torch.zeros(n, 1), torch.zeros(n, 1).int())
            tokens.keys[1] = keys
            pool, errors = new_pool(1, layout.page_bytes), torch.zeros(1, dtype=torch.int32)
            pages, places = torch.zeros(n, 1, dtype=torch.int64), torch.arange(n)[:, None]
            store(pool, layout, pages, places, tokens, transform, errors, path="triton")
            assert int(errors) == 1, (format.name, keys, int(errors))
            found = gather(pool, layout, pages[:2], places[:2].contiguous(), path="triton")
            assert bool(found.keys.isfinite().all()) and bool(found.values.isfinite().all()), (format.name, keys)
            for path in ("torch", "reference"):
                try:
                    store(new_pool(1, layout.page_bytes), layout, pages, places, tokens, transform, path=path)
                except ValueError as error:
                    assert "65504" in str(error), error
                else:
                    raise AssertionError(f"{path} stored {keys}")
    print("keys beyond float16's range are counted", flush=True)


def top_of_the_range() -> None:
    """What lies just within the range comes back within it, so that a tier below can store it again."""
    layout, below = (layout_of(f, 64, page_bytes_for(64)) for f in (K8V4, K4V2))
    keys = torch.linspace(-65504, 65504, 64).view(1, 1, 64)
    where = torch.zeros(1, 1, dtype=torch.int64)
    for path in ("triton", "torch", "reference"):
        pool, errors = new_pool(1, layout.page_bytes), torch.zeros(1, dtype=torch.int32)
        store(pool, layout, where, where, Tokens(keys, keys, torch.zeros(1, 1), where.int()), errors=errors, path=path)
        found = gather(pool, layout, where, where, path=path)
        assert float(found.keys.max()) == 65504, path
        store(pool, below, where, where, found, errors=errors, path=path)
        assert int(errors) == 0, path
    print("the top of the range can be requantized", flush=True)


def short_scale() -> None:
    """A range of three steps of 1 in float32, whose largest element is a little beyond the third."""
    layout = layout_of(K2V4, 64)
    keys = torch.tensor([-3.0, 1e-8] * 32).view(1, 1, 64)
    tokens = Tokens(keys, keys, torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int32))
    where = torch.zeros(1, 1, dtype=torch.int32)
    pools = [new_pool(1, layout.page_bytes).fill_(0) for _ in range(2)]
    for pool, path in zip(pools, ("triton", "torch"), strict=True):
        store(pool, layout, where, where, tokens, errors=torch.zeros(1, dtype=torch.int32), path=path)
    assert torch.equal(*pools)
    print("a scale that came out short is raised", flush=True)


if __name__ == "__main__":
    short_scale()
    for each in sorted({f for f in FORMATS.values() if f.k_bits <= 16}, key=lambda f: f.name):
        check(each, 64, 8)
    for each in (FP16, FP8, K3V2, KIVI4):
        check(each, 96, 5)
    for each in (FP8, K8V4, KIVI2):
        check(each, 128, 0)
    check(K4V2, 256, 8)
    for head_dim in (64, 96, 128):
        check(K4V2, head_dim, 8, centred=True, rotated=True)
    check(K3V2, 64, 8, rotated=True)
    check(K8V4, 64, 8, centred=True)
    check(K3V2, 96, 5, centred=True, turning=True)
    non_finite()
    beyond_float16()
    top_of_the_range()
