"""Fetching a public trace: checked before it appears, so that a file in the folder is a whole and true one."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.traces.catalogue import PublicTrace, trace_folder

BLOCK = 1 << 20
TIMEOUT_S = 30.0
Progress = Callable[[int, int | None], None]


def download(entry: PublicTrace, folder: Path | None = None, progress: Progress | None = None) -> tuple[Path, str]:
    """Fetch the entry into `folder` (default: trace_folder()); returns the file and its sha256.

    progress(bytes so far, bytes in all or None) is called after every block.

    Raises:
        InputError: no network, a server's refusal, a transfer cut short, or another checksum; nothing is left behind.
    """
    target = (folder or trace_folder()) / entry.file
    try:
        with atomic_write(target) as beside:
            with urllib.request.urlopen(entry.url, timeout=TIMEOUT_S) as response, beside.open("wb") as file:
                length = response.headers.get("Content-Length")
                digest = _copy(response, file, int(length) if length else None, progress)
            _check(entry, digest)
    except urllib.error.HTTPError as error:
        raise InputError(
            f"{entry.name}: {entry.url} answers {error.code} {error.reason}; {_by_hand(target)}"
        ) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{entry.name}: cannot fetch {entry.url} ({reason}); {_by_hand(target)}") from error
    return target, digest


def _by_hand(target: Path) -> str:
    return f"check the network, or fetch it by other means and save it as {target}"


def _copy(response: IO[bytes], file: IO[bytes], total: int | None, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    done = 0
    while block := response.read(BLOCK):
        file.write(block)
        digest.update(block)
        done += len(block)
        if progress:
            progress(done, total)
    if total is not None and done < total:
        raise HTTPException(f"cut short after {done} of {total} bytes")
    return digest.hexdigest()


def _check(entry: PublicTrace, digest: str) -> None:
    if entry.sha256 is not None and digest != entry.sha256:
        raise InputError(
            f"{entry.name}: {entry.url} has sha256 {digest}, not {entry.sha256}; the file was not kept. "
            "Fetch again, or save it yourself and give its path if you trust it"
        )
