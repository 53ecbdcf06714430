"""The file `tune.json`: the settings of LeanKV that a bound on quality allows on one model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.serving.runs import commit, config_hash

SCHEMA_VERSION = 1
TUNE_FILE = "tune.json"
MEASURED = ("found", "trials", "kept")


def save_tuning(result: Mapping[str, Any], path: str | Path) -> None:
    """Write a result of `tune`. Keys:

    model, dtype, device (where it ran, in words), versions, settings (text, windows, judge).
    found: a list by policy and bound: policy, bound, spec (None: nothing allowed), held_in and held_out, each with
        loss, interval (95 %), nominal, physical.
    trials: by setting, its held-in figures.
    kept: by setting and kind of text, the share of a prompt's positions kept, [layers][kv_heads][tiers].

    To these come schema_version, config_hash (of all but found, trials and kept) and commit.
    Raises InputError where it cannot be written.
    """
    config = {name: value for name, value in result.items() if name not in MEASURED}
    stamp = {"schema_version": SCHEMA_VERSION, "config_hash": config_hash(config), "commit": commit()}
    with atomic_write(path) as beside:
        stamped = {**stamp, **result}
        beside.write_text(json.dumps(stamped, indent=1) + "\n", encoding="utf-8")


def load_tuning(path: str | Path) -> dict[str, Any]:
    """Read what `save_tuning` wrote. Raises InputError for a file that is missing, unreadable or of a newer schema."""
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        newer = content["schema_version"] > SCHEMA_VERSION
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {path}: not a result of tune; run leankv tune again") from error
    if newer:
        raise InputError(f"{path} has schema {content['schema_version']}, this version reads {SCHEMA_VERSION}: update")
    return content
