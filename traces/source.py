"""Opening a trace file, plain or gzip, and saying where in it something is wrong."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Source:
    """One file. `path` names it in every message; its text is read whole or by its head."""

    path: Path

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The file's name without the suffixes of compression and format."""
        stem = self.path.name
        for suffix in (".gz", ".tar", ".tgz", ".csv", ".jsonl", ".json", ".parquet"):
            stem = stem.removesuffix(suffix)
        return stem or self.path.name

    def head(self) -> bytes:
        """The first 64 KiB, decompressed; what there is of them where the gzip is cut short."""
        with self._opened() as stream:
            raw = stream.read(HEAD_BYTES)
        if not raw.startswith(GZIP_MAGIC):
            return raw
        try:
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw, HEAD_BYTES)
        except zlib.error as error:
            raise self.error(f"not a readable gzip file ({error})", "fetch it again") from error

    def content(self) -> bytes:
        """All of it, decompressed.

        Raises:
            InputError: the file cannot be read, or its gzip is cut short or damaged.
        """
        with self._opened() as stream:
            raw = stream.read()
        if not raw.startswith(GZIP_MAGIC):
            return raw
        try:
            return gzip.decompress(raw)
        except EOFError as error:
            lines = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw).count(b"\n")
            raise self.error(f"the gzip is cut short after line {lines}", "fetch it again") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"the gzip is damaged ({error})", "fetch it again") from error

    def _opened(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror})", "give a file you can read") from error

    def error(self, what: str, mend: str, row: int | None = None) -> InputError:
        """One line: file, row (counted from 1, without the header) with its line in a text file, mend."""
        place = "" if row is None else f"row {row}{self._line_of(row)} "
        return InputError(f"{self.label}: {place}{what}; {mend}")

    def bad_rows(self, bad: npt.NDArray[np.bool_], what: str, mend: str) -> InputError:
        """The error for the rows marked in `bad` (bool[n], at least one): names the first and counts them all."""
        count = int(bad.sum())
        others = "" if count == 1 else f" ({count} such rows in all)"
        return self.error(f"{what}{others}", mend, row=int(np.argmax(bad)) + 1)

    def _line_of(self, row: int) -> str:
        """Readers skip blank lines, so the line is counted in the file itself; Parquet has none."""
        text = self.content()
        if text.startswith(b"PAR1"):
            return ""
        wanted = row if text.lstrip()[:1] == b"{" else row + 1
        seen = 0
        for number, line in enumerate(text.split(b"\n"), start=1):
            seen += bool(line.strip())
            if seen == wanted:
                return f" (line {number})"
        return ""
