"""What a GPU job leaves: its report, and the small files of all parts in one archive."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leankv.app.commands._job_parts import Result
from leankv.serving.profile import PROFILE_FILE
from leankv.serving.quality import QUALITY_FILE

ARCHIVE = "gpu-job.tar.gz"
MOST_BYTES = 1 << 21
"""Of a file in the archive: reports, profiles and their steps have less."""


def write_report(folder: Path, about: Mapping[str, Any], results: Sequence[Result], running: str | None = None) -> None:
    """report.json and report.txt, as far as the job has come. running: the part that has begun."""
    from leankv.serving.files import atomic_write

    content = {
        **about,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "running": running,
        "parts": [{**asdict(result), "passed": result.passed} for result in results],
        "figures": _figures(folder),
    }
    for path, text in (
        (folder / "report.json", json.dumps(content, indent=1) + "\n"),
        (folder / "report.txt", _as_text(content)),
    ):
        with atomic_write(path) as beside:
            beside.write_text(text, encoding="utf-8")


def pack(folder: Path) -> Path:
    """Write the folder's small files to one archive at its top, replacing an older one."""
    from leankv.serving.files import atomic_write

    files = list(_small_files(folder))
    with atomic_write(folder / ARCHIVE) as beside, tarfile.open(beside, "w:gz") as archive:
        for path in files:
            archive.add(path, arcname=str(Path(folder.name or "gpu-job") / path.relative_to(folder)))
    return folder / ARCHIVE


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file, None where there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _small_files(folder: Path) -> Iterator[Path]:
    """All but the archive, half-written files, what is large, and the tables of single runs."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        of_a_run = path.suffix == ".parquet" and inside[0] == "validation"
        left_out = of_a_run or inside == (ARCHIVE,) or any(part.startswith(".") for part in inside)
        if not left_out and path.is_file() and path.stat().st_size <= MOST_BYTES:
            yield path


def _figures(folder: Path) -> dict[str, Any]:
    """What the parts came to, in a few figures; the files beside have them all."""
    found: dict[str, Any] = {}
    for name in ("profile", "shape"):
        if (content := read(folder / name / PROFILE_FILE)) is not None:
            found[name] = {policy: each["held_out"] for policy, each in content["policies"].items()}
    if (content := read(folder / "validation" / "validation.json")) is not None:
        found["validation"] = content["summary"]["targets"]
    if (content := read(folder / "quality" / QUALITY_FILE)) is not None:
        chosen = ("physical_ratio", "scores")
        found["quality"] = {
            policy: {name: each[name] for name in chosen} for policy, each in content["policies"].items()
        }
    return found


def _as_text(content: Mapping[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
    lines = [f"GPU job, commit {content['commit']}, {content['written']}", machine, ""]
    for part in content["parts"]:
        lines.append(f"{part['name']:<12} {part['status']:<12} {part['seconds']:6.1f} of {part['budget_s']:.0f} s")
        lines.append(f"             {part['said']}")
    if content["running"]:
        lines.append(f"{content['running']:<12} begun")
    for name in ("profile", "shape"):
        for policy, regimes in content["figures"].get(name, {}).items():
            told = ", ".join(f"{regime} {each['median']:.1%}" for regime, each in regimes.items())
            lines.append(f"{name}, {policy}: held-out error of the fit, median: {told}")
    for target in content["figures"].get("validation", []):
        value = target["value"]
        shown = f"{value:.1%} (at most {target['target']:.0%})" if isinstance(value, float) else f"{value}"
        lines.append(f"validation, {target['name']}: {shown}, {'holds' if target['holds'] else 'MISSED'}")
    for policy, each in content["figures"].get("quality", {}).items():
        lines.append(f"quality, {policy}: {each['physical_ratio']:.2f}x, perplexity {_perplexity(each['scores'])}")
    return "\n".join(lines) + "\n"


def _perplexity(scores: Mapping[str, Any]) -> str:
    """As it is, and by how much it is above the baseline's, which itself has no difference."""
    score = scores["perplexity"]
    if score["difference"] is None:
        return f"{score['value']:.2f}"
    low, high = score["difference_interval"]
    return f"{score['value']:.2f}, {score['difference']:+.1%} [{low:+.1%}, {high:+.1%}]"
