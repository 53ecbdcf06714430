"""Writing so that a reader never sees half a file: write beside the target, then rename over it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from leankv.serving.errors import InputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; at the end it is renamed to `path`, replacing what was there.

    Missing parent folders are created. The temporary name keeps the target's suffix. If the body raises (Ctrl-C
    included), or writes nothing, the target stays as it was and nothing is left beside it.

    Raises:
        InputError: the target is a folder, or its parent cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; name a file")
    made = _make_parents(target)
    beside = _beside(target)
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
    made = _make_parents(target)
    beside = _beside(target)
    try:
        with _unwritable_is_input_error(target, beside):
            beside.mkdir()
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


def _beside(target: Path) -> Path:
    return target.with_name(f".{uuid4().hex[:12]}.{target.name}")


def _make_parents(target: Path) -> list[Path]:
    """Create the target's missing parent folders; returns those created, innermost first."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise _cannot_write(target, error) from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@contextmanager
def _unwritable_is_input_error(target: Path, beside: Path) -> Iterator[None]:
    """Turn an OSError about the temporary path itself into the user's error; others are not ours to reword."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) == beside:
            raise _cannot_write(target, error) from error
        raise


def _cannot_write(target: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {target}: {error.strerror or error}; choose a place you can write to")
