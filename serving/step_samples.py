"""Timed steps of the live engine, as a calibration writes them and a fit reads them: a row a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

TYPES = {"str": "string", "int": "int64", "float": "float64", "bool": "bool"}


@dataclass(frozen=True)
class StepSample:
    """One step. point: a number that its repetitions share, within a policy. regime: decode, prefill or mixed.

    round: of the calibration, from 0. reference_s: how long a fixed piece of work took around the step; reference: that
    over its best time, 1 where nothing disturbed the machine; kept: whether it was near enough to 1; pace: how slow the
    machine was around the step, 1 where it was as usual.
    tokens: computed, decoded ones included; rows: sequences that got a token; attended: positions that the decoding
    sequences attended to; read_bytes: keys and values that they hold, in their tier's format, by tier (0 where a policy
    has one); chunk_tokens, context_tokens, pairs: sums over the chunks of prompts (see `StepFit`); completed,
    completed_tokens: prompts that the step finished, and their lengths together; moved: decoding requests whose tokens
    changed tier in bulk, where a policy does that every so many steps; pages: held after the step.
    """

    policy: str
    regime: str
    point: int
    round: int
    seconds: float
    reference_s: float
    reference: float
    pace: float
    kept: bool
    tokens: int
    rows: int
    decoding: int
    attended: int
    read_bytes_tier0: float
    read_bytes_tier1: float
    chunks: int
    chunk_tokens: int
    context_tokens: int
    pairs: float
    completed: int
    completed_tokens: int
    moved: int
    pages: int


def samples_table(samples: Sequence[StepSample]) -> pa.Table:
    """The rows of `steps.parquet`."""
    import pyarrow as pa

    kinds = {field.name: TYPES[str(field.type)] for field in fields(StepSample)}
    schema = pa.schema([(name, getattr(pa, "bool_" if kind == "bool" else kind)()) for name, kind in kinds.items()])
    return pa.Table.from_pylist([asdict(sample) for sample in samples], schema=schema)


def samples_of(table: pa.Table) -> list[StepSample]:
    """The steps of a table. Raises InputError where it lacks a column."""
    names = [field.name for field in fields(StepSample)]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(f"the table of steps has no column {missing[0]!r}; run leankv calibrate again")
    rows: list[dict[str, Any]] = table.select(names).to_pylist()
    return [StepSample(**row) for row in rows]
