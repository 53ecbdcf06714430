"""Everything that a GPU is needed for, in one command of ten minutes: check, benchmark, calibrate, validate."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from leankv.app.commands._job_parts import Part, Result, deadlines, run_part
from leankv.app.commands._outputs import require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import File
from leankv.serving.profile import PROFILE_FILE

ABOUT = """\
Do all that needs a GPU, within a time, and leave small files to carry home: the kernels' correctness and speed, a
profile of a model with its validation, and step times of a large model's shape with random weights.

  leankv gpu-job --output-dir job                     # on a machine with a GPU; no network is needed
  leankv gpu-job --backend cpu --quick                # the same parts, tiny, to see that they run

Each part is a command of its own; one that fails or runs out of time is told so, and the others go on.
"""
SCHEMA_VERSION = 1
Parts = Annotated[
    tuple[Literal["correctness", "kernels", "calibrate", "validate", "shape"], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="NAME", help_behavior_hint=""),
]
VALIDATED, QUICK = ("fp16", "int8", "kivi", "leankv"), ("fp16", "leankv")
# First those that a later part needs: a calibration that is cut off has measured the front of the list.
CALIBRATED = (*VALIDATED, "fp8", "snapkv", "h2o", "int4", "streaming-llm")
TRAFFIC = ("--limit", "100", "--max-prompt", "1024", "--max-output", "64", "--repeats", "2", "--max-num-seqs", "32")
TINY_TRAFFIC = (
    "--limit", "4", "--max-prompt", "24", "--max-output", "3", "--repeats", "1", "--load", "knee",
    "--max-num-seqs", "2", "--max-num-batched-tokens", "32",
)  # fmt: skip
ONE_SHAPE, TINY_SHAPE = ("--batch", "1", "--context", "1024"), ("--batch", "1", "--context", "64")


@dataclass(frozen=True)
class Job:
    minutes: float = 10.0
    """Time for everything; each part has a share, and what an earlier part leaves."""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where everything runs; auto means a GPU."""
    quick: bool = False
    """A tiny job, to see that every part runs: its figures mean nothing."""
    model: str = "smollm2-135m"
    """The model to calibrate and validate: smollm2-135m, a folder with config.json, a .gguf file, or a name."""
    shape: str = "llama-3-8b"
    """The shape whose step times are measured with random weights: a preset, or the path of a config.json."""
    part: Parts = ()
    """Only this part, repeatable: correctness, kernels, calibrate, validate, shape. Default: all."""
    output_dir: File = None
    """Folder for results; default: gpu-job, in the folder that $OUT names where that is set."""


def main(argv: list[str]) -> int:
    """Run `leankv gpu-job`: 0 if every part passed, 1 if not. Raises InputError for bad input or without a GPU."""
    job = parsed(Job, "leankv gpu-job", ABOUT, argv)
    folder = job.output_dir or Path(os.environ.get("OUT", ".")) / "gpu-job"
    _check(job, folder)
    parts = parts_of(job, folder)
    began, results = time.monotonic(), []
    ends = deadlines(parts, began, 60 * job.minutes)
    try:
        with progress_bar(f"{len(parts)} parts, at most {job.minutes:g} minutes") as report:
            for number, part in enumerate(parts):
                results.append(run_part(part, ends[part.name], folder / "logs" / f"{part.name}.txt"))
                _write(job, folder, results)
                report((number + 1) / len(parts))
    finally:
        if results:
            print((folder / "report.txt").read_text(encoding="utf-8"), end="")
    return 0 if all(result.passed for result in results) else 1


