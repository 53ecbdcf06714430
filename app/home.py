"""Where the app keeps what outlives a page: jobs, saved runs, uploaded traces."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The state folder: `LEANKV_HOME`, or `leankv` under the user's data folder; created if missing."""
    named = os.environ.get("LEANKV_HOME")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    folder = Path(named) if named else Path(data) / "leankv"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runs_folder() -> Path:
    """Saved runs, one folder each."""
    return _made("runs")


def uploads_folder() -> Path:
    """Uploaded traces, named by their content."""
    return _made("uploads")


def _made(name: str) -> Path:
    folder = home() / name
    folder.mkdir(exist_ok=True)
    return folder
