"""All that a GPU is needed for, in one command of nine minutes: check, benchmark, calibrate, validate, evaluate."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from leankv.app.commands._job_files import pack, read, write_report
from leankv.app.commands._job_needs import missing, model_converted
from leankv.app.commands._job_parts import GRACE_S, Part, Result, deadlines, run_part
from leankv.app.commands._outputs import require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.traces import File
from leankv.serving.paired import BASELINE
from leankv.serving.profile import PROFILE_FILE

ABOUT = """\
Do all that needs a GPU, within a time, and leave small files to carry home: the kernels' correctness and speed, a
profile of a model with its validation, step times of a large model's shape with random weights, and what policies cost
in answers.

  leankv gpu-job --output-dir job                     # on a machine with a GPU; no network is needed
  leankv gpu-job --backend cpu --quick                # the same parts, tiny, to see that they run

Each part is a command of its own; one that fails or runs out of time is told so, and the others go on. The small files
are also in one, gpu-job.tar.gz at the top of the output folder, for machines that return only a few.
"""
SCHEMA_VERSION = 1
Parts = Annotated[
    tuple[Literal["correctness", "kernels", "calibrate", "validate", "shape", "quality"], ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="NAME", help_behavior_hint=""),
]
VALIDATED, QUICK = ("fp16", "leankv", "int8", "kivi"), ("fp16", "leankv")
RESERVED_S = GRACE_S + 5.0
"""Of the job's time: for the last part's end, should it be late, and for the report."""
# First those that a later part needs: a calibration that is cut off has measured the front of the list.
CALIBRATED = (*VALIDATED, "fp8", "snapkv", "h2o", "int4", "streaming-llm")
TRAFFIC = ("--limit", "100", "--max-prompt", "1024", "--max-output", "64", "--repeats", "2", "--max-num-seqs", "32")
TINY_TRAFFIC = (
    "--limit", "4", "--max-prompt", "24", "--max-output", "3", "--repeats", "1", "--load", "knee",
    "--max-num-seqs", "2", "--max-num-batched-tokens", "32",
)  # fmt: skip
EVALUATED = (*VALIDATED, "kivi:bits=4", "h2o", "leankv:alpha_low=0,key_transform=rope-centred+rotated", "leankv-r")
SAMPLES = ("--task", "perplexity", "--task", "needle", "--windows", "40", "--prefix", "1024", "--scored", "32",
           "--batch", "20")  # fmt: skip
TINY_SAMPLES = ("--task", "perplexity", "--windows", "2", "--prefix", "96", "--scored", "4", "--batch", "2")
ONE_SHAPE, TINY_SHAPE = ("--batch", "1", "--context", "1024"), ("--batch", "1", "--context", "64")


@dataclass(frozen=True)
class Job:
    minutes: float = 9.0
    """Time for the whole command; each part has a share, and what an earlier part leaves."""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where everything runs; auto means a GPU."""
    quick: bool = False
    """A tiny job, to see that every part runs: its figures mean nothing."""
    model: str = "smollm2-135m"
    """The model to calibrate, validate and evaluate: smollm2-135m, a folder with config.json, a .gguf file, a name."""
    shape: str = "llama-3-8b"
    """The shape whose step times are measured with random weights: a preset, or the path of a config.json."""
    part: Parts = ()
    """Only this part, repeatable: correctness, kernels, calibrate, validate, shape, quality. Default: all."""
    output_dir: File = None
    """Folder for results; default: gpu-job, in the folder that $OUT names where that is set."""


def main(argv: list[str]) -> int:
    """Run `leankv gpu-job`: 0 if every part passed, 1 if not. Raises InputError for bad input or without a GPU."""
    began = time.monotonic()
    job = parsed(Job, "leankv gpu-job", ABOUT, argv)
    folder = job.output_dir or Path(os.environ.get("OUT", ".")) / "gpu-job"
    parts = parts_of(job, folder)
    _check(job, folder, parts)
    about = _about(job)
    results: list[Result] = []
    write_report(folder, about, results, running="model" if _uses_model(parts) else None)
    try:
        with progress_bar(f"{len(parts)} parts, at most {job.minutes:g} minutes") as report:
            if _uses_model(parts):
                model_converted(job.model)
            now = time.monotonic()
            ends = deadlines(parts, now, max(0.0, began + 60 * job.minutes - RESERVED_S - now))
            for number, part in enumerate(parts):
                write_report(folder, about, results, running=part.name)
                ready = of_measured(part)
                results.append(run_part(ready, ends[part.name], folder / "logs" / f"{part.name}.txt"))
                report((number + 1) / len(parts))
    finally:
        write_report(folder, about, results)
        pack(folder)
        print((folder / "report.txt").read_text(encoding="utf-8"), end="")
    return 0 if all(result.passed for result in results) else 1