def parts_of(job: Job, folder: Path) -> list[Part]:
    """The parts in their order."""
    on = ("--backend", "cpu" if job.backend == "cpu" else "cuda")
    bench, validate = ("bench", "kernels", *on), ("validate", *on, "--model", job.model)
    # A second round would only guard against drift, and the time is for every policy once.
    once = ("calibrate", *on, "--rounds", "1")
    calibrate = (*once, *_each("--policy", CALIBRATED))
    shapes: tuple[tuple[str, ...], tuple[str, ...]] = (ONE_SHAPE, ())
    traffic = (*TRAFFIC, *_each("--policy", VALIDATED))
    if job.quick:
        calibrate = (*once, *_each("--policy", QUICK), "--quick")
        shapes, traffic = (TINY_SHAPE, TINY_SHAPE), (*TINY_TRAFFIC, *_each("--policy", QUICK))
    profile, validation, shape = (str(folder / name) for name in ("profile", "validation", "shape"))
    replayed = ("--model", f"random:{job.shape}", "--retention-from", profile)
    needs = folder / "profile" / PROFILE_FILE
    parts = [
        Part("correctness", (*bench, "--full", *shapes[0]), 1.5),
        Part("kernels", (*bench, *shapes[1], "--output-dir", str(folder)), 2.0),
        Part("calibrate", (*calibrate, "--model", job.model, "--output-dir", profile), 2.5),
        Part("validate", (*validate, "--profile", profile, *traffic, "--output-dir", validation), 2.0, needs),
        Part("shape", (*calibrate, *replayed, "--output-dir", shape), 2.0, needs),
    ]
    return [part for part in parts if not job.part or part.name in job.part]


def _each(flag: str, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in (flag, value))


def _check(job: Job, folder: Path) -> None:
    """Refuse what cannot work; without a GPU, nothing is begun."""
    from leankv.backend.live_setup import device_named
    from leankv.serving.errors import InputError

    if not job.minutes > 0:
        raise InputError(f"--minutes {job.minutes:g}: give a number above 0")
    if job.backend != "cpu" and device_named("auto") != "cuda":
        raise InputError("this machine has no GPU that torch can use; --backend cpu --quick runs the same parts, tiny")
    require_place_for_folder(folder)


def _write(job: Job, folder: Path, results: Sequence[Result]) -> None:
    """report.json and report.txt, as far as the job has come."""
    from leankv.serving.files import atomic_write
    from leankv.serving.runs import commit

    content = {
        "schema_version": SCHEMA_VERSION,
        "commit": commit(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**asdict(job), "output_dir": None},
        "machine": _machine(),
        "parts": [{**asdict(result), "passed": result.passed} for result in results],
        "figures": _figures(folder),
    }
    for path, text in (
        (folder / "report.json", json.dumps(content, indent=1) + "\n"),
        (folder / "report.txt", _as_text(content)),
    ):
        with atomic_write(path) as beside:
            beside.write_text(text, encoding="utf-8")


def _machine() -> dict[str, str]:
    """Versions, and the GPU in its driver's words."""
    from leankv.backend.reference import versions

    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpu = "none"
    return {**versions(), "gpu": gpu}


def _figures(folder: Path) -> dict[str, Any]:
    """What the parts came to, in a few figures; the files beside have them all."""
    found: dict[str, Any] = {}
    for name in ("profile", "shape"):
        if (content := _read(folder / name / PROFILE_FILE)) is not None:
            found[name] = {policy: each["held_out"] for policy, each in content["policies"].items()}
    if (content := _read(folder / "validation" / "validation.json")) is not None:
        found["validation"] = content["summary"]["targets"]
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _as_text(content: Mapping[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
    lines = [f"GPU job, commit {content['commit']}, {content['written']}", machine, ""]
    for part in content["parts"]:
        lines.append(f"{part['name']:<12} {part['status']:<12} {part['seconds']:6.1f} of {part['budget_s']:.0f} s")
        lines.append(f"             {part['said']}")
    for name in ("profile", "shape"):
        for policy, regimes in content["figures"].get(name, {}).items():
            told = ", ".join(f"{regime} {each['median']:.1%}" for regime, each in regimes.items())
            lines.append(f"{name}, {policy}: held-out error of the fit, median: {told}")
    for target in content["figures"].get("validation", []):
        value = target["value"]
        shown = f"{value:.1%} (at most {target['target']:.0%})" if isinstance(value, float) else f"{value}"
        lines.append(f"validation, {target['name']}: {shown}, {'holds' if target['holds'] else 'MISSED'}")
    return "\n".join(lines) + "\n"
