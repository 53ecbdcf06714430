"""Pages: the published table, alignment, room, and our own search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.formats import FORMATS, FP8, FP16, K3V2, K4V2, K8V4, KIVI2, KVFormat, format_named
from leankv.serving.pages import (
    PAGE_BYTES_128,
    PUBLISHED_TOKENS_128,
    layout_of,
    page_bytes_for,
    uniform_page_bytes,
)

HEAD_DIMS = (64, 96, 128, 256)


@pytest.mark.parametrize(("format", "tokens"), PUBLISHED_TOKENS_128.items(), ids=lambda v: getattr(v, "name", v))
def test_published_counts_fit_in_the_published_page(format: KVFormat, tokens: int) -> None:
    layout = layout_of(format, 128)
    assert (layout.page_bytes, layout.tokens) == (PAGE_BYTES_128, tokens)
    assert layout.used_bytes <= PAGE_BYTES_128


def test_published_counts() -> None:
    counts = {format.name: tokens for format, tokens in PUBLISHED_TOKENS_128.items()}
    assert counts == {"K8V8": 24, "K8V4": 32, "K8V2": 37, "K4V4": 46, "K4V2": 60, "K4V1": 69, "FP16": 13}


def test_k8v4_segments_as_published() -> None:
    layout = layout_of(K8V4, 128)
    assert [offset for offset, _ in layout.segments.values()] == [0, 4096, 4224, 6272, 6400, 6528]
    assert layout.used_bytes == 6656


def test_ideal_bytes_and_physical_ratios_of_the_paper() -> None:
    ratios = {name: round(layout_of(format_named(name), 128).physical_ratio, 2) for name in ("K8V4", "K4V2", "K4V1")}
    assert ratios == {"K8V4": 2.42, "K4V2": 4.53, "K4V1": 5.21}
    assert K8V4.bytes_per_token(128) + 8 == 208
    assert KIVI2.bytes_per_token(128) == 64 + 16 + 16


@given(st.sampled_from(sorted(FORMATS)), st.sampled_from(HEAD_DIMS), st.sampled_from((0, 5, 8)), st.integers(20, 200))
def test_segments_are_aligned_disjoint_and_inside(name: str, head_dim: int, bookkeeping: int, lines: int) -> None:
    try:
        layout = layout_of(FORMATS[name], head_dim, lines * 128, bookkeeping)
    except ValueError:
        # Only where the page is smaller than one token, or one group of 32 for keys per channel.
        least = 32 if FORMATS[name].key_axis == "channel" else 1
        assert lines * 128 < least * (FORMATS[name].bytes_per_token(head_dim) + bookkeeping) + 4 * 32 + 128
        return
    assert layout.segments["values"][0] % 128 == 0
    end = 0
    for offset, size in layout.segments.values():
        assert offset >= end
        assert size == 0 or offset % 32 == 0
        end = offset + size
    assert end <= layout.page_bytes
    per_token = FORMATS[name].bytes_per_token(head_dim) + bookkeeping
    assert sum(size for _, size in layout.segments.values()) == pytest.approx(layout.tokens * per_token)


@given(st.sampled_from(HEAD_DIMS), st.sets(st.sampled_from([FP16, FP8, K8V4, K4V2, K3V2, KIVI2]), min_size=1))
def test_searched_page_is_the_least_wasteful_in_its_window(head_dim: int, formats: set[KVFormat]) -> None:
    def worst(size: int) -> float:
        try:
            layouts = [layout_of(f, head_dim, size) for f in formats]
        except ValueError:
            return 1.0
        return max(1 - x.tokens * (x.format.bytes_per_token(head_dim) + 8) / size for x in layouts)

    wanted = sorted(formats, key=lambda f: f.name)
    if head_dim == 128 and len(formats) > 1 and formats <= set(PUBLISHED_TOKENS_128):
        assert page_bytes_for(head_dim, wanted) == PAGE_BYTES_128
        return
    chosen = page_bytes_for(head_dim, wanted)
    assert chosen % 128 == 0 and worst(chosen) < 1
    assert all(worst(size) >= worst(chosen) for size in range(head_dim * 32, head_dim * 64 + 1, 128))


def test_uniform_pool_of_float16_has_sixteen_tokens_and_no_slack() -> None:
    for head_dim in HEAD_DIMS:
        size = uniform_page_bytes(FP16, head_dim)
        assert size == 16 * FP16.bytes_per_token(head_dim)
        assert layout_of(FP16, head_dim, size, bookkeeping=0).tokens == 16


def test_names_and_bad_formats() -> None:
    assert all(format_named(name).name == name for name in ("FP16", "FP8", "K8V4", "K3V2", "KIVI-2", "K4V2g2.4"))
    with pytest.raises(ValueError, match="no KV format"):
        format_named("K9000")
    with pytest.raises(ValueError, match="bits"):
        KVFormat(5, 4)
    with pytest.raises(ValueError, match="holds no token"):
        layout_of(FP16, 256, 128)
