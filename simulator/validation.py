"""A validation: simulated runs held against live ones of the same trace, and how far the projection was off.

`validation.json` holds, besides the stamp of every file (schema, configuration's hash, commit):

conditions: what was asked; device, model, versions, the profile's hash.
loads: by name, the rate that was played: rate_scale, offered_rps.
parity: a row a policy, load and metric (`validation_parity.ParityRow`).
ranking: a row a load and metric (`validation_order.Ranking`), pairs of policies inside.
compression_helps: a row a policy, load and metric against fp16 (`validation_order.Difference`).
residuals: by regime (`validation_residuals.Residual`).
machine: a row a live run: how long a reference step lasted before and after it, as a multiple of what the profile says
    of it; the share of the cores that others took meanwhile; whether the run counts; its pace, that is how long the
    calibration's reference took during the run, over what it usually took while the profile was measured.
paced: as `parity`, but each live run is held against a simulation at its own pace: what is left is no drift of the
    machine. Nothing else rests on it. Empty where no pace was measured.
summary: medians of the absolute errors, and the targets with whether each holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.serving.runs import commit, config_hash
from leankv.simulator.validation_order import compression_helps, rankings
from leankv.simulator.validation_parity import ParityRow, paced_rows, parity_rows
from leankv.simulator.validation_residuals import residuals
from leankv.simulator.validation_summary import summary

if TYPE_CHECKING:
    from leankv.serving.runs import Run

SCHEMA_VERSION = 1
PARITIES = ("parity", "paced")
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Case:
    """One policy under one load: a simulated run, and live ones by repeat (at least one).

    paced: by repeat, simulated at the pace that the machine had during the live run, where that was measured.
    """

    policy: str
    load: str
    simulated: Run
    live: Mapping[int, Run]
    paced: Mapping[int, Run] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Validation:
    """The content of validation.json, see above."""

    conditions: Mapping[str, Any]
    loads: Mapping[str, Mapping[str, float]]
    parity: tuple[ParityRow, ...]
    ranking: Rows
    compression_helps: Rows
    residuals: Rows
    machine: Rows
    summary: Mapping[str, Any]
    paced: tuple[ParityRow, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Every field; the rows of both parities as mappings."""
        rows = {name: [asdict(row) for row in getattr(self, name)] for name in PARITIES}
        return {**vars(self), **rows}


def validated(
    conditions: Mapping[str, Any], loads: Mapping[str, Mapping[str, float]], cases: Sequence[Case], machine: Rows
) -> Validation:
    """Hold every case's live runs against its simulated one. conditions["device"]["backend"] decides the target."""
    parity = tuple(
        row for case in cases for row in parity_rows(case.policy, case.load, case.simulated.summary, _summaries(case))
    )
    ranked, signs = _orders(cases)
    paced = tuple(row for case in cases for row in paced_rows(case.policy, case.load, _pairs(case)))
    regimes = [asdict(each) for c in cases for each in residuals(c.policy, c.load, c.simulated, list(c.live.values()))]
    found = summary(parity, ranked, signs, conditions["device"].get("backend"), paced)
    return Validation(conditions, loads, parity, ranked, signs, regimes, machine, found, paced)


def save_validation(validation: Validation, path: str | Path) -> None:
    """Write validation.json. Raises InputError where that cannot be."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "config_hash": config_hash(validation.conditions),
        "commit": commit(),
        **validation.as_json(),
    }
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_validation(path: str | Path) -> Validation:
    """Read validation.json. Raises InputError: unreadable, or of a newer schema."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["schema_version"] > SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema {content['schema_version']}, this version reads {SCHEMA_VERSION}: update leankv"
            )
        rows: dict[str, Any] = {name: tuple(ParityRow(**each) for each in content.get(name, ())) for name in PARITIES}
        others = {name: content[name] for name in Validation.__dataclass_fields__ if name not in PARITIES}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; name the validation.json of `leankv validate`") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no validation.json; name one that `leankv validate` wrote") from error
    return Validation(**rows, **others)


def _orders(cases: Sequence[Case]) -> tuple[Rows, Rows]:
    ranked: Rows = []
    signs: Rows = []
    for load in dict.fromkeys(case.load for case in cases):
        mine = [case for case in cases if case.load == load]
        predicted = {case.policy: case.simulated.summary for case in mine}
        live = {case.policy: {repeat: run.summary for repeat, run in case.live.items()} for case in mine}
        ranked += [{**asdict(each), "holds": each.holds} for each in rankings(load, predicted, live)]
        signs += [
            {**asdict(each), "live_says": each.verdict, "holds": each.holds}
            for each in compression_helps(load, predicted, live)
        ]
    return ranked, signs


def _pairs(case: Case) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(case.paced[repeat].summary, run.summary) for repeat, run in case.live.items() if repeat in case.paced]


def _summaries(case: Case) -> list[Mapping[str, Any]]:
    return [run.summary for run in case.live.values()]
