"""What the compile report covers beside attention: the page manager, the decode step and the prefill scores."""

from __future__ import annotations

from collections.abc import Iterator

from leankv.kernels import (
    classify_triton,
    decode_step_triton,
    move_triton,
    pages_triton,
    recompress_triton,
    scores_triton,
    significance_triton,
)
from leankv.kernels.bookkeeping_triton import fields
from leankv.kernels.compile_report import Variant
from leankv.serving.formats import K4V2, K8V4
from leankv.serving.pages import PAGE_BYTES_128, layout_of

MAX_PAGES = 1024
BLOCKS = 128


def cache_variants() -> Iterator[Variant]:
    """Kernels of the cache at Llama-3-8B's shape: head_dim 128, a group of 4, K8V4 and K4V2."""
    yield from _page_manager()
    for bookkeeping in (8, 5):
        yield from _decode_step(bookkeeping)
    yield from _significance()
    yield from _classification()
    for bookkeeping in (8, 5):
        yield from _recompression(bookkeeping)


def _page_manager() -> Iterator[Variant]:
    asked = dict.fromkeys(("rows", "tokens", "per_page", "counts", "held_per_page"), "*i32")
    lists = dict.fromkeys(("table", "free_list", "state", "scratch"), "*i32")
    block = {"MAX_PAGES": MAX_PAGES, "BLOCK": pages_triton.BLOCK_ROWS}
    numbers = dict.fromkeys(("number", "pages", "blocks"), "i32")
    yield Variant("pages: count", pages_triton.count_kernel, {**asked, "scratch": "*i32", "number": "i32"}, block)
    for name in ("release", "acquire"):
        kernel = getattr(pages_triton, f"{name}_kernel")
        yield Variant(f"pages: {name}", kernel, {**asked, **lists, **numbers}, {**block, "BLOCKS": BLOCKS})
    yield Variant(
        "pages: commit",
        pages_triton.commit_kernel,
        {"state": "*i32", "scratch": "*i32", "pages": "i32", "blocks": "i32"},
        {"BLOCKS": BLOCKS},
    )


def _decode_step(bookkeeping: int) -> Iterator[Variant]:
    lean = bookkeeping == 5
    stored = {"scores": "*fp16" if lean else "*fp32", "positions": "*u8" if lean else "*i32"}
    tables = dict.fromkeys(("table", "counts", "rows", "position", "prompt"), "*i32")
    high, low = (layout_of(f, 128, PAGE_BYTES_128, bookkeeping) for f in (K8V4, K4V2))
    shape = {"SCORE_WINDOW": 64, "MAX_PAGES": MAX_PAGES, "PAGE_BYTES": PAGE_BYTES_128, "IS_LEAN": lean}
    high_fields = dict(zip(("TOKENS", "SCORES", "POSITIONS"), fields(high), strict=True))
    low_fields = dict(zip(("LOW_TOKENS", "LOW_SCORES", "LOW_POSITIONS"), fields(low), strict=True))
    limits = {"alpha_low": "*fp32", "alpha_high": "*fp32", "capacity": "*i32", "recent": "*i32"}
    results = dict.fromkeys(("case_out", "place_out", "spare_out", "wanted_out"), "*i32")
    block = {"BLOCK": decode_step_triton.BLOCK_TOKENS}
    for kind in ("heavy", "thresholds"):
        yield Variant(
            f"decode: plan, {kind}, {bookkeeping} B",
            decode_step_triton.plan_kernel,
            {**stored, **tables, **limits, **results},
            {"KIND": kind, "SINK": 0, **shape, **high_fields, **low_fields, **block},
            decode_step_triton.NUM_WARPS,
        )
    yield Variant(
        f"decode: scores, {bookkeeping} B",
        scores_triton.update_kernel,
        {**stored, **tables, "gains": "*fp32", "gain_stride": "i32"},
        {"TIER": 1, **shape, **high_fields, "BLOCK": scores_triton.BLOCK_TOKENS},
    )


