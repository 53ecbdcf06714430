"""What the compiler makes of the Triton kernels, without a GPU: registers, spills, shared memory, width of loads.

`leankv bench kernels --compile` prints this report; a test holds it to its limits. Compiling needs Triton's own
compiler and assembler only.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leankv.kernels import (
    attention_kernels,
    attention_triton,
    rope_triton,
    rotation_triton,
    store_kernels,
    store_triton,
)
from leankv.kernels.codecs import codec_of
from leankv.kernels.transforms import rotation_block
from leankv.serving.formats import FP8, FP16, K3V2, K4V2, K4V4, K8V4, KIVI2, KVFormat
from leankv.serving.pages import layout_of, page_bytes_for

CAPABILITIES = (80, 90)


@dataclass(frozen=True)
class Variant:
    """A kernel with everything that is fixed when it is compiled.

    `arguments`: name -> Triton type (`*i16`, `i32`, `fp32`, ...) or, for a constexpr, its value.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Compiled:
    """What came out for one GPU architecture.

    `spilled_bytes` is local memory (stack included); `loads` counts the widths in bytes of loads from device memory, to
    registers and to shared memory; `loop` is the number of machine instructions of the longest loop that multiplies
    matrices.
    """

    name: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    loads: Mapping[int, int]
    loop: int

    @property
    def line(self) -> str:
        """One row of the printed report."""
        loads = ", ".join(f"{count} x {width} B" for width, count in sorted(self.loads.items(), reverse=True))
        return (
            f"{self.name:<28} sm_{self.capability} {self.registers:>4} registers {self.spilled_bytes:>3} B spilled "
            f"{self.shared_bytes:>6} B shared  loop {self.loop:>5}  loads: {loads}"
        )


HEADER = "kernel, architecture, registers a thread, local memory, shared memory, instructions in the main loop, loads"


def attention_variant(
    formats: tuple[KVFormat, ...], head_dim: int, group: int, keep_weights: bool = True, by_position: bool = False
) -> Variant:
    """The split kernel for a pool of `formats`, at the launch parameters in use; for keys centred by position."""
    size = page_bytes_for(head_dim, formats)
    layouts = tuple(layout_of(format, head_dim, size) for format in formats)
    pointers = {
        "pool8": "*u8", "pool16": "*i16", "pool32": "*i32", "query": "*fp16", "page_table": "*i32",
        "token_counts": "*i32", "tier_formats": "*i32", "slots": "*i32", "partial": "*fp32", "partial_lse": "*fp32",
        "weights": "*fp16", "maxima": "*fp32", "products": "*fp32",
    }  # fmt: skip
    integers = (
        "table_slot",
        "table_head",
        "counts_slot",
        "counts_head",
        "capacity",
        "max_tiles",
        "max_pages",
        "positions",
        "splits",
    )
    constants = {
        "CODECS": tuple(codec_of(layout) for layout in layouts),
        "PAGE_WORDS": size // 2,
        "HEAD_DIM": head_dim,
        "GROUP": group,
        "KV_HEADS": 8,
        "TILE": attention_triton.TILE,
        "LEAST_TILES": attention_triton.LEAST_TILES,
        "KEEP_WEIGHTS": keep_weights,
        "BY_POSITION": by_position,
        "ASM": True,
    }
    return Variant(
        f"attention {'+'.join(f.name for f in formats)} {head_dim}{' by position' if by_position else ''}",
        attention_kernels.split_kernel,
        {**pointers, "scale": "fp32", **dict.fromkeys(integers, "i32")},
        constants,
        attention_triton.warps_for(layouts),
        attention_triton.NUM_STAGES,
    )


