"""From columns as they stand in a file to a checked Trace: the one place where rows are judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from leankv.traces.source import Source
from leankv.traces.trace import IntArray, PrefixBlocks, Trace

TICKS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12}
LONGEST_TOKENS = 2**31 - 1
LENGTH_MEND = "mend or remove those rows (a length is a whole number of tokens, at least 1)"


def lengths(source: Source, column: Any, name: str, least: int = 1) -> IntArray:
    """A pyarrow column of text or numbers as int64[n] token counts.

    Raises:
        InputError: NaN, text, fractions, or counts below `least`; names the first such row and how many there are.
    """
    values = _numbers(source, column, name)
    if (bad := np.isnan(values)).any():
        raise source.bad_rows(bad, f"has no {name} (NaN or empty)", LENGTH_MEND)
    if (bad := (values != np.floor(values)) | (values > LONGEST_TOKENS)).any():
        raise source.bad_rows(bad, f"has {name} = {values[np.argmax(bad)]:g}", LENGTH_MEND)
    if (bad := values < least).any():
        raise source.bad_rows(bad, f"has {name} = {values[np.argmax(bad)]:g}", LENGTH_MEND)
    return values.astype(np.int64)


def _numbers(source: Source, column: Any, name: str) -> npt.NDArray[np.float64]:
    """A column as float64[n], NaN where empty; text that is no number is the user's error."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _flat(column)
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    try:
        return pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise unreadable(source, column, name, "a number", float) from None


def arrivals_ps(source: Source, column: Any, name: str, unit: str = "s", shift: bool = True) -> IntArray:
    """A pyarrow column of times as int64[n] picoseconds, exact to the last written digit down to 1 ps.

    Numbers count `unit`s; text may also be ISO 8601 dates (with or without a zone). With `shift`, and always for
    dates, the earliest becomes 0.

    Raises:
        InputError: NaN, unreadable text, negative times kept unshifted, or a span over 106 days (64 bits of ps).
    """
    import pyarrow as pa

    column = _flat(column)
    missing = _missing(column)
    if missing.any():
        raise source.bad_rows(missing, f"has no {name} (NaN or empty)", "mend or remove those rows")
    if pa.types.is_timestamp(column.type) or _looks_like_dates(column):
        return _dates_ps(source, column, name)
    return _ticks_ps(source, column, name, unit, shift)


