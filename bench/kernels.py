"""The kernels' report: every operation's time, bytes and bandwidth beside a large copy and torch's SDPA."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from leankv.bench.kernel_attention import attention_time, sdpa_time
from leankv.bench.kernel_cache import append_time, page_times, prefill_time
from leankv.bench.kernel_checks import in_words
from leankv.bench.paged import Mix, Shape, mixes
from leankv.bench.timing import copy_bandwidth
from leankv.serving.errors import InputError

FLASH_ATTENTION_3_US = {
    (64, 8192): (491, 354),
    (32, 4096): (136, 103),
    (8, 32768): (273, 182),
    (1, 32768): (50, 41),
}
"""(batch, context) -> microseconds in bf16 and fp8 on an H200 (vLLM 0.24, 32 query heads, 8 KV heads, head_dim 128)."""
TARGETS_US = {("K8V4", 64, 8192): 250, ("usual mix", 64, 8192): 130}
"""What this project set itself on an H200."""
LLAMA_LAYERS, LLAMA_WEIGHT_BYTES = 32, 2 * 7.5e9
"""Llama-3-8B: its layers' and head's weights in 16 bits, read once a decode step."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Plan:
    """Which shapes to time. Cells are (batch, context)."""

    shape: Shape
    cells: tuple[tuple[int, int], ...]
    prompts: tuple[int, ...]
    page_layers: int
    copy_gb: float


GPU_CELLS = ((1, 1024), (1, 8192), (1, 32768), (8, 1024), (8, 8192), (8, 32768), (32, 4096), (64, 1024), (64, 8192),
             (128, 1024), (128, 8192), (128, 32768))  # fmt: skip
GPU_PLAN = Plan(Shape(), GPU_CELLS, (2048, 8192, 32768), LLAMA_LAYERS, 4.0)
CPU_PLAN = Plan(Shape(), ((1, 512), (1, 2048), (4, 512)), (512, 1024), 4, 0.25)


def device_there(name: str = "auto") -> torch.device:
    """Raises InputError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--backend cuda: no CUDA device is there; leave it out to measure the CPU")
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")


def plan_for(device: torch.device, batches: Sequence[int] = (), contexts: Sequence[int] = ()) -> Plan:
    """The device's default plan, or one over all pairs of the batches and contexts that were asked for."""
    default = GPU_PLAN if device.type == "cuda" else CPU_PLAN
    if not batches and not contexts:
        return default
    cells = tuple((batch, context) for batch in batches or (1,) for context in contexts or (1024,))
    prompts = tuple(sorted({context for _, context in cells}))
    return Plan(default.shape, cells, prompts, default.page_layers, default.copy_gb)


