"""Run under TRITON_INTERPRET=1: the store and gather kernels against the vectorised form, byte for byte."""

from __future__ import annotations

import torch

from leankv.kernels.layout import new_pool
from leankv.kernels.store import Tokens, gather, store
from leankv.kernels.transforms import KeyTransform
from leankv.serving.formats import FORMATS, FP8, FP16, K2V4, K3V2, K4V2, K8V4, KIVI2, KIVI4, KVFormat
from leankv.serving.pages import layout_of, page_bytes_for

HEADS = 2


def check(format: KVFormat, head_dim: int, bookkeeping: int, centred: bool = False, rotated: bool = False) -> None:
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
    transform = KeyTransform(tokens.keys.float().mean(0) if centred else None, rotated)
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
    print(f"{format.name}-{head_dim}-{bookkeeping} centred {centred} rotated {rotated}: {different:.1e}", flush=True)


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
    non_finite()
