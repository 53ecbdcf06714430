"""ServeGen client data (alibaba/ServeGen, NSDI 2026): requests sampled from each client's rates and lengths.

A folder or tar archive holds, per client, `chunk-N-trace.csv` (window start in s, requests/s, CV of the gaps, Gamma or
Weibull with its parameters, every 600 s) and `chunk-N-dataset.json` (histograms of input and output tokens, every
6 h). A rate is the count of requests measured in its window, so each window gets exactly that count: gaps are drawn
from the fitted shape and scaled to fill the window. Input and output lengths are drawn independently of each other,
since the published histograms are separate.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from leankv.traces.arrivals import bridged_gaps
from leankv.traces.columns import assembled
from leankv.traces.source import Source
from leankv.traces.trace import PS_PER_S, IntArray, Trace

CHUNK = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """Token counts (int64[k]) and their cumulative shares (float64[k], ending at 1)."""

    tokens: IntArray
    cumulative: FloatArray

    def draw(self, rng: np.random.Generator, n: int) -> IntArray:
        drawn = self.tokens[
            np.searchsorted(self.cumulative, rng.random(n), side="right").clip(max=len(self.tokens) - 1)
        ]
        return np.maximum(drawn, 1)


@dataclass(frozen=True)
class Window:
    """`count` requests in [start_s, start_s + width_s), gaps of `pattern` (Gamma or Weibull) with that shape."""

    start_s: float
    width_s: float
    count: int
    pattern: str
    shape: float


def read_servegen(source: Source, seed: int = 0, folder: str | None = None) -> Trace:
    """Sample the requests of all clients; each client has its own stream of random numbers, by `seed` and its number.

    `folder` picks one model where an archive holds several.

    Raises:
        InputError: no chunk files, a chunk without its partner, or one that cannot be read (with its row).
    """
    files = chunk_files(source, folder)
    parts = []
    for client, pair in sorted(files.items()):
        if len(pair) != 2:
            raise source.error(f"chunk-{client} lacks its trace.csv or dataset.json", "fetch both files of each chunk")
        rng = np.random.default_rng([seed, client])
        windows = _windows(source, client, pair["trace.csv"])
        parts += _client_requests(rng, windows, _histograms(source, client, pair["dataset.json"]))
    if not parts:
        raise source.error("has no window with requests and lengths", "give client data with a positive rate")
    arrival, prompt, output = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(arrival, kind="stable")
    provenance = {"clients": len(files), "seed": seed, "sampled": True}
    return assembled(
        source,
        arrival[order],
        prompt[order],
        output[order],
        "servegen",
        name=_name(source, folder),
        provenance=provenance,
    )


def _name(source: Source, folder: str | None) -> str:
    return PurePosixPath(folder).name if folder else source.name


def chunk_files(source: Source, folder: str | None = None) -> dict[int, dict[str, bytes]]:
    """Client number -> {"trace.csv": bytes, "dataset.json": bytes} of a folder or a tar archive, plain or gzip."""
    members = _folder_members(source) if source.path.is_dir() else _archive_members(source)
    by_folder: dict[str, dict[int, dict[str, bytes]]] = {}
    for name, content in members.items():
        match = CHUNK.search(name)
        parent = str(PurePosixPath(name).parent)
        if match and (folder is None or parent.endswith(folder.strip("/"))):
            by_folder.setdefault(parent, {}).setdefault(int(match[1]), {})[match[2]] = content
    if not by_folder:
        raise source.error("holds no chunk-N-trace.csv", "give the folder or archive of one ServeGen model")
    if len(by_folder) > 1:
        raise source.error(f"holds several models ({', '.join(sorted(by_folder))})", "unpack it and give one folder")
    return next(iter(by_folder.values()))


def _folder_members(source: Source) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(source.path.iterdir()) if CHUNK.search(path.name)}


def _archive_members(source: Source) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(source.content())) as archive:
            chunks = [member for member in archive if member.isfile() and CHUNK.search(member.name)]
            return {member.name: _content(archive, member) for member in chunks}
    except (tarfile.TarError, EOFError) as error:
        raise source.error(f"is not a whole tar archive ({error})", "fetch it again") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def _windows(source: Source, client: int, text: bytes) -> list[Window]:
    rows = [line.split(",") for line in text.decode(errors="replace").splitlines() if line.strip()]
    starts = [_number(source, client, row, fields, 0) for row, fields in enumerate(rows, start=1)]
    width = float(np.median(np.diff(starts))) if len(starts) > 1 else 600.0
    windows = []
    for row, (start, fields) in enumerate(zip(starts, rows, strict=True), start=1):
        if (rate := _number(source, client, row, fields, 1)) > 0:
            pattern = fields[3].strip() if len(fields) > 3 else ""
            shape = _number(source, client, row, fields, 4)
            if pattern not in ("Gamma", "Weibull") or shape <= 0:
                raise _bad_row(source, client, row, f"has pattern {pattern!r} of shape {shape:g}")
            windows.append(Window(start, width, round(rate * width), pattern, shape))
    return windows


def _number(source: Source, client: int, row: int, fields: list[str], column: int) -> float:
    try:
        value = float(fields[column])
    except (IndexError, ValueError):
        raise _bad_row(source, client, row, f"has no number in field {column + 1}") from None
    if not np.isfinite(value) or value < 0:
        raise _bad_row(source, client, row, f"has {value} in field {column + 1}")
    return value


def _bad_row(source: Source, client: int, row: int, what: str) -> Exception:
    return source.error(
        f"chunk-{client}-trace.csv row {row} {what}", "rows are start,rate,CV,Gamma|Weibull,shape,scale"
    )


def _histograms(source: Source, client: int, text: bytes) -> dict[float, tuple[Histogram, Histogram]]:
    """Window start -> (input, output) histograms; windows without lengths are left out."""
    try:
        fields: Mapping[str, Mapping[str, str]] = json.loads(text)
        pairs = {
            float(start): (_histogram(kinds["input_tokens"]), _histogram(kinds["output_tokens"]))
            for start, kinds in fields.items()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        what = f"chunk-{client}-dataset.json cannot be read ({str(error)[:80]})"
        raise source.error(what, "fetch it again") from None
    return {start: (a, b) for start, (a, b) in sorted(pairs.items()) if a is not None and b is not None}


def _histogram(text: str) -> Histogram | None:
    """From the text of a Python dict, `{tokens: share, ...}`."""
    numbers = text.translate(str.maketrans("{}:,", "    ")).split()
    if not numbers:
        return None
    table = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    cumulative = np.cumsum(table[:, 1])
    return Histogram(table[:, 0].astype(np.int64), cumulative / cumulative[-1])


def _client_requests(
    rng: np.random.Generator, windows: list[Window], histograms: dict[float, tuple[Histogram, Histogram]]
) -> list[tuple[IntArray, IntArray, IntArray]]:
    """(arrivals in ps, prompts, outputs) of each window; nothing for a client without any histogram."""
    if not histograms:
        return []
    starts = np.array(list(histograms))
    pairs = list(histograms.values())
    requests = []
    for window in windows:
        # Lengths of the window's own 6 hours, of the latest earlier ones, or of the first ones.
        latest = max(int(np.searchsorted(starts, window.start_s, side="right")) - 1, 0)
        inputs, outputs = pairs[latest]
        gaps = bridged_gaps(rng, window.pattern.lower(), window.shape, window.count, window.width_s)
        arrival = np.rint((window.start_s + gaps) * PS_PER_S).astype(np.int64)
        requests.append((arrival, inputs.draw(rng, window.count), outputs.draw(rng, window.count)))
    return requests
