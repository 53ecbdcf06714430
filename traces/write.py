"""Writing a trace so that it reads back the same: arrival_ps, prompt_tokens, output_tokens, prefix_hashes_<block>.

Parquet also keeps name, provenance and warnings; CSV and JSONL have no place for them.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.traces.generic import ARRIVAL_PS, METADATA_KEY, PREFIX_COLUMN
from leankv.traces.trace import PrefixBlocks, Trace

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the trace in the format that the name's ending says; the file appears only when it is complete.

    Raises:
        InputError: another ending, or a place that cannot be written.
    """
    target = Path(path)
    writer = _writer(target.name)
    with atomic_write(target) as beside:
        writer(trace, beside)


def _writer(name: str) -> Any:
    for suffix, writer in ((".parquet", _write_parquet), (".csv", _write_csv), (".jsonl", _write_jsonl)):
        if name.removesuffix(".gz").endswith(suffix) and not name.endswith(".parquet.gz"):
            return writer
    raise InputError(f"cannot write {name}: no such format; end the name in {', '.join(SUFFIXES)}")


def as_table(trace: Trace) -> Any:
    """The trace as a pyarrow table, prefix hashes as lists of int64."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        ARRIVAL_PS: pa.array(trace.arrival_ps),
        "prompt_tokens": pa.array(trace.prompt_tokens),
        "output_tokens": pa.array(trace.output_tokens),
    }
    if trace.prefix_hashes is not None:
        blocks = trace.prefix_hashes
        lists = pa.ListArray.from_arrays(pa.array(blocks.offsets.astype(np.int32)), pa.array(blocks.hashes))
        columns[f"{PREFIX_COLUMN}{blocks.block_tokens}"] = lists
    return pa.table(columns)


def _write_parquet(trace: Trace, path: Path) -> None:
    import pyarrow.parquet as pq

    kept = {"name": trace.name, "provenance": dict(trace.provenance), "warnings": list(trace.warnings)}
    table = as_table(trace).replace_schema_metadata({METADATA_KEY: json.dumps(kept).encode()})
    pq.write_table(table, path, compression="zstd")


def _write_csv(trace: Trace, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    table = as_table(trace)
    if trace.prefix_hashes is not None:
        joined = [" ".join(map(str, row)) for row in _rows(trace.prefix_hashes)]
        table = table.set_column(3, table.column_names[3], pa.array(joined, pa.string()))
    options = pacsv.WriteOptions(quoting_style="none", quoting_header="none")
    with _stream(path) as stream:
        pacsv.write_csv(table, stream, options)


def _write_jsonl(trace: Trace, path: Path) -> None:
    hashes = [None] * len(trace) if trace.prefix_hashes is None else _rows(trace.prefix_hashes)
    key = "" if trace.prefix_hashes is None else f"{PREFIX_COLUMN}{trace.prefix_hashes.block_tokens}"
    columns = (trace.arrival_ps.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), hashes)
    with _stream(path) as stream:
        for arrival, prompt, output, row in zip(*columns, strict=True):
            # Whole numbers are their own JSON, and writing them so is several times as fast as json.dumps.
            shared = "" if row is None else f', "{key}": {row}'
            line = f'{{"{ARRIVAL_PS}": {arrival}, "prompt_tokens": {prompt}, "output_tokens": {output}{shared}}}\n'
            stream.write(line.encode())


def _rows(blocks: PrefixBlocks) -> list[list[int]]:
    hashes, offsets = blocks.hashes.tolist(), blocks.offsets.tolist()
    return [hashes[start:end] for start, end in pairwise(offsets)]


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with path.open("wb") as plain:
        if not path.name.endswith(".gz"):
            yield plain
            return
        # No name and no time inside: the same trace gives the same bytes.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=plain, mtime=0) as packed:
            yield packed
