"""Any CSV, JSONL or Parquet with one row a request, by named columns; also the form that `convert` writes.

Columns are named by `arrival=NAME,prompt=NAME,output=NAME`, or found by the usual names. An arrival column counts
seconds unless its name ends in _ms, _us, _ns or _ps, or a unit is given (`arrival=t:ms`); text may be ISO 8601 dates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from leankv.serving.errors import InputError, unknown_name
from leankv.traces.columns import TICKS_PER_S, arrivals_ps, assembled, lengths
from leankv.traces.mooncake import prefix_blocks
from leankv.traces.source import Source
from leankv.traces.tables import csv_header, json_keys, parquet_columns, read_csv, read_jsonl, read_parquet
from leankv.traces.trace import PrefixBlocks, Trace

ARRIVAL_PS = "arrival_ps"
PREFIX_COLUMN = "prefix_hashes_"  # followed by the tokens of a block
METADATA_KEY = b"leankv_trace"
USUAL_NAMES = {
    "arrival": (ARRIVAL_PS, "arrival_s", "arrival_ms", "arrival_time", "arrived_at", "arrival", "timestamp", "time"),
    "prompt": (
        "prompt_tokens",
        "num_prefill_tokens",
        "input_tokens",
        "prompt_len",
        "input_length",
        "input_len",
        "prompt",
    ),
    "output": ("output_tokens", "num_decode_tokens", "completion_tokens", "output_len", "output_length", "output"),
}


def parse_columns(text: str) -> dict[str, str]:
    """`arrival=ts:ms,prompt=in,output=out` as a mapping. Any subset may be given.

    Raises:
        InputError: another shape, or a role that is none of arrival, prompt and output.
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        role, equals, name = part.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--columns {text!r}: {part!r} is not role=name; write arrival=...,prompt=...,output=...")
        if role.strip() not in USUAL_NAMES:
            raise unknown_name("column role", role.strip(), USUAL_NAMES)
        columns[role.strip()] = name.strip()
    return columns


def usual_columns(names: Sequence[str]) -> dict[str, str]:
    """Which of `names` are the usual ones (case aside) for arrival, prompt and output; roles not found are missing."""
    by_folded = {name.casefold(): name for name in reversed(names)}
    found = {}
    for role, usual in USUAL_NAMES.items():
        name = next((by_folded[alias] for alias in usual if alias in by_folded), None)
        if name is not None:
            found[role] = name
    return found


def read_generic(source: Source, kind: str, columns: Mapping[str, str] | None = None) -> Trace:
    """`kind`: csv, jsonl or parquet; `columns`: role -> name, usual names for roles not given.

    Raises:
        InputError: naming file, row and mend for anything unreadable.
    """
    names = column_names(source, kind)
    roles = {**usual_columns(names), **(columns or {})}
    _require_roles(source, names, roles)
    arrival, unit = _arrival_column(roles["arrival"], names)
    prefix = next((name for name in names if name.startswith(PREFIX_COLUMN)), None)
    wanted = [arrival, roles["prompt"], roles["output"], *([prefix] if prefix else [])]
    table = _reader(kind)(source, wanted)
    # Files that this package wrote keep their arrivals; in others time may count from anywhere.
    times = arrivals_ps(source, table.column(arrival), arrival, unit, shift=arrival != ARRIVAL_PS)
    trace = assembled(
        source,
        times,
        lengths(source, table.column(roles["prompt"]), roles["prompt"]),
        lengths(source, table.column(roles["output"]), roles["output"]),
        format=f"generic {kind}",
        prefix_hashes=_prefix(source, table, prefix),
    )
    return _with_metadata(trace, table.schema.metadata)


def column_names(source: Source, kind: str) -> list[str]:
    """The column names of a csv, jsonl or parquet file."""
    if kind == "parquet":
        return parquet_columns(source)
    return csv_header(source) if kind == "csv" else json_keys(source) or []


def _reader(kind: str) -> Any:
    return {"csv": read_csv, "jsonl": read_jsonl, "parquet": read_parquet}[kind]


def _require_roles(source: Source, names: Sequence[str], roles: Mapping[str, str]) -> None:
    missing = [role for role in USUAL_NAMES if role not in roles]
    if missing:
        what = f"has no column recognised as {' or '.join(missing)} (it has {', '.join(names)[:200] or 'none'})"
        raise source.error(what, "name the columns with --columns arrival=...,prompt=...,output=...")


def _arrival_column(named: str, names: Sequence[str]) -> tuple[str, str]:
    name, colon, unit = named.rpartition(":")
    if colon and named not in names:
        if unit not in TICKS_PER_S:
            raise unknown_name("time unit", unit, TICKS_PER_S)
        return name, unit
    suffix = named.rpartition("_")[2]
    return named, suffix if suffix in TICKS_PER_S else "s"


def _prefix(source: Source, table: Any, prefix: str | None) -> PrefixBlocks | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if prefix is None:
        return None
    column = table.column(prefix).combine_chunks()
    if pa.types.is_string(column.type):
        # CSV: hashes separated by blanks; an empty field is an empty list, not a list of one empty text.
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        column = pc.split_pattern(column, " ")
    return prefix_blocks(source, column, int(prefix.removeprefix(PREFIX_COLUMN)))


def _with_metadata(trace: Trace, metadata: Mapping[bytes, bytes] | None) -> Trace:
    if not metadata or METADATA_KEY not in metadata:
        return trace
    kept = json.loads(metadata[METADATA_KEY])
    return replace(trace, name=kept["name"], provenance=kept["provenance"], warnings=tuple(kept["warnings"]))