def of_measured(part: Part) -> Part:
    """A part that needs a profile, with the policies alone that are in it: a calibration may have been cut off."""
    profile = None if part.needs is None else read(part.needs)
    if profile is None:
        return part
    words = list(part.words)
    asked = [word for at, word in enumerate(words) if at and words[at - 1] == "--policy"]
    chosen = [policy for policy in asked if policy in profile["policies"]] or [BASELINE]
    others = [word for at, word in enumerate(words) if word != "--policy" and not (at and words[at - 1] == "--policy")]
    return replace(part, words=(*others, *_each("--policy", chosen))) if asked else part


def parts_of(job: Job, folder: Path) -> list[Part]:
    """The parts in their order."""
    on = ("--backend", "cpu" if job.backend == "cpu" else "cuda")
    bench, validate = ("bench", "kernels", *on), ("validate", *on, "--model", job.model)
    # A second round would only guard against drift, and the time is for every policy once.
    once = ("calibrate", *on, "--rounds", "1")
    calibrate = (*once, *_each("--policy", CALIBRATED))
    shapes: tuple[tuple[str, ...], tuple[str, ...]] = (ONE_SHAPE, ())
    traffic, samples = (*TRAFFIC, *_each("--policy", VALIDATED)), (*SAMPLES, *_each("--policy", EVALUATED))
    if job.quick:
        calibrate = (*once, *_each("--policy", QUICK), "--quick")
        shapes, policies = (TINY_SHAPE, TINY_SHAPE), _each("--policy", QUICK)
        traffic, samples = (*TINY_TRAFFIC, *policies), (*TINY_SAMPLES, *policies)
    profile, validation, shape, quality = (str(folder / name) for name in ("profile", "validation", "shape", "quality"))
    evaluate = ("evaluate", *on, "--model", job.model)
    replayed = ("--model", f"random:{job.shape}", "--retention-from", profile)
    needs = folder / "profile" / PROFILE_FILE
    parts = [
        Part("correctness", (*bench, "--full", *shapes[0]), 1.5),
        Part("kernels", (*bench, *shapes[1], "--output-dir", str(folder)), 2.0),
        Part("calibrate", (*calibrate, "--model", job.model, "--output-dir", profile), 2.5),
        Part("validate", (*validate, "--profile", profile, *traffic, "--output-dir", validation), 2.0, needs),
        Part("shape", (*calibrate, *replayed, "--output-dir", shape), 2.0, needs),
        Part("quality", (*evaluate, *samples, "--output-dir", quality), 1.5),
    ]
    return [part for part in parts if not job.part or part.name in job.part]


def _each(flag: str, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in (flag, value))


def _uses_model(parts: Sequence[Part]) -> bool:
    return any(part.name in ("calibrate", "validate", "quality") for part in parts)


def _check(job: Job, folder: Path, parts: Sequence[Part]) -> None:
    """Refuse what cannot work; without a GPU, or a package that a later part needs, nothing is begun."""
    from leankv.serving.errors import InputError

    if not job.minutes > 0:
        raise InputError(f"--minutes {job.minutes:g}: give a number above 0")
    texts = any(part.name in ("calibrate", "validate", "shape", "quality") for part in parts)
    lacking = missing(job.model if _uses_model(parts) else None, texts, job.backend != "cpu")
    if job.backend != "cpu" and "torch" not in lacking:
        from leankv.backend.live_setup import device_named

        if device_named("auto") != "cuda":
            raise InputError(
                "this machine has no GPU that torch can use; --backend cpu --quick runs the same parts, tiny"
            )
    if lacking:
        raise InputError(f"not installed here: {', '.join(lacking)}; README.md says how to install what live runs need")
    require_place_for_folder(folder)


def _about(job: Job) -> dict[str, Any]:
    """What a report says before any part has run."""
    from leankv.serving.runs import commit

    return {
        "schema_version": SCHEMA_VERSION,
        "commit": commit(),
        "settings": {**asdict(job), "output_dir": None},
        "machine": _machine(),
    }


def _machine() -> dict[str, str]:
    """Versions, and the GPU in its driver's words."""
    from leankv.backend.reference import versions

    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpu = "none"
    return {**versions(), "gpu": gpu}
