"""LeanKV's kernels beside a large copy and torch's SDPA: time, bytes, bandwidth, on the device that is there."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.serving.errors import InputError

ABOUT = """\
Time, bytes and bandwidth of decode attention, prefill compression, decode append and page management.

Every figure stands beside a large copy and torch's SDPA in FP16, measured in the same run. Attention is held to float64
before it is timed; a part that fails is named at the end and the others go on. On a GPU: Llama-3-8B's heads, batch 1 to
128, context 1k to 32k. On a CPU: the torch path on small shapes, under a minute and a half; CPU figures say nothing
about a GPU.

  leankv bench kernels
  leankv bench kernels --batch 1 8 --context 1024 4096 --json kernels.json
  leankv bench kernels --compile                            # registers, spills, loads on sm_80 and sm_90, without a GPU
  leankv bench kernels --full --output-dir profiles         # on a GPU: correctness, figures, report; about 4 minutes
"""


@dataclass(frozen=True)
class Options:
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto: a GPU if there is one."""
    batch: tuple[int, ...] = ()
    """Batch sizes, with --context instead of the device's default shapes."""
    context: tuple[int, ...] = ()
    """Cached tokens a request."""
    compile: bool = False
    """Only compile every kernel for sm_80 and sm_90 and print what came out. Minutes on two cores."""
    full: bool = False
    """First hold every live policy's whole cache to the CPU's torch path (on a CPU: to the reference), and decode steps
    replayed from a CUDA graph to the same launched one by one."""
    output_dir: Path | None = None
    """Write kernels-DEVICE.json and .txt there, after every part, to keep under profiles/."""
    json: Path | None = None
    """Write conditions and rows to this file."""


def main(argv: Sequence[str]) -> int:
    """Run `leankv bench kernels`; raises InputError for bad input."""
    options = parsed(Options, "leankv bench kernels", ABOUT, argv)
    for flag, values in (("--batch", options.batch), ("--context", options.context)):
        if any(value < 1 for value in values):
            raise InputError(f"{flag} is {min(values)}: give at least 1")
    require_place_for_file(options.json)
    require_place_for_folder(options.output_dir)
    if options.compile:
        return _compile()
    from leankv.bench.kernels import device_there, measured, plan_for

    device = device_there(options.backend)
    checks = _checked(device) if options.full else []

    def keep(figures: Mapping[str, Any]) -> None:
        for path in (options.json, _kept(options.output_dir, figures)):
            if path is not None:
                _write(path, json_module.dumps({**figures, "checks": checks}, indent=1) + "\n")

    with progress_bar("kernels") as report:
        figures = measured(plan_for(device, options.batch, options.context), device, report, keep)
    figures["checks"] = checks
    text = "\n".join(_lines(figures)) + "\n"
    print(text, end="")
    kept = _kept(options.output_dir, figures)
    if kept is not None:
        _write(kept.with_suffix(".txt"), text)
    for path in (options.json, kept):
        if path is not None:
            print(f"wrote {path}")
    return 1 if figures["failures"] or any("failed" in each for each in checks) else 0


def _checked(device: Any) -> list[dict[str, Any]]:
    from leankv.bench.kernel_checks import checks

    found = []
    with progress_bar("correctness") as report:
        for share, result in checks(device):
            report(share)
            found.append(result)
    return found


def _compile() -> int:
    from leankv.kernels.compile_report import HEADER, report, summary

    print(HEADER)
    found = []
    for item in report():
        found.append(item)
        print(item.line, flush=True)
    print(summary(found))
    return 0


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """The report as printed."""
    yield from _check_lines(figures["checks"])
    conditions = figures["conditions"]
    copy = conditions["copy_bytes_s"]
    yield (
        f"{conditions['device']}, {conditions['path']} path, torch {conditions['torch']}: {conditions['heads']} query "
        f"and {conditions['kv_heads']} KV heads of {conditions['head_dim']}; {conditions['timing']}"
    )
    if conditions["path"] == "torch":
        yield "These are CPU figures, of the vectorised torch path; they say nothing about the kernels on a GPU."
    yield f"a large copy, read and written: {copy / 1e9:,.1f} GB/s; attention and append: one layer\n"
    yield (
        f"{'':<26} {'':<10} {'batch':>5} {'context':>7} | {'time us':>9} {'MB':>8} {'GB/s':>8} {'of copy':>8}"
        f" | {'SDPA us':>9} {'faster':>7} | {'FA3 bf16':>8} {'fp8':>5} {'target':>6}"
    )
    for row in figures["rows"]:
        yield (
            f"{row['operation']:<26} {row['format']:<10} {row['batch']:>5} {row['context']:>7,}"
            f" | {row['seconds'] * 1e6:>9,.1f} {row['bytes'] / 1e6:>8,.2f} {row['bytes_s'] / 1e9:>8,.1f}"
            f" {row['share_of_copy']:>8.1%} | {_or_dash(_micro(row.get('sdpa_seconds')), '9,.1f')}"
            f" {_or_dash(row['sdpa_over_this'], '6.2f', 'x')} | {_or_dash(row['flash_attention_3_bf16_us'], '8')}"
            f" {_or_dash(row['flash_attention_3_fp8_us'], '5')} {_or_dash(row['target_us'], '6')}"
        )
    yield "\nFA3: FlashAttention-3 on an H200, microseconds, as others measured it; target: this project's on an H200."
    if share := figures.get("page_management"):
        yield (
            f"page management: {share['share']:.3%} of a decode step of Llama-3-8B at batch {share['batch']} x "
            f"{share['context']:,} ({share['step_seconds'] * 1e3:.2f} ms: weights at the copy's bandwidth, attention, "
            "append)"
        )
    for each in figures["failures"]:
        yield f"FAILED {each['part']}: {each['failed']}"
    yield f"{len(figures['rows'])} figures, {len(figures['failures'])} parts failed, {figures['seconds']:.0f} s"


def _check_lines(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not checks:
        return
    for each in checks:
        if "failed" in each:
            yield f"WRONG {each['policy']}: {each['failed']}"
    right = [each for each in checks if "failed" not in each]
    said = f"correct: {len(right)} of {len(checks)} policies decode as on the CPU's torch path"
    if right:
        said += f", off by {max(each['error'] for each in right):.1e} at most"
    graphs = [each["graph_error"] for each in right if "graph_error" in each]
    if graphs:
        said += f"; replayed from a CUDA graph as launched one by one, off by {max(graphs):.1e} at most"
    yield said + "\n"


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def _or_dash(value: float | None, form: str, unit: str = "") -> str:
    width = int(form.split(",")[0].split(".")[0]) + len(unit)
    return f"{'-':>{width}}" if value is None else f"{value:{form}}{unit}"


def _kept(folder: Path | None, figures: Mapping[str, Any]) -> Path | None:
    if folder is None:
        return None
    words = "".join(c if c.isalnum() else " " for c in figures["conditions"]["device"]).lower().split()
    return folder / f"kernels-{'-'.join(words)}.json"


def _write(path: Path, text: str) -> None:
    from leankv.serving.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as scratch:
        scratch.write_text(text)
