"""What can be opened: runs, profiles, validations and quality files, shipped with the package or left by jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leankv.app.home import home

SHIPPED = Path(__file__).resolve().parents[1] / "profiles"
DEFAULT_MODEL = "smollm2-135m"
# a folder that holds this file is one of these; a validation holds runs, so the order is that of interest
MARKS = {
    "validation": "validation.json",
    "quality": "quality.json",
    "tuning": "tune.json",
    "profile": "profile.json",
    "run": "summary.json",
}


@dataclass(frozen=True)
class Found:
    """One folder of results: what it is, where, and what to call it."""

    what: str
    folder: Path
    label: str


def results(folder: Path) -> list[Found]:
    """Everything under the folder, validations first, runs last."""
    return [
        Found(what, path.parent, _label(path.parent, folder))
        for what, mark in MARKS.items()
        for path in sorted(folder.rglob(mark))
    ]


def offered(what: str) -> dict[str, Path]:
    """Name -> folder of everything of this kind that a job has left, newest first, then of what is shipped, the default
    model's before others.
    """
    return dict(_offered(MARKS[what]))


def _offered(mark: str) -> Iterator[tuple[str, Path]]:
    made = (home() / "jobs").rglob(mark)
    for path in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True):
        yield _job_label(path.parent), path.parent
    for path in sorted(SHIPPED.rglob(mark), key=lambda path: (DEFAULT_MODEL not in str(path), path)):
        yield str(path.parent.relative_to(SHIPPED)), path.parent


def _label(folder: Path, root: Path) -> str:
    inner = str(folder.relative_to(root))
    return folder.name if inner == "." else inner


def _job_label(folder: Path) -> str:
    job, *inner = folder.relative_to(home() / "jobs").parts
    said = "/".join(part for part in inner if part != "results")
    return f"job {job[:6]}{' ' if said else ''}{said}"
