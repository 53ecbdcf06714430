"""CSV, JSONL and Parquet files as pyarrow tables of just the columns asked for, unjudged."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from leankv.traces.source import Source


def csv_header(source: Source) -> list[str]:
    """The names in the first non-blank line of a CSV; empty for an empty file."""
    for line in source.head().decode("utf-8-sig", errors="replace").splitlines():
        if line.strip():
            return [name.strip().strip('"').strip() for name in line.split(",")]
    return []


def read_csv(source: Source, columns: Sequence[str]) -> Any:
    """The named columns as text, so that every bad value can be told with its row.

    Raises:
        InputError: a column is missing, a row has too few or too many fields, or the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv as pacsv

    header = csv_header(source)
    require_columns(source, header, columns)
    options: dict[str, Any] = {
        "read_options": pacsv.ReadOptions(column_names=header, skip_rows=_rows_to_header(source)),
        "convert_options": pacsv.ConvertOptions(
            column_types={name: pa.string() for name in columns},
            include_columns=list(columns),
            strings_can_be_null=False,
        ),
    }
    try:
        text = source.content()
        # A header without a line end is no row to Arrow.
        return pacsv.read_csv(pa.BufferReader(text if text.endswith(b"\n") else text + b"\n"), **options)
    except pa.ArrowInvalid as error:
        raise _csv_error(source, str(error), len(header)) from error


def _rows_to_header(source: Source) -> int:
    lines = source.head().decode("utf-8-sig", errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, start=1) if line.strip()), 0)


def _csv_error(source: Source, message: str, fields: int) -> Exception:
    """Threads do not know the row, so it is looked for again, slowly, only when there is an error to report."""
    rows = [line for line in source.content().split(b"\n") if line.strip()]
    for row, line in enumerate(rows[1:], start=1):
        if line.count(b",") + 1 != fields and b'"' not in line:
            found = line.count(b",") + 1
            return source.error(f"has {found} fields where the header has {fields}", "mend or remove that row", row=row)
    return source.error(f"is not readable CSV ({_one_line(message)})", "mend the file")


def json_keys(source: Source) -> list[str] | None:
    """The keys of the first JSONL object; None where the first line is no JSON object."""
    for line in source.head().decode("utf-8-sig", errors="replace").splitlines():
        if line.strip():
            try:
                first = json.loads(line)
            except ValueError:
                return None
            return list(first) if isinstance(first, dict) else None
    return None


def read_jsonl(source: Source, columns: Sequence[str]) -> Any:
    """The named fields of a JSONL file, typed as its values are (integers, floats, text or lists of integers).

    Raises:
        InputError: a field is missing, or a line is no JSON object.
    """
    import pyarrow as pa
    import pyarrow.json as pajson

    require_columns(source, json_keys(source) or [], columns)
    text = source.content()
    try:
        table = pajson.read_json(pa.BufferReader(text), read_options=pajson.ReadOptions(block_size=_block_size(text)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _json_error(source, str(error), columns) from error
    return table.select(list(columns))


def _block_size(text: bytes) -> int:
    # A line may not be longer than a block: prefix hashes of a 128k prompt take some kilobytes.
    return max(1 << 24, min(len(text), 1 << 30))


def _json_error(source: Source, message: str, columns: Sequence[str]) -> Exception:
    """Arrow tells the line only sometimes, so the first bad one is looked for again."""
    row = 0
    kinds: dict[str, type] = {}
    for line in source.content().split(b"\n"):
        if not line.strip():
            continue
        row += 1
        try:
            fields = json.loads(line)
        except ValueError:
            return source.error("is not a JSON object", "mend or remove that row", row=row)
        if not isinstance(fields, dict):
            return source.error("is not a JSON object", "mend or remove that row", row=row)
        for name in columns:
            value = fields.get(name)
            if _wrong_kind(value, kinds.setdefault(name, type(value))) or value != value:
                what = f"has {name} = {json.dumps(value)[:40]}"
                return source.error(what, f"mend or remove that row ({name} is a number elsewhere)", row=row)
    return source.error(f"is not readable JSONL ({_one_line(message)})", "mend the file")


def _wrong_kind(value: Any, kind: type) -> bool:
    numbers = (int, float)
    return not (isinstance(value, kind) or (isinstance(value, numbers) and issubclass(kind, numbers)))


def read_parquet(source: Source, columns: Sequence[str] | None = None) -> Any:
    """The named columns (or all) of a Parquet file, typed as stored, with its schema metadata.

    Raises:
        InputError: a column is missing, or the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.path)
        if columns is not None:
            require_columns(source, file.schema_arrow.names, columns)
        return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise source.error(f"is not a readable Parquet file ({_one_line(str(error))})", "write it again") from error


def parquet_columns(source: Source) -> list[str]:
    """Column names of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(source.path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise source.error(f"is not a readable Parquet file ({_one_line(str(error))})", "write it again") from error


def require_columns(source: Source, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise InputError where a wanted column is not among those found, or stands twice in the header."""
    missing = [name for name in wanted if name not in found]
    if missing:
        mend = "name them with --columns arrival=...,prompt=...,output=..."
        raise source.error(f"has no column {', '.join(missing)} (it has {', '.join(found) or 'none'})", mend)
    twice = [name for name in wanted if list(found).count(name) > 1]
    if twice:
        raise source.error(f"has column {twice[0]} twice", "rename one of them")


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()[:160]
