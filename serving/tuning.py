"""The file `tune.json`: the settings of LeanKV that a bound on quality allows on one model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.serving.runs import commit, config_hash

SCHEMA_VERSION = 1
TUNE_FILE = "tune.json"
MEASURED = ("found", "trials", "kept")
FOUND = ("policy", "bound", "spec", "held_in", "held_out")


def save_tuning(result: Mapping[str, Any], path: str | Path) -> None:
    """Write a result of `tune`. Keys:

    model, dtype, device (where it ran, in words), versions, settings (text, windows, judge).
    found: a list by policy and bound: policy, bound, spec (None: nothing allowed), held_in and held_out, each with
        loss, interval (95 %), nominal, physical; and at_end, the knobs as name=value beyond which none was tried.
    trials: by setting, its held-in figures.
    kept: by setting and kind of text, the share of a prompt's positions kept, [layers][kv_heads][tiers].

    To these come schema_version, config_hash (of all but found, trials and kept), commit and created (ISO 8601, UTC).
    Raises InputError where it cannot be written.
    """
    config = {name: value for name, value in result.items() if name not in MEASURED}
    stamp = {
        "schema_version": SCHEMA_VERSION,
        "config_hash": config_hash(config),
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with atomic_write(path) as beside:
        stamped = {**stamp, **result}
        beside.write_text(json.dumps(stamped, indent=1) + "\n", encoding="utf-8")


def load_tuning(path: str | Path) -> dict[str, Any]:
    """Read what `save_tuning` wrote. Raises InputError for a file that is missing, unreadable or of a newer schema."""
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        newer = content["schema_version"] > SCHEMA_VERSION
        if not newer:
            _complete(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {path}: not a result of tune; run leankv tune again") from error
    if newer:
        raise InputError(f"{path} has schema {content['schema_version']}, this version reads {SCHEMA_VERSION}: update")
    return content


def _complete(content: dict[str, Any]) -> None:
    """Add what files of earlier versions lack. Raises KeyError, TypeError or AttributeError for what is no result."""
    content["kept"].items()
    for each in content["found"]:
        missing = [name for name in FOUND if name not in each]
        if missing:
            raise KeyError(missing[0])
        each.setdefault("at_end", _highest_tried(each, content.get("trials", {})))


def ended_at_the_grid(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every answer beyond which a knob was not tried: the bound is not what ended its search."""
    return [
        f"{each['policy']} at {100 * each['bound']:g} %: the search ended at {' and '.join(each['at_end'])}, the "
        "highest level tried, not at the bound."
        for each in found
        if each["at_end"]
    ]


def _highest_tried(each: Mapping[str, Any], trials: Mapping[str, Any]) -> list[str]:
    """What files of earlier versions do not say: the knobs of an answer that no trial of its policy exceeds."""
    if each["spec"] is None:
        return []
    *fixed, first, second = re.split("[:,]", each["spec"])
    tried = [split[-2:] for spec in trials if (split := re.split("[:,]", spec))[:-2] == fixed]
    return [
        knob
        for place, knob in enumerate((first, second))
        if tried and _value(knob) >= max(_value(knobs[place]) for knobs in tried)
    ]


def _value(knob: str) -> float:
    """Of a knob as name=value."""
    return float(knob.partition("=")[2])