def measured(
    plan: Plan, device: torch.device, progress: Progress, keep: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Conditions and one row an operation, format and shape; what failed, in words.

    A part that fails leaves the others as they are. keep: gets the report as far as it has come, after each part.
    """
    began = time.perf_counter()
    copy = copy_bandwidth(device, plan.copy_gb)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    about = conditions(plan, device, copy)
    report: dict[str, Any] = {"schema_version": 1, "conditions": about, "rows": rows, "failures": failures}
    work = list(_work(plan, device))
    for number, (name, each) in enumerate(work):
        try:
            rows += [_finished(row, copy) for row in each()]
        except Exception as error:  # whatever it is, the parts after it are worth having
            failures.append({"part": name, "failed": in_words(error)})
        report |= {**_share(rows, copy), "seconds": time.perf_counter() - began}
        keep(report)
        progress((number + 1) / len(work))
    return report


def conditions(plan: Plan, device: torch.device, copy: float) -> dict[str, Any]:
    """What the figures hold for."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    threads = torch.get_num_threads()
    return {
        "device": properties.name if properties else f"CPU ({platform.machine()}), {threads} threads",
        "path": "triton" if properties else "torch",
        "torch": torch.__version__,
        "triton": _triton_version(),
        "copy_bytes_s": copy,
        "heads": plan.shape.heads,
        "kv_heads": plan.shape.kv_heads,
        "head_dim": plan.shape.head_dim,
        "timing": "CUDA graph replays between events, median" if properties else "wall clock, median",
    }


def _work(plan: Plan, device: torch.device) -> Iterator[tuple[str, Callable[[], list[dict[str, Any]]]]]:
    """Parts and their names, the cells that others were measured at first: time may run out."""
    cells = sorted(plan.cells, key=lambda cell: cell not in FLASH_ATTENTION_3_US)
    for batch, context in cells:
        at = f"{batch} x {context:,}"
        for mix in mixes(plan.shape.head_dim).values():
            yield f"attention, {mix.name}, {at}", partial(_attention_rows, plan.shape, mix, batch, context, device)
        yield f"append, {at}", partial(_append_rows, plan.shape, batch, context, device)
    for prompt in plan.prompts:
        yield f"prefill, {prompt:,}", partial(_prefill_rows, plan.shape, prompt, device)
    for batch, context in cells:
        yield f"pages, {batch} x {context:,}", partial(_page_rows, plan, batch, context, device)


def _append_rows(shape: Shape, batch: int, context: int, device: torch.device) -> list[dict[str, Any]]:
    return [_row("decode append", "usual mix", batch, context, append_time(shape, batch, context, device))]


def _prefill_rows(shape: Shape, prompt: int, device: torch.device) -> list[dict[str, Any]]:
    return [_row("prefill compression", "usual mix", 1, prompt, prefill_time(shape, prompt, device))]


def _attention_rows(shape: Shape, mix: Mix, batch: int, context: int, device: torch.device) -> list[dict[str, Any]]:
    peer = _peer(shape, batch, context, device)
    rows = []
    for scored in (False, True) if len(mix.layouts) > 1 or mix.name == "K8V4" else (False,):
        if not _fits(1.3 * batch * shape.kv_heads * mix.bytes_read(context), device):
            continue
        figures = attention_time(shape, mix, batch, context, device, scored)
        name = "decode attention" + (" + scores" if scored else "")
        rows.append(_row(name, mix.name, batch, context, {**figures, "sdpa_seconds": peer}))
    return rows


@lru_cache(maxsize=1)
def _peer(shape: Shape, batch: int, context: int, device: torch.device) -> float | None:
    return sdpa_time(shape, batch, context, device)


def _page_rows(plan: Plan, batch: int, context: int, device: torch.device) -> list[dict[str, Any]]:
    times = page_times(plan.shape, batch, context, plan.page_layers, device)
    layers = f"{plan.page_layers} layers"
    return [_row(name, layers, batch, context, figures) for name, figures in times.items()]


def _fits(wanted: float, device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    torch.cuda.empty_cache()
    return bool(wanted < torch.cuda.mem_get_info(device)[0])


def _row(name: str, format: str, batch: int, context: int, figures: dict[str, Any]) -> dict[str, Any]:
    return {"operation": name, "format": format, "batch": batch, "context": context, **figures}


def _finished(row: dict[str, Any], copy: float) -> dict[str, Any]:
    achieved = row["bytes"] / row["seconds"]
    bf16, fp8 = FLASH_ATTENTION_3_US.get((row["batch"], row["context"]), (None, None))
    attends = row["operation"].startswith("decode attention")
    return {
        **row,
        "bytes_s": achieved,
        "share_of_copy": achieved / copy,
        "sdpa_over_this": row["sdpa_seconds"] / row["seconds"] if row.get("sdpa_seconds") else None,
        "flash_attention_3_bf16_us": bf16 if attends else None,
        "flash_attention_3_fp8_us": fp8 if attends else None,
        "target_us": TARGETS_US.get((row["format"], row["batch"], row["context"])) if attends else None,
    }


def _share(rows: list[dict[str, Any]], copy: float) -> dict[str, Any]:
    """Page management over a decode step of Llama-3-8B: its weights at the copy's bandwidth, attention, append.

    At the largest shape that was measured with every layer's tables; empty where that is not Llama's number.
    """
    found = {(row["operation"], row["format"], row["batch"], row["context"]): row["seconds"] for row in rows}
    for (name, layers, batch, context), resize in sorted(found.items(), key=lambda item: -item[0][2] * item[0][3]):
        attention = found.get(("decode attention + scores", "usual mix", batch, context))
        append = found.get(("decode append", "usual mix", batch, context))
        if name == "pages, decode step" and layers == f"{LLAMA_LAYERS} layers" and attention and append:
            step = LLAMA_WEIGHT_BYTES / copy + LLAMA_LAYERS * (attention + append)
            where = {"batch": batch, "context": context, "step_seconds": step, "share": resize / step}
            return {"page_management": where}
    return {}


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)