def _significance() -> Iterator[Variant]:
    tensors = {"queries": "*fp16", "keys": "*fp16", "normaliser": "*fp32"}
    numbers = {"window": "i32", "tokens": "i32", "scale": "fp32", "splits": "i32"}
    shape = {
        "GROUP": 4,
        "KV_HEADS": 8,
        "HEAD_DIM": 128,
        "DIM": 128,
        "BLOCK_QUERIES": significance_triton.BLOCK_QUERIES,
        "BLOCK_KEYS": significance_triton.BLOCK_KEYS,
    }
    yield Variant(
        "significance: normaliser",
        significance_triton.normaliser_kernel,
        {**tensors, **numbers, "split_keys": "i32"},
        shape,
        significance_triton.NUM_WARPS,
    )
    yield Variant(
        "significance: scores",
        significance_triton.score_kernel,
        {**tensors, "scores": "*fp32", **numbers},
        {"SPLITS": significance_triton.MAX_SPLITS, "MEAN": False, "EACH": False, **shape},
        significance_triton.NUM_WARPS,
    )


def _classification() -> Iterator[Variant]:
    tokens = {"significance": "*fp32", "positions": "*i32", "length": "*i32", "tiers": "*i8"}
    block = {"WINDOW": 64, "BLOCK": classify_triton.BLOCK}
    strides = dict.fromkeys(("prune_stride_h", "prune_stride_t", "low_stride_h", "low_stride_t"), "i32")
    thresholds = {"prune_below": "*fp32", "low_below": "*fp32"}
    yield Variant(
        "classify: threshold",
        classify_triton.threshold_kernel,
        {**tokens, **thresholds, "tokens": "i32", **strides},
        block,
    )
    shares = {"PRUNE": 0.01, "LOW_SHARE": 0.2}
    ragged = {**tokens, "held": "*i32", "width": "i32"}
    yield Variant("classify: mass", classify_triton.mass_kernel, ragged, {**shares, "RAGGED": True, **block})


def _recompression(bookkeeping: int) -> Iterator[Variant]:
    lean = bookkeeping == 5
    high, low = (layout_of(f, 128, PAGE_BYTES_128, bookkeeping) for f in (K8V4, K4V2))
    shape = {"SCORE_WINDOW": 64, "MAX_PAGES": MAX_PAGES, "PAGE_BYTES": PAGE_BYTES_128, "IS_LEAN": lean}
    high_fields = dict(zip(("TOKENS", "SCORES", "POSITIONS"), fields(high), strict=True))
    low_fields = dict(zip(("LOW_TOKENS", "LOW_SCORES", "LOW_POSITIONS"), fields(low), strict=True))
    stored = {"scores": "*fp16" if lean else "*fp32", "positions": "*u8" if lean else "*i32"}
    numbers = dict.fromkeys(("table", "counts", "rows", "position", "prompt"), "*i32")
    found = {"significance": "*fp32", "found": "*i32", "held": "*i32", "width": "i32"}
    block = {"BLOCK": recompress_triton.BLOCK}
    yield Variant(
        f"recompress: read, {bookkeeping} B",
        recompress_triton.read_kernel,
        {**stored, **numbers, **found},
        {**shape, **high_fields, **low_fields, **block},
    )
    if not lean:
        lists = dict.fromkeys(
            ("counts", "rows", "sources", "targets", "demoted", "wanted", "grown", "moves"), "*i32"
        )  # fmt: skip
        arguments = {"tiers": "*i8", **lists, "width": "i32", "number": "i32"}
        yield Variant("recompress: lists", recompress_triton.list_kernel, arguments, block)
    walked = dict.fromkeys(("table", "rows", "sources", "first", "number"), "*i32")
    at_once = {"MAX_PAGES": MAX_PAGES, "BLOCK": move_triton.TOKENS_AT_ONCE}
    yield Variant(
        f"recompress: copy, {bookkeeping} B",
        move_triton.copy_kernel,
        {"pool8": "*u8", **walked, "targets": "*i32", "stride": "i32"},
        {
            "FIELDS": move_triton.fields_of(high),
            "TIER": 0,
            "TOKENS": high.tokens,
            "PAGE_BYTES": PAGE_BYTES_128,
            **at_once,
        },
    )
    pools = {"pool8": "*u8", "pool16": "*i16", "pool32": "*i32"}
    layouts = {"FROM": move_triton.constants_of(high), "TO": move_triton.constants_of(low)}
    yield Variant(
        f"recompress: requantize, {bookkeeping} B",
        move_triton.requantize_kernel,
        {**pools, **walked, "scratch": "*fp32", "errors": "*i32", "stride": "i32"},
        {**layouts, **at_once},
    )
