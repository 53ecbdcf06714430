"""Writing so that a reader never sees half a file: write beside the target, then rename over it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from leankv.serving.errors import InputError

# Failures of a place rather than of the program: no right, read-only, full, over quota, name too long, taken meanwhile.
UNWRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ENOTEMPTY,
    errno.EEXIST,
}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; at the end it is renamed to `path`, replacing what was there.

    Missing parent folders are created; a symbolic link is followed. The temporary file exists at once and keeps the
    target's suffix. If the body raises (Ctrl-C included) the target stays as it was and nothing is left beside it.

    Raises:
        InputError: the target is a folder or device, or its place cannot be written or is full.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {path}: it is no plain file; name another")
    beside, made = _claim(target, Path.touch)
    try:
        with _unwritable_is_input_error(target, beside):
            yield beside
            os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        _remove_empty(made)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; at the end it is renamed to `path`, which must be new or empty.

    Missing parent folders are created. If the body raises (Ctrl-C included), nothing is left behind.

    Raises:
        InputError: `path` holds something already, or cannot be written.
    """
    target = Path(path)
    require_new_folder(target)
    beside, made = _claim(target, Path.mkdir)
    try:
        with _unwritable_is_input_error(target, beside):
            yield beside
            os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        _remove_empty(made)
        raise


def require_new_folder(path: str | os.PathLike[str]) -> None:
    """Raise InputError now, before any long work, if `path` is a file or a folder that holds something."""
    target = Path(path)
    if target.is_dir():
        if any(target.iterdir()):
            raise InputError(f"output folder {target} already holds files; name a new one or remove it")
    elif target.exists():
        raise InputError(f"cannot write folder {target}: a file of that name exists; name another")


def _claim(target: Path, create: Callable[[Path], None]) -> tuple[Path, list[Path]]:
    """Create the temporary path now, so that a place that cannot be written is found before any long work.

    Returns it and the parent folders that had to be created, innermost first.
    """
    beside = target.with_name(f".{uuid4().hex[:12]}.{target.name}")
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        create(beside)
    except OSError as error:
        _remove_empty(missing)
        raise _cannot_write(target, error) from error
    return beside, missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _unwritable_is_input_error(target: Path, beside: Path) -> Iterator[None]:
    """Turn a failure to write at `beside`, or below it, into the user's error; other errors are not ours to reword."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(beside)
        if ours and error.errno in UNWRITABLE:
            raise _cannot_write(target, error) from error
        raise


def _cannot_write(target: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {target}: {error.strerror or error}; choose a place you can write to")