def other_variants() -> Iterator[Variant]:
    """The kernels around the split kernel."""
    yield Variant(
        "attention: merge",
        attention_kernels.merge_kernel,
        {"partial": "*fp32", "partial_lse": "*fp32", "lse": "*fp32", "output": "*fp16", "splits": "i32"},
        {"HEAD_DIM": 128, "PADDED_DIM": 128, "PADDED_SPLITS": 16},
    )
    pointers = {"weights": "*fp16", "maxima": "*fp32", "lse": "*fp32", "token_counts": "*i32", "slots": "*i32"}
    integers = ("counts_slot", "counts_head", "capacity", "max_tiles", "out_request", "out_head")
    yield Variant(
        "attention: contributions",
        attention_kernels.contributions_kernel,
        {**pointers, "contributions": "*fp32", **dict.fromkeys(integers, "i32")},
        {"GROUP": 4, "KV_HEADS": 8, "TILE": attention_triton.TILE, "BLOCK": attention_triton.CONTRIBUTION_BLOCK},
    )
    arguments = {"query": "*fp16", "rotated_slots": "*i32", "slots": "*i32", "out": "*fp32", "heads": "i32"}
    shape = {"HEAD_DIM": 128, "PADDED": 128, "BLOCK": 128, "ROWS": rotation_triton.ROWS}
    yield Variant("attention: rotate queries", rotation_triton.queries_kernel, arguments, shape)
    tables = {"mean": "*fp32", "turns": "*fp32", "chosen": "*i32", "lengths": "*i32"}
    arguments = {"query": "*fp16", **tables, "slots": "*i32", "out": "*fp32", "positions": "i32"}
    shape = {"PAIRS": 64, "PADDED": 64, "HEAD_DIM": 128, "GROUP": 4, "KV_HEADS": 8, "BLOCK": rope_triton.BLOCK}
    yield Variant("attention: products by position", rope_triton.products_kernel, arguments, shape)


def store_variants(format: KVFormat, head_dim: int, rotated: bool = False) -> Iterator[Variant]:
    """Storing and gathering one format; keys per channel have a kernel of their own."""
    layout = layout_of(format, head_dim, page_bytes_for(head_dim, (format, K4V2)))
    constants = store_triton.layout_constants(layout)
    pool = {"pool8": "*u8", "pool16": "*i16", "pool32": "*i32", "pages": "*i32", "places": "*i64"}
    transform = {"CENTRED": rotated, "BLOCK": rotation_block(head_dim) if rotated else 0}
    name = f"{format.name} {head_dim}{' centred, rotated' if rotated else ''}"
    strides = dict.fromkeys(("key_token", "key_head", "value_token", "value_head"), "i32")
    given = {"keys": "*fp16", "values": "*fp16", "scores": "*fp32", "positions": "*i32"}
    beside = {"mean": "*fp32", "mean_token": "i32", "errors": "*i32", "heads": "i32"}
    yield Variant(
        f"store {name}",
        store_kernels.store_kernel,
        {**pool, **given, **beside, "rows": "i32", **strides},
        {**transform, **constants, "ROWS": store_triton.ROWS},
    )
    found = {"keys": "*fp32", "values": "*fp32", "scores": "*fp32", "positions": "*i32"}
    group = format.group_tokens
    yield Variant(
        f"gather {name}", store_kernels.gather_kernel, {**pool, **found}, {**constants, "GROUP_TOKENS": group}, 1
    )
    if format.key_axis == "channel":
        shape = {key: constants[key] for key in ("PAGE_BYTES", "HEAD_DIM", "PADDED")}
        place = {"BITS": format.k_bits, "START": constants["K_START"], "META": constants["K_META"], "GROUP": group}
        arguments = {n: t for n, t in pool.items() if n != "pool16"} | {"keys": "*fp16"} | beside
        arguments |= {"key_token": "i32", "key_head": "i32"}
        yield Variant(
            f"store key groups {name}",
            store_kernels.store_key_groups_kernel,
            arguments,
            {**transform, **shape, **place},
        )


