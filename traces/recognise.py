"""Which format a trace file is in, by what it holds, never by its name."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

from leankv.serving.errors import InputError
from leankv.traces import azure, burstgpt, lengths, mooncake
from leankv.traces.arrivals import Arrivals
from leankv.traces.generic import read_generic, usual_columns
from leankv.traces.measured import generate_like
from leankv.traces.servegen import read_servegen
from leankv.traces.source import Source
from leankv.traces.tables import csv_header, json_keys
from leankv.traces.trace import Trace

FORMATS = ("azure", "burstgpt", "mooncake", "servegen", "lengths", "figures", "csv", "jsonl", "parquet")
FIGURES_MARK = b'"kind": "trace figures"'
KNOWN = "Azure, BurstGPT, Mooncake, ServeGen, Vidur lengths, or named columns in CSV, JSONL or Parquet"


def recognise(source: Source) -> str:
    """One of FORMATS; the last three are the generic ones.

    Raises:
        InputError: the file is empty, cannot be read, or holds none of them.
    """
    if source.path.is_dir():
        return "servegen"
    head = source.head()
    if not head.strip():
        raise source.error("is empty", "give a trace with at least one request")
    if head.startswith(b"PAR1"):
        return "parquet"
    if _is_tar(head):
        return "servegen"
    if FIGURES_MARK in head[:200]:
        return "figures"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _json_format(source)
    return _csv_format(source, head)


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _json_format(source: Source) -> str:
    keys = json_keys(source)
    if keys is None:
        raise source.error("is not a JSON object", "write one JSON object a line (JSONL)", row=1)
    return "mooncake" if {*mooncake.COLUMNS, mooncake.HASHES} <= set(keys) else "jsonl"


def _csv_format(source: Source, head: bytes) -> str:
    if b"\0" in head:
        raise source.error("is no trace in a known format (binary data)", f"give {KNOWN}")
    names = csv_header(source)
    for name, module in (("azure", azure), ("burstgpt", burstgpt)):
        if set(module.COLUMNS) <= set(names):
            return name
    if set(lengths.COLUMNS) <= set(names) and "arrival" not in usual_columns(names):
        return "lengths"
    return "csv"


def read_trace(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    spread: mooncake.Spread = "even",
    arrivals: Arrivals | None = None,
    folder: str | None = None,
) -> Trace:
    """Read a file (or a ServeGen folder) in whatever known format it is; `columns` makes it a generic one.

    columns: role -> column name (generic.parse_columns). seed: for whatever is drawn. spread: Mooncake ticks.
    arrivals: for length files, which have none. folder: one model inside a ServeGen archive.

    Raises:
        InputError: one line naming file, row and mend.
    """
    source = Source(Path(path))
    kind = recognise(source)
    if columns:
        return read_generic(source, _container(source, kind), columns)
    if kind == "azure":
        return azure.read_azure(source)
    if kind == "burstgpt":
        return burstgpt.read_burstgpt(source)
    if kind == "mooncake":
        return mooncake.read_mooncake(source, spread, seed)
    if kind == "servegen":
        return read_servegen(source, seed, folder)
    if kind == "lengths":
        return lengths.read_lengths(source, arrivals, seed)
    if kind == "figures":
        return generate_like(str(path), seed)
    return read_generic(source, kind)


def _container(source: Source, kind: str) -> str:
    if kind in ("servegen", "figures"):
        raise InputError(f"{source.label}: ServeGen data and tables of figures have no columns; leave --columns out")
    if kind in ("csv", "jsonl", "parquet"):
        return kind
    return "jsonl" if kind == "mooncake" else "csv"
