"""One serving run, simulated or live, in one folder: `config.json`, `summary.json` and three Parquet tables.

requests: a row a request. Times in ps since the start of the run, -1 where the request did not get that far.
timeline: the state at sampled instants, a row an instant and replica.
segments: token times. A segment is a row of equal steps: step i lasts first_gap_ps + i * slope_ps, i < steps, and gives
one token to each of `sequences` requests; `prompt_tokens` are computed beside them (then steps is 1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_folder

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
TABLES = ("requests", "timeline", "segments")


@dataclass(frozen=True, eq=False)
class Run:
    """`config` says what was asked, `summary` what came out; `source` is "simulated" or "live"."""

    source: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    requests: pa.Table
    timeline: pa.Table
    segments: pa.Table

    @property
    def policy(self) -> str:
        return str(self.config["policy"])


def config_hash(config: Mapping[str, Any]) -> str:
    """The same for the same settings, whatever their order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def save_run(run: Run, folder: str | Path) -> Path:
    """Write the folder whole or not at all.

    Raises:
        InputError: the folder holds files already, or cannot be written.
    """
    import pyarrow.parquet as pq

    stamp = {
        "schema_version": SCHEMA_VERSION,
        "source": run.source,
        "config_hash": config_hash(run.config),
        "commit": commit(),
    }
    with atomic_folder(folder) as beside:
        (beside / "config.json").write_text(json.dumps({**stamp, "config": run.config}, indent=1))
        (beside / "summary.json").write_text(json.dumps({**stamp, "summary": run.summary}, indent=1))
        for name in TABLES:
            table = getattr(run, name)
            metadata = {key: str(value) for key, value in stamp.items()}
            pq.write_table(table.replace_schema_metadata(metadata), beside / f"{name}.parquet")
    return Path(folder)


def load_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: a file is missing or unreadable, or was written by a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    config, summary = _read_json(folder / "config.json"), _read_json(folder / "summary.json")
    tables = {}
    for name in TABLES:
        path = folder / f"{name}.parquet"
        try:
            tables[name] = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"cannot read {path}: not a run's table; run the command again") from error
    return Run(config["source"], config["config"], summary["summary"], **tables)


def commit() -> str:
    """The commit of the checkout that this code runs from, or the package's version where there is none."""
    import subprocess

    from leankv import __version__

    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return f"leankv {__version__}"
    return found.stdout.strip()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: not a run folder's file; name a folder that a run wrote") from error
    if content.get("schema_version", 0) > SCHEMA_VERSION:
        raise InputError(f"{path} has schema {content['schema_version']}, this version reads {SCHEMA_VERSION}: update")
    return content