def variants() -> Iterator[Variant]:
    """What the report covers: attention by head_dim and tiers, what surrounds it, storing, and the cache's kernels."""
    for head_dim in (64, 96, 128, 256):
        yield attention_variant((K8V4, K4V2), head_dim, 4)
    yield attention_variant((K8V4,), 128, 4)
    yield attention_variant((K4V2,), 128, 4)
    yield attention_variant((K4V4, K3V2), 128, 4)
    yield attention_variant((K8V4, K4V2), 128, 4, by_position=True)
    yield attention_variant((FP16,), 128, 4, keep_weights=False)
    yield attention_variant((FP8,), 128, 4, keep_weights=False)
    yield attention_variant((FP16, KIVI2), 128, 4, keep_weights=False)
    yield from other_variants()
    for format in (FP16, FP8, K8V4, K4V2, K3V2, KIVI2):
        yield from store_variants(format, 128)
    yield from store_variants(K3V2, 128, rotated=True)
    from leankv.kernels.compile_variants import cache_variants

    yield from cache_variants()


def compiled(variant: Variant, capability: int) -> Compiled:
    """Compile `variant` for sm_<capability> and read the result."""
    signature = {**variant.arguments, **dict.fromkeys(variant.constants, "constexpr")}
    aligned = [["tt.divisibility", 16]]
    names = list(variant.kernel.arg_names)
    attributes = {(names.index(n),): aligned for n, t in variant.arguments.items() if t.startswith("*")}
    source = ASTSource(
        variant.kernel, {n: signature[n] for n in names}, constexprs=dict(variant.constants), attrs=attributes
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _resources(result.asm["cubin"])
    return Compiled(
        variant.name,
        capability,
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        result.metadata.shared,
        load_widths(result.asm["ptx"]),
        _longest_product_loop(result.asm["cubin"]),
    )


PROCESSES = 2


def report(capabilities: tuple[int, ...] = CAPABILITIES) -> Iterator[Compiled]:
    """Every variant on every architecture, in order, compiled by two processes; Triton's cache keeps the results."""
    numbers = range(len(list(variants())))
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        for found in pool.map(partial(_number, capabilities=capabilities), numbers):
            yield from found


def _number(number: int, capabilities: tuple[int, ...]) -> list[Compiled]:
    """Variant `number`: kernels do not travel between processes, so each makes its own."""
    variant = next(islice(variants(), number, None))
    return [compiled(variant, capability) for capability in capabilities]


def summary(found: Sequence[Compiled]) -> str:
    """The report in a line."""
    spilling = [f"{each.name} on sm_{each.capability}" for each in found if each.spilled_bytes]
    most, shared = max(each.registers for each in found), max(each.shared_bytes for each in found)
    spills = f"spills in {', '.join(spilling)}" if spilling else "no spills"
    return f"{len(found)} kernels: {spills}, at most {most} registers and {shared:,} B of shared memory"


def load_widths(ptx: str) -> dict[int, int]:
    """Bytes per thread -> number of load instructions from device memory in `ptx`."""
    widths: Counter[int] = Counter()
    for vector, bits in re.findall(r"ld\.global[.\w:]*?(?:\.v(\d))?\.[bufs](\d+)\b", ptx):
        widths[int(vector or 1) * int(bits) // 8] += 1
    for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[.\w:]* \[[^]]*\], \[[^]]*\], (0x[0-9a-f]+|\d+)", ptx):
        widths[int(size, 0)] += 1
    return dict(widths)


def _resources(cubin: bytes) -> dict[str, int]:
    text = _cuobjdump("--dump-resource-usage", cubin)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def _longest_product_loop(cubin: bytes) -> int:
    """Instructions from the target of a backward branch to the branch, where matrix products lie between."""
    code = [
        (int(address, 16), text)
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", _cuobjdump("-sass", cubin))
    ]
    longest = 0
    for address, text in code:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            body = [t for a, t in code if int(target[1], 16) <= a <= address]
            if any("HMMA" in t for t in body):
                longest = max(longest, len(body))
    return longest


def _cuobjdump(option: str, cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), option, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    print(HEADER)
    for item in report():
        print(item.line, flush=True)