def _flat(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _missing(column: Any) -> npt.NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        text = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        empty = pc.is_in(text, value_set=pa.array(["", "nan", "null", "none", "nat", "inf", "-inf"]))
        return pc.or_kleene(pc.is_null(column), empty).fill_null(True).to_numpy(zero_copy_only=False)
    missing = pc.is_null(column, nan_is_null=True)
    if pa.types.is_floating(column.type):
        missing = pc.or_(missing, pc.is_inf(column).fill_null(True))
    return missing.to_numpy(zero_copy_only=False)


def _looks_like_dates(column: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_string(column.type) or not len(column):
        return False
    first = column[0].as_py().strip()
    return len(first) >= 10 and first[4:5] == "-" and first[7:8] == "-"


def _dates_ps(source: Source, column: Any, name: str) -> IntArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        column = _parsed_dates(source, pc.utf8_trim_whitespace(column), name)
    ns = pc.cast(pc.cast(column, pa.timestamp("ns", tz=column.type.tz)), pa.int64()).to_numpy()
    since = ns - ns.min() if len(ns) else ns
    if len(ns) and int(since.max()) > (2**63 - 1) // 1000:
        raise _too_long(source, name)
    return since * 1000


def _parsed_dates(source: Source, text: Any, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    for kind in (pa.timestamp("ns"), pa.timestamp("ns", tz="UTC")):
        try:
            return pc.cast(text, kind)
        except pa.ArrowInvalid:
            continue
    raise unreadable(source, text, name, "a date (YYYY-MM-DD HH:MM:SS.fff, with a zone everywhere or nowhere)", _date)


def _date(text: str) -> None:
    from datetime import datetime

    datetime.fromisoformat(text[:26].strip())


def _ticks_ps(source: Source, column: Any, name: str, unit: str, shift: bool) -> IntArray:
    """Numbers of `unit` as picoseconds: in decimal arithmetic, since a float64 holds 1 ps only up to 2.5 hours."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digits = len(str(10**12 // TICKS_PER_S[unit])) - 1
    if pa.types.is_integer(column.type):
        column = pc.cast(column, pa.int64())
        return _scaled(source, column.to_numpy(), 10**digits, name, shift)
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    elif not pa.types.is_decimal(column.type):
        column = pc.cast(pc.cast(column, pa.float64()), pa.string())
    for extra in (0, 3, 6):
        try:
            exact = pc.cast(column, pa.decimal128(34, digits + extra))
            break
        except pa.ArrowInvalid:
            continue
    else:
        return _scaled(source, _numbers(source, column, name), 10**digits, name, shift)
    rounded = pc.cast(pc.round(exact, ndigits=digits), pa.decimal128(34, digits), safe=False)
    words = np.frombuffer(rounded.buffers()[1], dtype=np.int64)[2 * rounded.offset :].reshape(-1, 2)[: len(rounded)]
    if shift:
        return _since_earliest(source, words, name)
    if (words[:, 1] != words[:, 0] >> 63).any():
        raise _too_long(source, name)
    return _shifted(source, words[:, 0].copy(), name, shift)


def _since_earliest(source: Source, words: npt.NDArray[np.int64], name: str) -> IntArray:
    """128-bit integers (low and high words, int64[n, 2]) minus the earliest: epoch times in ps exceed 64 bits."""
    if not len(words):
        return np.zeros(0, np.int64)
    low, high = words[:, 0].view(np.uint64), words[:, 1]
    earliest = low[high == high.min()].min()
    about = (high - high.min()).astype(np.float64) * 2.0**64 + low.astype(np.float64) - float(earliest)
    if about.max() >= 2.0**63 - 2.0**12:
        raise _too_long(source, name)
    return (low - earliest).view(np.int64)


def _scaled(source: Source, ticks: npt.NDArray[Any], factor: int, name: str, shift: bool) -> IntArray:
    if not len(ticks):
        return np.zeros(0, np.int64)
    earliest, latest = ticks.min().item(), ticks.max().item()
    # In Python numbers, which do not wrap around.
    if max(latest - earliest if shift else latest, -earliest) * factor > 2**63 - 1:
        raise _too_long(source, name)
    since = ticks - earliest if shift else ticks
    if since.dtype == np.int64:
        return _shifted(source, since * factor, name, shift)
    return _shifted(source, np.rint(since * factor).astype(np.int64), name, shift)


def _shifted(source: Source, ps: IntArray, name: str, shift: bool) -> IntArray:
    if shift and len(ps):
        return ps - ps.min()
    if (ps < 0).any():
        raise source.bad_rows(ps < 0, f"has a negative {name}", "count time from the first request")
    return ps


def _too_long(source: Source, name: str) -> Exception:
    return source.error(f"{name} spans over 106 days, more than 64 bits of picoseconds hold", "cut the file")


def unreadable(source: Source, column: Any, name: str, kind: str, parse: Any) -> Exception:
    """The error for the first text in `column` that `parse` refuses."""
    values = column.to_pylist()

    def refused(value: Any) -> bool:
        try:
            parse(value)
        except (TypeError, ValueError):
            return value is not None
        return False

    row = next((number for number, value in enumerate(values, start=1) if refused(value)), 1)
    return source.error(f"has {name} = {values[row - 1]!r}, which is not {kind}", "mend or remove that row", row=row)


def assembled(
    source: Source,
    arrival_ps: IntArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    format: str,
    prefix_hashes: PrefixBlocks | None = None,
    warnings: tuple[str, ...] = (),
    provenance: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Trace:
    """A Trace from checked columns (int64[n]): rows sorted by arrival, with a warning where they were not.

    Requests that share a timestamp are kept, in file order, and counted in a warning.
    """
    if not len(arrival_ps):
        raise source.error("holds no requests", "give a trace with at least one row")
    rows = np.arange(len(arrival_ps))
    late = arrival_ps[1:] < arrival_ps[:-1]
    if late.any():
        where = f"first at row {int(np.argmax(late)) + 2}"
        warnings += (
            f"{source.label}: {int(late.sum())} rows arrive before the row above ({where}); sorted by arrival",
        )
        rows = np.argsort(arrival_ps, kind="stable")
    duplicates = int((np.diff(arrival_ps[rows]) == 0).sum())
    if duplicates:
        warnings += (f"{source.label}: {duplicates} requests share the timestamp of an earlier one; kept as they are",)
    return Trace(
        name=name or source.name,
        arrival_ps=arrival_ps[rows],
        prompt_tokens=prompt_tokens[rows].astype(np.int32),
        output_tokens=output_tokens[rows].astype(np.int32),
        prefix_hashes=prefix_hashes if prefix_hashes is None or not late.any() else prefix_hashes.take(rows),
        provenance={"format": format, "file": source.path.name, **(provenance or {})},
        warnings=warnings,
    )
